"""Annotation files that are easily misread: each bad line is named with its repair, and no line costs another one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vsr1_core.datasets import folder
from vsr1_core.datasets.verified import BadLine, Moment, fig_fields, fig_moment, split_of
from vsr1_core.rows.versions import fingerprint

CASES = Path(__file__).parents[4] / "shared" / "cases" / "annotations"
HEAD = "video,start,end,query\n"


def read(path: Path) -> dict[str, Moment | BadLine]:
    return dict(folder.read_annotations(path))


def csv(tmp_path: Path, text: str | bytes) -> dict[str, Moment | BadLine]:
    path = tmp_path / "a.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(path)


def queries(rows: dict[str, Moment | BadLine]) -> list[str]:
    return [row.query for row in rows.values() if isinstance(row, Moment)]


def reasons(rows: dict[str, Moment | BadLine]) -> dict[str, str]:
    return {place: row.reason for place, row in rows.items() if isinstance(row, BadLine)}


def test_a_comma_without_quotes_is_named_and_cuts_no_query(tmp_path: Path) -> None:
    rows = csv(tmp_path, HEAD + "v1,0,5,a man walks in, sits down\nv2,0,5,a dog\nv3,0,5,a cat,,\n")
    assert queries(rows) == ["a dog", "a cat"]
    [(place, reason)] = reasons(rows).items()
    assert place == "a.csv:2"
    assert "5 cells for 4 columns" in reason
    assert "double quotes" in reason


def test_an_unclosed_quote_costs_the_line_where_it_opens(tmp_path: Path) -> None:
    rows = csv(tmp_path, HEAD + 'v1,0,5,"a man says hello\nv2,0,5,a dog\nv3,0,5,"a ""big"", red cat"\nv4,0,5,"a\nb"\n')
    assert queries(rows) == ["a dog", 'a "big", red cat', "a\nb"]
    assert list(reasons(rows)) == ["a.csv:2"]
    assert "a double quote is opened here" in reasons(rows)["a.csv:2"]


def test_an_unclosed_quote_before_many_lines_and_a_huge_cell_cost_one_line_each(tmp_path: Path) -> None:
    lines = "".join(f"v{n},0,5,query {n}\n" for n in range(10_000))
    rows = csv(tmp_path, HEAD + f'v,0,5,"open\n{lines}w,0,5,{"x" * 200_000}\nlast,0,5,fish\n')
    assert len(queries(rows)) == 10_001
    found = reasons(rows)
    assert list(found) == ["a.csv:2", "a.csv:10003"]
    assert "131,072 characters" in found["a.csv:10003"]


@pytest.mark.parametrize("encoding", ["cp1252", "latin1"])
def test_letters_of_another_encoding_are_named_with_the_repair(tmp_path: Path, encoding: str) -> None:
    rows = csv(tmp_path, (HEAD + "v1,0,5,un café\nv2,0,5,a dog\n").encode(encoding))
    assert queries(rows) == ["a dog"]
    reason = reasons(rows)["a.csv:2"]
    assert "byte 0xE9, which is not UTF-8" in reason
    assert "iconv -f cp1252 -t utf-8" in reason
    fingerprint(reason)


def fig(**changes: object) -> dict[str, object]:
    row = {"video": "v1", "time": [0, 5], "desc_id": 1, "duration": 10, "cog_desc": "a", "fig_desc": "a man"}
    return {**row, **changes}


def jsonl(tmp_path: Path, *rows: dict[str, object], start: bytes = b"") -> dict[str, Moment | BadLine]:
    path = tmp_path / "a.jsonl"
    path.write_bytes(start + "".join(json.dumps(row) + "\n" for row in rows).encode())
    return read(path)


def test_the_mark_of_utf_8_loses_no_row(tmp_path: Path) -> None:
    assert queries(jsonl(tmp_path, fig(), fig(desc_id=2), start=b"\xef\xbb\xbf")) == ["a man", "a man"]


@pytest.mark.parametrize("field", ["fig_desc", "cog_desc", "video", "desc_id", "split"])
def test_half_a_character_is_a_bad_line_that_names_its_field(tmp_path: Path, field: str) -> None:
    rows = jsonl(tmp_path, fig(**{field: "a \ud800 x"}), fig(desc_id=2))
    assert len(queries(rows)) == 1
    [(place, reason)] = reasons(rows).items()
    assert place == "a.jsonl:1"
    assert field in reason
    assert "U+D800" in reason
    fingerprint(reason)


def test_nul_and_marks_of_direction_stay_in_a_query(tmp_path: Path) -> None:
    assert queries(jsonl(tmp_path, fig(fig_desc="a \0 man \u202e x"))) == ["a \0 man \u202e x"]


def test_other_spellings_of_the_splits_are_these_splits(tmp_path: Path) -> None:
    spelled = {
        "Test": "test",
        "testing": "test",
        "validation": "val",
        "dev": "val",
        "TRAIN": "train",
        "train_2": "train_2",
    }
    assert {name: split_of(name) for name in spelled} == spelled
    rows = csv(tmp_path, "video,start,end,query,split\nv1,0,5,a,Test\nv2,0,5,b,validation\nv3,0,5,c,\n")
    assert [row.split for row in rows.values() if isinstance(row, Moment)] == ["test", "val", "test"]
    assert [row.split for row in jsonl(tmp_path, fig(split=" Dev")).values() if isinstance(row, Moment)] == ["val"]


def test_times_of_a_clock_are_seconds(tmp_path: Path) -> None:
    rows = csv(tmp_path, HEAD + "v1,0:00,1:02.5,a\nv2,01:00:03,1:00:04,b\nv3,0:61,0:70,c\nv4,1:2:3:4,9,d\n")
    assert [(row.start_s, row.end_s) for row in rows.values() if isinstance(row, Moment)] == [(0, 62.5), (3603, 3604)]
    assert "start must be a number of seconds, got '0:61'" in reasons(rows)["a.csv:4"]
    assert "got '1:2:3:4'" in reasons(rows)["a.csv:5"]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("indent", [None, 2])
def test_one_array_of_objects_is_read_item_by_item(tmp_path: Path, suffix: str, indent: int | None) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text(json.dumps([fig(), fig(desc_id=2, time=[5]), fig(desc_id=3)], indent=indent))
    rows = read(path)
    assert queries(rows) == ["a man", "a man"]
    assert list(reasons(rows)) == [f"a{suffix}:2"]
    assert "time must be [start, end]" in reasons(rows)[f"a{suffix}:2"]
    path.write_text("[" + json.dumps(fig()))
    with pytest.raises(ValueError, match="is not valid JSON"):
        read(path)


def test_a_line_without_an_id_that_says_the_same_again_counts_once(tmp_path: Path) -> None:
    rows = csv(tmp_path, HEAD + "v1,0,5,a dog\nv1.mp4,0.0,5,a dog\nv1,5,9,a dog\n")
    assert [row.start_s for row in rows.values() if isinstance(row, Moment)] == [0, 5]
    assert "the line says the same as a.csv:2" in reasons(rows)["a.csv:3"]
    with_ids = csv(tmp_path, "id,video,start,end,query\n1,v1,0,5,a dog\n2,v1,0,5,a dog\n")
    assert len(queries(with_ids)) == 2


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not on this machine")
def test_the_shared_cases_have_their_right_values() -> None:
    assert list(reasons(read(CASES / "unquoted_comma.csv"))) == ["unquoted_comma.csv:2"]
    small, big = (reasons(read(CASES / name)) for name in ("unclosed_quote.csv", "unclosed_quote_big.csv"))
    assert list(small) == ["unclosed_quote.csv:2"]
    assert len(big) == 1
    assert len(queries(read(CASES / "unclosed_quote.csv"))) == 4
    assert "iconv" in next(iter(reasons(read(CASES / "cp1252.csv")).values()))
    assert reasons(read(CASES / "bom.jsonl")) == {}
    splits = [row.split for row in read(CASES / "splits.csv").values() if isinstance(row, Moment)]
    assert splits == ["test", "val", "test", "train", "val"]
    assert list(reasons(read(CASES / "lone_surrogate.jsonl"))) == ["lone_surrogate.jsonl:1"]
    for name in ("video_pad_query.csv", "forged_turn_query.csv"):
        assert reasons(read(CASES / name)) == {}


@pytest.mark.parametrize("duration_s", [None, 9.5])
def test_a_moment_that_is_written_in_the_fig_schema_is_read_as_the_same(duration_s: float | None) -> None:
    moment = Moment("12ab-2_fig", "test", "a red ring", "a ring", "films/one", 1.25, 3.0, duration_s, clamped=False)
    assert fig_moment(fig_fields(vars(moment)), "test") == moment


GOOD = json.dumps({"video": "v", "time": [0, 5], "desc_id": 1, "fig_desc": "a dog"})
BEYOND_PYTHON = {
    "nested too deeply": "[" * 100_000,
    "start must be a number of seconds": '{"video": "v", "desc_id": 2, "fig_desc": "q", "time": [1'
    + "0" * 400
    + ", 5]}",
}


@pytest.mark.parametrize("reason", BEYOND_PYTHON)
def test_a_line_that_python_cannot_hold_costs_no_other_line(tmp_path: Path, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{GOOD}\n{BEYOND_PYTHON[reason]}\n")
    rows = read(path)
    assert reason in reasons(rows)["a.jsonl:2"]
    assert queries(rows) == ["a dog"]


def test_an_array_is_read_with_a_mark_and_loses_one_item_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    bad = GOOD.replace("a dog", "caf\xe9").encode("cp1252")
    path.write_bytes(b"\xef\xbb\xbf[" + bad + b", " + GOOD.encode() + b"]")
    assert queries(read(path)) == ["a dog"]
    assert "the byte 0xE9, which is not UTF-8" in reasons(read(path))["a.json:1"]


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("video,start,end,query,Query", "more than one column query"),
        ('video,start,end,"query', "line 1: a double quote"),
    ],
)
def test_a_header_that_can_be_read_in_two_ways_is_refused(tmp_path: Path, header: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        csv(tmp_path, f"{header}\nv,0,5,a dog,a cat\n")


def test_a_blank_text_of_an_optional_field_is_none() -> None:
    blank = fig_moment({**json.loads(GOOD), "split": " ", "cog_desc": "\t"}, "val")
    assert (blank.split, blank.plain_query) == ("val", "a dog")
