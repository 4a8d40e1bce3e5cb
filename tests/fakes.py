"""Three tiny stages over a text file, for tests of the row loop, the planner, the assets and the CLI.

`numbers` has a row a line of `numbers.txt` (`name value`), `squares` fails for negative values, `total` reads the
results of `squares`, so it cannot be planned before they are known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from vsr1_core.recipes import STAGE_VERSIONS
from vsr1_core.rows.versions import fingerprint
from vsr1_core.stages.base import Execution, Row, Stage, View

VERSIONS = {"numbers": 1, "squares": 1, "total": 1}


def numbers_path(view: View) -> Path:
    return Path(view.entry.annotations) / "numbers.txt"


def write_numbers(home: Path, dataset: str, values: dict[str, int]) -> None:
    folder = home / "data" / dataset
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "numbers.txt").write_text("".join(f"{name} {value}\n" for name, value in values.items()))


class Numbers(Stage):
    """One row a line of numbers.txt."""

    name, key, group, watches = "numbers", "number_id", "sources", "numbers_on_disk"
    columns = {"value": pl.Int64}

    def wanted(self, view: View) -> dict[str, Row]:
        path = numbers_path(view)
        if not path.exists():
            return {}
        lines = [line.split() for line in path.read_text().splitlines()]
        return {name: Row({"line": fingerprint(value)}, {"value": int(value)}) for name, value in lines}

    def process(self, view: View, ids: Sequence[str], execution: Execution) -> Iterator[dict[str, Any]]:
        wanted = self.wanted(view)
        for number_id in ids:
            yield {"number_id": number_id, **wanted[number_id].known}


class Squares(Stage):
    """One row a number; negative ones fail."""

    name, key, group, upstream = "squares", "number_id", "corpus", ("numbers",)
    columns = {"square": pl.Int64}

    def wanted(self, view: View) -> dict[str, Row]:
        return {number_id: Row({"numbers": version}) for number_id, version in view.versions("numbers").items()}

    def process(self, view: View, ids: Sequence[str], execution: Execution) -> Iterator[dict[str, Any]]:
        values = dict(view.rows("numbers", ["number_id", "value"]).iter_rows())
        for number_id in ids:
            if values[number_id] < 0:
                yield {"number_id": number_id, "error": f"{values[number_id]} is negative; use a positive number"}
            else:
                yield {"number_id": number_id, "square": values[number_id] ** 2}


class Total(Stage):
    """One row a parity: the sum of its squares."""

    name, key, group, upstream = "total", "parity", "retrieval", ("squares",)
    columns = {"sum": pl.Int64}

    def wanted(self, view: View) -> dict[str, Row]:
        squares = view.results("squares", ["square"])["square"]
        return {
            parity: Row({"squares": fingerprint(sorted(squares.filter(squares % 2 == rest).to_list()))})
            for parity, rest in (("even", 0), ("odd", 1))
            if (squares % 2 == rest).any()
        }

    def process(self, view: View, ids: Sequence[str], execution: Execution) -> Iterator[dict[str, Any]]:
        squares = view.rows("squares", ["square"])["square"]
        for parity in ids:
            yield {"parity": parity, "sum": int(squares.filter(squares % 2 == ("even", "odd").index(parity)).sum())}


def fake_stages() -> dict[str, Stage]:
    return {stage.name: stage for stage in (Numbers(), Squares(), Total())}


def register_versions(monkeypatch: Any) -> None:
    """Give the fake stages a version for the length of a test."""
    for name, version in VERSIONS.items():
        monkeypatch.setitem(STAGE_VERSIONS, name, version)
