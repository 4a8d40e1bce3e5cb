"""Three tiny stages over a text file, for tests of the row loop, the planner, the assets and the CLI.

`numbers` has a row a line of `numbers.txt` (`name value`), `squares` fails for negative values, `total` reads the
results of `squares`, so it cannot be planned before they are known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vsr1_core.rows.versions import fingerprint
from vsr1_core.stages.base import Row, Stage, View
from vsr1_core.stages.columns import integer
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.reads import every, same


def numbers_path(view: View) -> Path:
    return Path(view.entry.annotations) / "numbers.txt"


def write_numbers(home: Path, dataset: str, values: dict[str, int]) -> None:
    folder = home / "data" / dataset
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "numbers.txt").write_text("".join(f"{name} {value}\n" for name, value in values.items()))


class Numbers(Stage):
    """One row a line of numbers.txt."""

    name, key, group, watches = "numbers", "number_id", "sources", "numbers_on_disk"
    says = "One row per line of numbers.txt."
    key_says = "Name of the number."
    columns = {"value": integer("The number.")}

    def plan(self, view: View) -> dict[str, Row]:
        path = numbers_path(view)
        if not path.exists():
            return {}
        lines = [line.split() for line in path.read_text().splitlines()]
        return {name: Row({"line": fingerprint(value)}, {"value": int(value)}) for name, value in lines}

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        for number_id, row in rows.items():
            yield {"number_id": number_id, **row.known}


class Squares(Stage):
    """One row a number; negative ones fail."""

    name, key, group = "squares", "number_id", "corpus"
    says = "One row per number; negative ones fail."
    key_says = "Name of the number."
    reads = {"numbers": same("numbers")}
    columns = {"square": integer("Its square.")}

    def plan(self, view: View) -> dict[str, Row]:
        return {number_id: Row({"numbers": version}) for number_id, version in view.versions("numbers").items()}

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        values = dict(view.rows("numbers", ["number_id", "value"]).iter_rows())
        for number_id in rows:
            if values[number_id] < 0:
                yield {"number_id": number_id, "error": f"{values[number_id]} is negative; use a positive number"}
            else:
                yield {"number_id": number_id, "square": values[number_id] ** 2}


class Total(Stage):
    """One row a parity: the sum of its squares."""

    name, key, group = "total", "parity", "retrieval"
    says = "One row per parity: the sum of its squares."
    key_says = "`even` or `odd`."
    reads = {"squares": every("squares")}
    columns = {"sum": integer("The sum.")}

    def plan(self, view: View) -> dict[str, Row]:
        squares = view.results("squares", ["square"])["square"]
        return {
            parity: Row({"squares": fingerprint(sorted(squares.filter(squares % 2 == rest).to_list()))})
            for parity, rest in (("even", 0), ("odd", 1))
            if (squares % 2 == rest).any()
        }

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        squares = view.rows("squares", ["square"])["square"]
        for parity in rows:
            yield {"parity": parity, "sum": int(squares.filter(squares % 2 == ("even", "odd").index(parity)).sum())}


def fake_stages() -> dict[str, Stage]:
    return {stage.name: stage for stage in (Numbers(), Squares(), Total())}
