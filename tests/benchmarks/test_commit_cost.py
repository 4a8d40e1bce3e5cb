"""What a commit costs in a table of vectors, against writing the table whole, and what a table that grows writes.

Rows have vectors of 2,048 floats, as those of the published embedder; a commit has 256 of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.benchmarks.measuring import PROCESSOR, in_seconds, interleaved, line, megabytes, scaled
from vsr1_core.rows import row_files
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.row_files import PATTERN
from vsr1_core.rows.table import Table

NUM_ROWS, NUM_COMMITS = max(4096, scaled(100_000)), 2
NUM_GROWN = 4096
DIMENSIONS = 2048
ROWS_PER_COMMIT = 256
MOST_TIME = "at most 0.1"
MOST_WRITTEN, MOST_GROWN = "at most 1.1", "at most 3"
"""Bytes that are written for each byte of the rows that are committed."""


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
    table, draw = table_below(tmp_path), np.random.default_rng(0)
    size = committed(table, np.arange(NUM_ROWS), "first")

    def changing(one_file_bytes: int) -> Callable[[], int]:
        """A commit of other rows; tables of up to so many bytes are written whole."""

        def work() -> int:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(row_files, "ONE_FILE_BYTES", one_file_bytes)
                numbers = draw.choice(NUM_ROWS, ROWS_PER_COMMIT, replace=False)
                return committed(table, numbers, str(draw.integers(2**60)))

        return work

    whole, part = interleaved(NUM_COMMITS, PROCESSOR, changing(sys.maxsize), changing(row_files.ONE_FILE_BYTES))
    assert whole.result > 0.9 * size
    what, against = f"a commit of {ROWS_PER_COMMIT} of {NUM_ROWS:,} vectors", "writing the table whole"
    times, sizes = in_seconds(whole.median, part.median), map(megabytes, (whole.result, part.result))
    print(line(what, *times, part.median / whole.median, MOST_TIME, against=against))
    print(line(f"{what}, written", *sizes, part.result / whole.result, "at most 0.1", against=against))
    share = size * ROWS_PER_COMMIT / NUM_ROWS
    sizes = map(megabytes, (share, part.result))
    print(line(f"{what}, written", *sizes, part.result / share, MOST_WRITTEN, against="its rows' share of the table"))


def test_a_table_that_grows_writes_at_most_three_times_what_it_keeps(tmp_path: Path) -> None:
    table, written = table_below(tmp_path), 0
    for first in range(0, NUM_GROWN, ROWS_PER_COMMIT):
        written += committed(table, np.arange(first, first + ROWS_PER_COMMIT), "0")
    kept = committed(table_below(tmp_path / "one"), np.arange(NUM_GROWN), "0")
    what, sizes = f"written while a table grows to {NUM_GROWN:,} vectors", map(megabytes, (kept, written))
    print(line(what, *sizes, written / kept, MOST_GROWN, against="the rows that it keeps"))
