"""What the machinery itself costs: `make bench`. Judged are ratios of times in the same run, as machines differ."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from vsr1_core.rows.increments import make_plan, run_plan
from vsr1_core.rows.lake import Lake

NUM_ROWS = 100_000
NEEDED = "dagster, polars"
MAX_IMPORT_RATIO = 2.0
MAX_DISK_RATIO = 1.5


def timed(label: str, work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    print(f"\n{label}: {seconds:.2f} s")
    return seconds


def test_planning_and_committing_100_000_rows(tmp_path: Path) -> None:
    table = Lake(tmp_path).table("things", "toy", "thing_id", {"value": pl.Int64})
    rows = {f"row-{i:06d}": {"stage": "1", "source": str(i)} for i in range(NUM_ROWS)}
    work = lambda ids: ({"thing_id": i, "value": 1} for i in ids)  # noqa: E731
    first = timed("first build of 100,000 rows", lambda: run_plan(table, rows, make_plan(rows, table), work))
    again = timed("plan of 100,000 unchanged rows", lambda: make_plan(rows, table))
    rows["row-000000"] = {"stage": "1", "source": "changed"}
    one = timed("build with one stale row of 100,000", lambda: run_plan(table, rows, make_plan(rows, table), work))
    assert table.manifest()["num_rows"] == NUM_ROWS
    assert again < first / 2
    assert one < first / 2


def test_waiting_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit of 100,000 rows waits for the disk some five times; a frame, a model or a record, twice."""
    rows = {f"row-{i:06d}": {"stage": "1"} for i in range(NUM_ROWS)}
    work = lambda ids: ({"thing_id": i, "value": 1} for i in ids)  # noqa: E731

    def building(name: str) -> Callable[[], object]:
        table = Lake(tmp_path / name / "lake").table("things", "toy", "thing_id", {"value": pl.Int64})
        return lambda: run_plan(table, rows, make_plan(rows, table), work, shard_rows=NUM_ROWS)

    safe = min(timed("a build of 100,000 rows", building(f"safe-{n}")) for n in range(3))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    unsafe = min(timed("one that does not wait for the disk", building(f"unsafe-{n}")) for n in range(3))
    print(f"ratio: {safe / unsafe:.3f}")
    assert safe < MAX_DISK_RATIO * unsafe


def test_importing_the_code_location() -> None:
    """Against what it cannot do without. With torch it would be several times as much."""

    def importing(modules: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", f"import {modules}"], check=True)

    needed = min(timed(f"a fresh interpreter that imports {NEEDED}", importing(NEEDED)) for _ in "123")
    ours = min(timed("one that imports pipelines.definitions", importing("pipelines.definitions")) for _ in "123")
    assert ours < MAX_IMPORT_RATIO * needed
