"""What the machinery itself costs, in numbers: `make bench`. Printed, not judged; machines differ."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl

from vsr1_core.increments import make_plan, run_plan
from vsr1_core.lake import Lake

NUM_ROWS = 100_000


def timed(label: str, work: Callable[[], object]) -> None:
    started = time.perf_counter()
    work()
    print(f"\n{label}: {time.perf_counter() - started:.2f} s")


def test_planning_and_committing_100_000_rows(tmp_path: Path) -> None:
    table = Lake(tmp_path).table("things", "toy", "thing_id", {"value": pl.Int64})
    rows = {f"row-{i:06d}": {"stage": "1", "source": str(i)} for i in range(NUM_ROWS)}
    work = lambda ids: ({"thing_id": i, "value": 1} for i in ids)  # noqa: E731
    timed("first build of 100,000 rows", lambda: run_plan(table, rows, make_plan(rows, table), work))
    timed("plan of 100,000 unchanged rows", lambda: make_plan(rows, table))
    rows["row-000000"] = {"stage": "1", "source": "changed"}
    timed("build with one stale row of 100,000", lambda: run_plan(table, rows, make_plan(rows, table), work))
    assert table.manifest()["num_rows"] == NUM_ROWS


def test_importing_the_code_location() -> None:
    command = [sys.executable, "-c", "import pipelines.definitions"]
    timed("a fresh interpreter that imports pipelines.definitions", lambda: subprocess.run(command, check=True))
