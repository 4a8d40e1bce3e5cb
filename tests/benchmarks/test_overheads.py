"""What the machinery itself costs: the row loop, waiting for the disk, importing the code location."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.benchmarks.measuring import CHILDREN, PROCESSOR, WALL, in_seconds, interleaved, line, scaled
from vsr1_core.rows.increments import make_plan, run_plan
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.table import Table

NUM_ROWS, REPEATS = scaled(100_000), 3
NEEDED = "dagster, polars"


def make(ids: Iterable[str]) -> Iterator[dict[str, Any]]:
    return ({"thing_id": row_id, "value": 1} for row_id in ids)


def wanted_rows() -> dict[str, dict[str, str]]:
    return {f"row-{number:06d}": {"stage": "1", "source": str(number)} for number in range(NUM_ROWS)}


def table_below(home: Path) -> Table:
    return Lake(home / "lake").table("things", "toy", "thing_id", {"value": pl.Int64})


def test_planning_and_committing(tmp_path: Path) -> None:
    table, rows = table_below(tmp_path), wanted_rows()
    (first,) = interleaved(1, PROCESSOR, lambda: run_plan(table, rows, make_plan(rows, table), make))
    (again,) = interleaved(REPEATS, PROCESSOR, lambda: make_plan(rows, table))
    rows["row-000000"] = {"stage": "1", "source": "changed"}
    (one,) = interleaved(1, PROCESSOR, lambda: run_plan(table, rows, make_plan(rows, table), make))
    assert table.manifest()["num_rows"] == NUM_ROWS
    for what, later in (("a plan of {} unchanged rows", again), ("a build of {} rows with a stale one", one)):
        times, ratio = in_seconds(first.median, later.median), later.median / first.median
        print(line(what.format(f"{NUM_ROWS:,}"), *times, ratio, "at most 0.5", against="their first build"))


def test_waiting_for_the_disk(tmp_path: Path) -> None:
    """A commit of 100,000 rows waits for the disk some five times; a frame, a model or a record, twice. Seconds of the
    wall, as waiting takes no processor."""
    rows, numbers = wanted_rows(), itertools.count()

    def build() -> None:
        table = table_below(tmp_path / str(next(numbers)))
        run_plan(table, rows, make_plan(rows, table), make, shard_rows=NUM_ROWS)

    def without_waiting() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda descriptor: None)
            build()

    unsafe, safe = (min(each.seconds) for each in interleaved(REPEATS, WALL, without_waiting, build))
    what = f"a build of {NUM_ROWS:,} rows that waits for the disk"
    print(line(what, *in_seconds(unsafe, safe), safe / unsafe, "at most 1.5", against="one that does not"))


def test_importing_the_code_location() -> None:
    """Against what it cannot do without. With torch it would be several times as much."""

    def importing(modules: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", f"import {modules}"], check=True)

    works = map(importing, (NEEDED, "pipelines.definitions"))
    needed, ours = (min(each.seconds) for each in interleaved(REPEATS, CHILDREN, *works))
    against = f"python -c 'import {NEEDED}'"
    print(
        line("importing pipelines.definitions", *in_seconds(needed, ours), ours / needed, "at most 2", against=against)
    )
