"""Where rows of a table move, of the stages that read it row by row only these rows are planned; never fewer.

Which rows a stage reads row by row, it says itself: that is checked for each such stage over each change of each
column. That the plans are the same is checked over random edits as well (`test_random_edits`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.core.test_short_cuts import Built, changes
from tests.core.test_unmoved import (
    VALUES,
    CountedSquares,
    World,
    change_the_configuration,
    found,
    import_something,
    leave_a_shard,
    lose_the_manifest,
    raise_the_version,
    restore_an_older_upstream,
    spoil_what_is_kept,
    write_a_file_that_it_reads,
)
from tests.few_stages import stages
from tests.short_cuts import FAILURES, KEPT, fresh
from vsr1_core.rows.increments import CommittedIds, Future, Plan, with_others
from vsr1_core.rows.table import Table
from vsr1_core.stages.base import Row, Stage, View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.unmoved import build_stage

BY_ROW = [(name, asset) for name, stage in stages().items() for asset in stage.planned_by_row]


# ---- what stages say of themselves -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("by_row") / "home")


def every_change(table: Table) -> Iterator[pl.DataFrame]:
    """One change of the table each, also such that two rows say the same afterwards."""
    yield from changes(table)
    frame = table.rows()
    for column in frame.columns[1:]:
        values = frame[column].to_list()
        for row, value in enumerate(values):
            others = [other for other in [*values[row:], *values] if repr(other) != repr(value)]
            if others:
                copied = pl.Series(column, [*values[:row], others[0], *values[row + 1 :]], frame.schema[column])
                yield frame.with_columns(copied)


def future_of(table: Table, after: pl.DataFrame) -> Future:
    """The table as it will be, where a build makes of its rows those of `after`."""
    before = {row[table.key]: row for row in table.rows().to_dicts()}
    rows = {row[table.key]: row for row in after.to_dicts()}
    made = [row for row_id, row in rows.items() if repr(row) != repr(before.get(row_id))]
    return Future(table, table.frame(made), sorted(before.keys() - rows.keys()))


def rows_of(view: View, stage: Stage, future: Future, ids: frozenset[str] | None = None) -> dict[str, Row] | str:
    """The rows that a stage plans, all or those with `ids`, where a table will be another one; else the error."""
    view = fresh(view)
    view.planned[future.table.asset] = future
    try:
        return dict(stage.planned_rows(view, ids))
    except FAILURES as error:
        return repr(error)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "asset"), BY_ROW)
def test_the_row_of_an_id_depends_on_the_rows_of_this_id_alone(built: Built, name: str, asset: str) -> None:
    table, stage = built.view.table(asset), built.view.stages[name]
    as_built, num_moved = stage.planned_rows(fresh(built.view)), 0
    for after in every_change(table):
        future = future_of(table, after)
        ids, every = future.changed_ids, rows_of(built.view, stage, future)
        some = rows_of(built.view, stage, future, ids)
        if isinstance(every, str) or isinstance(some, str):
            assert some == every
            continue
        assert {i: row for i, row in every.items() if i in ids} == some
        assert {i: row for i, row in every.items() if i not in ids} == {
            i: row for i, row in as_built.items() if i not in ids
        }
        num_moved += every != as_built
    assert num_moved > 3


# ---- when it is done ---------------------------------------------------------------------------------------------


class SquaresByRow(CountedSquares):
    """Notes how many rows it planned last."""

    planned_by_row = ("numbers",)
    num_rows = 0

    def plan(self, view: View) -> dict[str, Row]:
        rows = super().plan(view)
        self.num_rows = len(rows)
        return rows


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path / "home")
    made.squares = SquaresByRow()
    made.stages["squares"] = made.squares
    made.build()
    return made


def planned(world: World) -> tuple[int, dict[str, Any]]:
    """(number of rows of `squares` that a plan looked at, what it says)."""
    assert isinstance(world.squares, SquaresByRow)
    world.squares.num_rows = 0
    said = found(world.plans())
    return world.squares.num_rows, said


def planned_in_full(world: World) -> dict[str, Any]:
    away = world.home / "away"
    (world.home / KEPT).rename(away)
    try:
        return planned(world)[1]
    finally:
        away.rename(world.home / KEPT)


EDITS: dict[str, tuple[dict[str, int], int]] = {
    "nothing": (VALUES, 0),
    "one value": ({**VALUES, "a": 5}, 1),
    "of a failed row": ({**VALUES, "c": 4}, 1),
    "a new one": ({**VALUES, "d": 4}, 1),
    "one less": ({"a": 1, "c": -3}, 0),
    "a failed one less": ({"a": 1, "b": 2}, 0),
    "all at once": ({"a": 9, "c": -4, "d": -1}, 3),
}


@pytest.mark.parametrize(("values", "num_rows"), EDITS.values(), ids=EDITS)
def test_only_rows_that_moved_are_planned_and_the_plan_is_that_of_all(
    world: World, values: dict[str, int], num_rows: int
) -> None:
    world.write(values)
    looked_at, said = planned(world)
    assert looked_at == num_rows
    assert said == planned_in_full(world)
    assert said["squares"][0]["unchanged"] == [i for i in ("a", "b") if values.get(i) == VALUES[i]]
    outcome = world.build()["squares"]
    assert outcome.plan.counts() == said["squares"][1]
    assert planned(world) == (0, planned_in_full(world))


def build_numbers_alone(world: World) -> None:
    build_stage(world.view(), world.stages["numbers"], Execution())


def leave_a_shard_upstream(world: World) -> None:
    row = {"number_id": "b", "row_inputs": "{}", "row_version": "x", "status": "ok", "value": 2}
    world.view().table("numbers").add_pending([row])


def build_another_table_upstream(world: World) -> None:
    """Of other rows than the kept plan was made from."""
    table = world.view().table("numbers")
    table.commit(table.rows().with_columns(row_version=table.rows()["row_version"] + "x"), {})


def do_not_say_what_is_read_by_row(world: World) -> None:
    world.squares.planned_by_row = ()  # type: ignore[misc]


def read_the_whole_table(world: World) -> None:
    """As a plan that asks the table for anything else than rows, such as its manifest."""
    plan = SquaresByRow.plan
    world.squares.plan = lambda view: view.table("numbers") and plan(world.squares, view)  # type: ignore[method-assign, assignment, arg-type]
    for _ in range(2):
        (world.home / KEPT / "toy/squares.json").unlink()
        world.build()


OTHER_MOVES = (
    *(change_the_configuration, raise_the_version, leave_a_shard, lose_the_manifest, restore_an_older_upstream),
    *(write_a_file_that_it_reads, import_something, spoil_what_is_kept, leave_a_shard_upstream),
    *(build_another_table_upstream, do_not_say_what_is_read_by_row, read_the_whole_table),
)


@pytest.mark.parametrize("move", OTHER_MOVES, ids=lambda move: move.__name__)
def test_where_anything_else_moved_all_rows_are_planned(world: World, move: Callable[[World], None]) -> None:
    move(world)
    world.write({**VALUES, "a": 5})
    looked_at, said = planned(world)
    assert looked_at == len(VALUES)
    assert said == planned_in_full(world)


def test_where_the_table_is_built_already_all_rows_are_planned(world: World) -> None:
    """What moved is known of a table as it will be, not of one that was committed since."""
    world.write({**VALUES, "a": 5})
    build_numbers_alone(world)
    assert planned(world) == (len(VALUES), planned_in_full(world))


def test_failed_rows_that_are_always_tried_again_are_due(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CountedSquares, "retries_failed", True)
    world.write({**VALUES, "a": 5})
    looked_at, said = planned(world)
    assert looked_at == len(VALUES)
    assert said["squares"][0]["stale"] == ["a", "c"]


def test_a_stage_that_the_build_leaves_out_is_planned_by_row_as_well(world: World) -> None:
    world.write({**VALUES, "a": 5})
    view = world.view()
    from vsr1_core.stages.graph import plan_graph

    plans = {plan.asset: plan.plan for plan in plan_graph(view, kept=["numbers"])}
    assert plans["numbers"].stale == ("a",)  # type: ignore[union-attr]
    assert plans["squares"].due() == []  # type: ignore[union-attr]
    assert "squares" not in view.planned


# ---- the rows that a plan did not look at ------------------------------------------------------------------------


def test_others_are_those_of_the_table_that_are_not_due(world: World) -> None:
    table = world.view().table("squares")
    plan = with_others(table, Plan(new=("d",), stale=("a",), orphaned=("c",), causes={"a": ("x",), "d": ("y",)}))
    assert plan.counts() == {"new": 1, "stale": 1, "orphaned": 1, "failed": 0, "unchanged": 1}
    assert ([*plan.unchanged], [*plan.failed], plan.unchanged[0]) == (["b"], [], "b")
    assert [*CommittedIds(table, "ok", 1, ["a"])] == ["b"]


def test_a_future_table_has_the_rows_that_are_asked_for(world: World) -> None:
    table = world.view().table("numbers")
    future = Future(table, table.frame([{"number_id": i, "status": "ok", "value": 7} for i in ("b", "d")]), ["c"])
    assert future.changed_ids == {"b", "c", "d"}
    assert future.rows(["value"], ["a", "b", "c"])["value"].to_list() == [1, 7]
    assert future.rows(["number_id", "value"], []).rows() == []
    assert future.rows(["number_id"])["number_id"].to_list() == ["a", "b", "d"]
