"""What a commit writes of a table of vectors, as a share of the table, and a table that grows, as a multiple of itself.

Rows have vectors of 2,048 floats, as those of the published embedder; a commit has 256 of them.

    python -m pytest -s tests/benchmarks/test_commit_cost.py
    python -m tests.benchmarks.test_commit_cost 100000 3 HOME   # for docs/results: rows, commits, a new folder
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import polars as pl

from vsr1_core.rows import row_files
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.row_files import PATTERN
from vsr1_core.rows.table import Table

NUM_ROWS = 4096
DIMENSIONS = 2048
ROWS_PER_COMMIT = 256
MAX_SHARE = 1.1
"""Bytes that a commit writes for each byte of its rows."""
MAX_AMPLIFICATION = 3.0


def table_below(home: Path) -> Table:
    return Lake(home / "lake").table("vectors", "toy", "row_id", {"vector": pl.List(pl.Float32)})


def rows_of(table: Table, numbers: np.ndarray, version: str) -> pl.DataFrame:
    vectors = np.random.default_rng(int(numbers[0])).standard_normal((len(numbers), DIMENSIONS), dtype=np.float32)
    vector = pl.Series("vector", vectors, dtype=pl.Array(pl.Float32, DIMENSIONS)).arr.to_list()
    known = pl.DataFrame({table.key: [f"row{n:07d}" for n in numbers], "vector": vector})
    stamps = {"row_version": version, "row_inputs": "{}", "status": "ok", "error": None}
    return known.with_columns(pl.lit(v, dtype=pl.String).alias(n) for n, v in stamps.items()).select(list(table.schema))


def on_disk(table: Table) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in table.folder.glob(PATTERN)}


def committed(table: Table, numbers: np.ndarray, version: str) -> int:
    """Commit rows with these numbers. Returns how many bytes of rows were written."""
    before = on_disk(table)
    table.commit_changes(rows_of(table, numbers, version), [], {})
    return sum(size for name, size in on_disk(table).items() if name not in before)


def test_a_commit_costs_what_changed(tmp_path: Path) -> None:
    table = table_below(tmp_path)
    whole = committed(table, np.arange(NUM_ROWS), "0")
    changed = np.random.default_rng(0).choice(NUM_ROWS, ROWS_PER_COMMIT, replace=False)
    started = time.process_time()
    part = committed(table, changed, "1")
    share = part / whole / (ROWS_PER_COMMIT / NUM_ROWS)
    print(f"\n{part / 2**20:.1f} of {whole / 2**20:.1f} MiB written, {share:.2f} of the rows' share, ", end="")
    print(f"{time.process_time() - started:.2f} s")
    assert share <= MAX_SHARE


def test_a_table_that_grows_writes_at_most_three_times_what_it_keeps(tmp_path: Path) -> None:
    table, written = table_below(tmp_path), 0
    for first in range(0, NUM_ROWS, ROWS_PER_COMMIT):
        written += committed(table, np.arange(first, first + ROWS_PER_COMMIT), "0")
    one = table_below(tmp_path / "one")
    kept = committed(one, np.arange(NUM_ROWS), "0")
    print(f"\n{written / 2**20:.1f} MiB written for {kept / 2**20:.1f} MiB of rows: {written / kept:.2f} times")
    assert written / kept <= MAX_AMPLIFICATION


def main(num_rows: int, num_commits: int, home: Path) -> None:
    table, draw = table_below(home), np.random.default_rng(0)
    print(f"{num_rows:,} rows: {committed(table, np.arange(num_rows), '0') / 1e6:.1f} MB", flush=True)
    deltas_above = row_files.ONE_FILE_BYTES
    for number in range(2 * num_commits):
        is_whole = number < num_commits
        row_files.ONE_FILE_BYTES = sys.maxsize if is_whole else deltas_above
        changed = draw.choice(num_rows, ROWS_PER_COMMIT, replace=False)
        started, clock = time.process_time(), time.perf_counter()
        written = committed(table, changed, str(number + 1))
        spent, took = time.process_time() - started, time.perf_counter() - clock
        form = "whole" if is_whole else "delta"
        print(f"{form}: {written / 1e6:.1f} MB written, {spent:.2f} s of processor time, {took:.2f} s, ", end="")
        print(f"{sum(on_disk(table).values()) / 1e6:.1f} MB on disk", flush=True)
    for columns in (None, [table.key, "status"]):
        started = time.process_time()
        height = table.rows(columns).height
        print(f"{height:,} rows, {columns or 'all columns'}: read in {time.process_time() - started:.2f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
