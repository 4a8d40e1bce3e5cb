"""What views over large tables cost, against the same queries over plain scans of the same files.

The tables have one file each, as after a first build: what is compared is what a view pays for finding the newest state
of tables to which a build may be writing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import polars as pl
import pytest

from tests.benchmarks.measuring import PROCESSOR, in_seconds, interleaved, line, scaled
from tests.core.fake_results import MOMENT_COLUMNS, PREDICTION_COLUMNS, STRENGTHS, commit_results
from vsr1_core.home import row_sql, warehouse, warehouse_views
from vsr1_core.rows.lake import Lake

NUM_QUERIES, NUM_MADE, REPEATS = scaled(75_000), 500, 5
NUM_PREDICTIONS = NUM_QUERIES * len(STRENGTHS)
WANTED = "at most 1.5"
QUERIES = {
    "outcomes": "SELECT method, outcome, count(*) FROM outcomes GROUP BY ALL ORDER BY ALL",
    "tokens": "SELECT method, status, count(*), avg(num_text_tokens) FROM predictions GROUP BY ALL ORDER BY ALL",
    "turns": "SELECT method, turn, decision, count(*) FROM turns GROUP BY ALL ORDER BY ALL",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with `NUM_QUERIES` moments and the predictions of four methods about each."""
    home = tmp_path_factory.mktemp("home")
    warehouse.refresh(home)
    commit_results(home / "made", "toy", NUM_MADE, num_failed=2)
    for name, columns in {
        "moments": MOMENT_COLUMNS,
        **{f"predictions.{m}": PREDICTION_COLUMNS for m in STRENGTHS},
    }.items():
        made, table = (Lake(home / root).table(name, "toy", "query_id", columns) for root in ("made", "lake"))
        table.commit(repeated(made.rows(), NUM_QUERIES), {})
    return home


def repeated(rows: pl.DataFrame, count: int) -> pl.DataFrame:
    """The rows again and again, each time with other ids."""
    parts = [
        rows.with_columns(pl.format("{}_{}", pl.lit(f"{number:06d}"), "query_id").alias("query_id"))
        for number in range(-(-count // rows.height))
    ]
    return pl.concat(parts)[:count]


@pytest.fixture(scope="module")
def views(home: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with warehouse.connect(home) as connection:
        yield connection


@pytest.fixture(scope="module")
def plain(home: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """The same views, which read all files of rows that they find."""

    def scanned(asset: str, key: str, method: str = "") -> str:
        pattern = row_sql.files_of(asset)
        said = f", {method.replace('(file', '(filename')} AS method" if method else ""
        return f"(SELECT *{said} FROM {row_sql.scan_of(pattern)})"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warehouse_views, "committed", scanned)
        connection = warehouse._in_memory(home)
    with connection:
        yield connection


@pytest.mark.parametrize("name", QUERIES)
def test_a_view(name: str, views: duckdb.DuckDBPyConnection, plain: duckdb.DuckDBPyConnection) -> None:
    query = QUERIES[name]
    works = (lambda of=of: of.execute(query).fetchall() for of in (plain, views))
    bare, ours = interleaved(REPEATS, PROCESSOR, *works)
    assert ours.result == bare.result
    assert sum(row[-1 if name != "tokens" else 2] for row in ours.result) >= NUM_PREDICTIONS
    what = f"{name} by method, {NUM_PREDICTIONS:,} predictions"
    times = in_seconds(bare.median, ours.median)
    print(line(what, *times, ours.median / bare.median, WANTED, against="plain scans of the files"))
