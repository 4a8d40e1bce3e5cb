"""Properties of the row loop: plan, process, commit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vsr1_core.rows import shards
from vsr1_core.rows.increments import Outcome, make_plan, run_plan
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.table import Table
from vsr1_core.rows.versions import Inputs


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Lake(tmp_path).table("things", "toy", "thing_id", {"value": pl.Int64})


def wanted(**versions: str) -> dict[str, Inputs]:
    return {name: {"source": version} for name, version in versions.items()}


class Worker:
    """Makes `value = len(id)`; fails for ids in `bad`; remembers what it was asked for."""

    def __init__(self, bad: Iterable[str] = (), die_after: int | None = None) -> None:
        self.bad, self.die_after, self.done = set(bad), die_after, []

    def __call__(self, ids: Sequence[str]) -> Iterator[dict[str, Any]]:
        for number, row_id in enumerate(ids):
            if number == self.die_after:
                raise KeyboardInterrupt
            self.done.append(row_id)
            yield {"thing_id": row_id, "error": "bad"} if row_id in self.bad else {"thing_id": row_id, "value": 1}


def build(table: Table, rows: dict[str, Inputs], worker: Worker, **options: Any) -> Outcome:
    return run_plan(table, rows, make_plan(rows, table), worker, **options)


def test_a_second_run_processes_nothing_and_keeps_the_data_version(table: Table) -> None:
    rows = wanted(a="1", b="1")
    first = build(table, rows, Worker())
    worker = Worker()
    second = build(table, rows, worker)
    assert worker.done == []
    assert (first.num_processed, second.num_processed) == (2, 0)
    assert first.manifest["data_version"] == second.manifest["data_version"]


def test_only_new_and_stale_rows_run(table: Table) -> None:
    build(table, wanted(a="1", b="1"), Worker())
    worker = Worker()
    build(table, wanted(a="1", b="2", c="1"), worker)
    assert sorted(worker.done) == ["b", "c"]


def test_a_plan_says_which_input_changed(table: Table) -> None:
    build(table, {"a": {"source": "1", "recipe": "x"}}, Worker())
    plan = make_plan({"a": {"source": "1", "recipe": "y"}}, table)
    assert plan.why() == {"changed: recipe": 1}


def test_orphans_are_dropped_without_work(table: Table) -> None:
    build(table, wanted(a="1", b="1"), Worker())
    worker = Worker()
    outcome = build(table, wanted(a="1"), worker)
    assert worker.done == []
    assert outcome.num_dropped == 1
    assert table.rows()["thing_id"].to_list() == ["a"]


def test_failed_rows_are_kept_and_retried_only_when_asked(table: Table) -> None:
    rows = wanted(a="1", b="1")
    outcome = build(table, rows, Worker(bad={"b"}))
    assert outcome.num_failed == 1
    assert table.rows().filter(pl.col("status") == "failed")["error"].to_list() == ["bad"]
    again = Worker()
    build(table, rows, again)
    assert again.done == []
    retried = build(table, rows, again, retry_failed=True)
    assert again.done == ["b"]
    assert retried.manifest["num_failed"] == 0


def test_a_stopped_run_loses_no_finished_row(table: Table) -> None:
    rows = wanted(**{f"r{i}": "1" for i in range(10)})
    with pytest.raises(KeyboardInterrupt):
        build(table, rows, Worker(die_after=7), shard_rows=3)
    assert not table.exists()
    worker = Worker()
    outcome = build(table, rows, worker, shard_rows=3)
    assert worker.done == ["r7", "r8", "r9"]  # the last of the 7 finished rows filled no shard
    assert outcome.manifest["num_rows"] == 10
    assert not (table.folder / "pending").exists()


@pytest.mark.parametrize(("seconds_per_row", "num_saved"), [(0.0, 6), (2.0, 6), (6.0, 7)])
def test_a_killed_run_loses_a_shard_or_a_few_seconds(
    table: Table, monkeypatch: pytest.MonkeyPatch, seconds_per_row: float, num_saved: int
) -> None:
    """What is saved when row 8 of 10 is begun: whole shards of 3, or what is older than a few seconds."""
    now, saved = [0.0], []
    monkeypatch.setattr(shards, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def slow(ids: Sequence[str]) -> Iterator[dict[str, Any]]:
        for number, row_id in enumerate(ids):
            if number == 7:
                saved.append(table.pending().height)
            now[0] += seconds_per_row
            yield {"thing_id": row_id, "value": 1}

    rows = wanted(**{f"r{i}": "1" for i in range(10)})
    run_plan(table, rows, make_plan(rows, table), slow, shard_rows=3)
    assert saved == [num_saved]


def test_rows_left_by_a_killed_run_count_only_at_their_version(table: Table) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(table, wanted(a="1", b="1"), Worker(die_after=1), shard_rows=1)
    worker = Worker()
    build(table, wanted(a="2", b="1"), worker)
    assert sorted(worker.done) == ["a", "b"]


def test_a_killed_run_leaves_the_committed_table_as_it_was(table: Table) -> None:
    build(table, wanted(a="1"), Worker())
    before = table.rows_path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        build(table, wanted(a="2", b="1"), Worker(die_after=1), shard_rows=1)
    assert table.rows_path.read_bytes() == before


@pytest.mark.parametrize(
    ("produced", "message"),
    [(["a", "a"], "twice"), (["a", "x"], "not asked for"), (["a"], "no row was produced for 1 ids")],
)
def test_a_stage_that_breaks_its_contract_is_stopped(table: Table, produced: list[str], message: str) -> None:
    rows = wanted(a="1", b="1")
    with pytest.raises(RuntimeError, match=message):
        run_plan(table, rows, make_plan(rows, table), lambda _: ({"thing_id": i, "value": 1} for i in produced))


def test_an_empty_dataset_still_commits_an_empty_table(table: Table) -> None:
    outcome = build(table, {}, Worker())
    assert outcome.manifest["num_rows"] == 0
    assert table.exists()


def test_the_data_version_moves_when_a_row_turns_ok(table: Table) -> None:
    rows = wanted(a="1")
    failed = build(table, rows, Worker(bad={"a"})).manifest["data_version"]
    assert build(table, rows, Worker(), retry_failed=True).manifest["data_version"] != failed


ROWS = st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from("123"))


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=ROWS, after=ROWS, bad=st.sets(st.sampled_from("abcdefgh")))
def test_the_plan_counts_are_what_then_runs(
    tmp_path_factory: pytest.TempPathFactory, before: dict[str, str], after: dict[str, str], bad: set[str]
) -> None:
    table = Lake(tmp_path_factory.mktemp("lake")).table("things", "toy", "thing_id", {"value": pl.Int64})
    build(table, wanted(**before), Worker(bad=bad))
    rows = wanted(**after)
    counts = make_plan(rows, table).counts()
    outcome = build(table, rows, Worker(bad=bad))
    assert outcome.num_processed == counts["new"] + counts["stale"]
    assert outcome.num_dropped == counts["orphaned"] == len(set(before) - set(after))
    assert outcome.manifest["num_rows"] == len(after)
    assert make_plan(rows, table).due() == []
    assert outcome.plan.counts() == counts


def test_a_column_declared_later_is_null_in_old_rows_and_redoes_none(table: Table) -> None:
    rows = wanted(a="1", b="1")
    build(table, rows, Worker())
    wider = dataclasses.replace(table, columns={**table.columns, "colour": pl.String})
    assert wider.rows(["thing_id", "colour"]).rows() == [("a", None), ("b", None)]
    worker = Worker()
    outcome = build(wider, wanted(a="1", b="1", c="1"), worker)
    assert worker.done == ["c"]
    assert outcome.manifest["num_ok"] == 3
    build(table, wanted(a="1", b="1", c="1"), worker)
    assert set(pl.read_parquet_schema(table.rows_path)) == set(table.schema), "a column that is gone is dropped"
    assert worker.done == ["c"]


def test_unchanged_rows_take_over_the_columns_that_each_of_them_has(table: Table) -> None:
    rows = wanted(a="1", b="1", c="1")
    wider = dataclasses.replace(table, columns={**table.columns, "colour": pl.String, "size": pl.Int64})
    build(wider, rows, Worker())
    found = {"a": {"size": 3}, "b": {"colour": "red", "size": 4}}
    build(wider, rows, Worker(), unversioned=found)
    assert wider.rows(["thing_id", "value", "colour", "size"]).rows() == [
        ("a", 1, None, 3), ("b", 1, "red", 4), ("c", 1, None, None)
    ]  # fmt: skip
    committed = wider.rows_path
    build(wider, rows, Worker(), unversioned=found)
    assert wider.rows_path == committed, "what is the same is not written again"


def test_a_failed_row_that_is_not_tried_again_takes_over_columns_too(table: Table) -> None:
    """The time of a touched video that cannot be read, say."""
    rows = wanted(a="1", b="1")
    wider = dataclasses.replace(table, columns={**table.columns, "size": pl.Int64})
    build(wider, rows, Worker(bad="b"))
    worker = Worker(bad="b")
    build(wider, rows, worker, unversioned={"a": {"size": 3}, "b": {"size": 4}})
    assert worker.done == []
    assert wider.rows(["thing_id", "status", "size"]).rows() == [("a", "ok", 3), ("b", "failed", 4)]
    build(wider, rows, Worker(), unversioned={"b": {"size": 5}}, retry_failed=True)
    assert wider.rows(["thing_id", "status", "value"]).rows() == [("a", "ok", 1), ("b", "ok", 1)]
