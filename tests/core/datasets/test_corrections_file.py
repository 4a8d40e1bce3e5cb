"""The file of corrections: what a killed process leaves of a line, and lines that were edited by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from vsr1_core.datasets.corrections import Annotated, Correction, appending, read_corrections
from vsr1_core.rows.files import unended_line

OLD = Annotated("a {dog}", "v", 0.0, 1.0, "test")
ONE = Correction("id", "ann", "now", "change", "1_fig", OLD, dataclasses.replace(OLD, query="a \u00e9l\u00e9phant"))


def test_a_line_that_is_cut_off_at_any_byte_is_none_and_the_next_correction_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "corrections.jsonl"
    with appending(path) as listed:
        listed.append(ONE)
    line = path.read_bytes()
    inner = [n for n in range(1, len(line) - 1) if line[n - 1 : n] == b"}"]
    assert len(inner) == 3, "one in the query, and one behind each annotation"
    for size in (1, 40, *inner[1:], len(line) - 2):
        path.write_bytes(line + line[:size])
        assert read_corrections(path) == [ONE], line[:size]
        with appending(path) as listed:
            listed.append(dataclasses.replace(ONE, correction_id="next"))
        assert [one.correction_id for one in read_corrections(path)] == ["id", "next"]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"query_id": ["1"]}, "query_id must be a text"),
        ({"after": {**dataclasses.asdict(OLD), "start_s": "a"}}, "not supported between"),
        ({"after": {**dataclasses.asdict(OLD), "query": 5}}, "query must be a text"),
        ({"after": {**dataclasses.asdict(OLD), "query": "\ud800"}}, "half of a surrogate pair"),
        ({"after": {**dataclasses.asdict(OLD), "end_s": float("nan")}}, "negative, reversed or empty"),
        ({"after": {}}, "missing 5 required"),
    ],
)
def test_a_value_that_no_correction_has_names_its_line(tmp_path: Path, changed: dict[str, Any], reason: str) -> None:
    path = tmp_path / "corrections.jsonl"
    path.write_text(json.dumps({**dataclasses.asdict(ONE), **changed}) + "\n")
    with pytest.raises(ValueError, match=rf"line 1 is no correction \(.*{reason}"):
        read_corrections(path)


@pytest.mark.parametrize("size", [0, 1, 8191, 8192, 20_000])
def test_the_line_without_an_end_is_found_however_long_it_is(tmp_path: Path, size: int) -> None:
    path = tmp_path / "lines"
    assert unended_line(path) == (0, b"")
    path.write_bytes(b"a\nb\n" + b"x" * size)
    assert unended_line(path) == (4, b"x" * size)
    path.write_bytes(b"x" * size)
    assert unended_line(path) == (0, b"x" * size)
