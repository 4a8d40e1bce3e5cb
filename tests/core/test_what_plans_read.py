"""A stage is planned again where what its plan reads of tables moved: these columns of these splits, and not the table.

The graph is the real one with cheap models (`tests.few_stages`). That the plans are the same with and without this
short cut is checked over random edits (`test_random_edits`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.few_stages import START, stages
from tests.small_world import SmallWorld, clip, fill
from vsr1_core.rows import row_files
from vsr1_core.rows.increments import Future
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.table import Table
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import plan_graph
from vsr1_core.stages.readings import Reading, content_digest
from vsr1_core.stages.unmoved import build_stage

FILES = {"annotation_files"}
"""Stages that look at files, each time."""
TRAINS = {
    *("base_models", "hard_negatives", "top1_pool", "reasoning_traces", "sft_examples", "sft_checkpoint"),
    *("grpo_prompts", "grpo_checkpoint"),
}
"""Stages that read train rows only."""


@pytest.fixture
def world(tmp_path: Path) -> SmallWorld:
    made = fill(SmallWorld(tmp_path), num_train=2, num_test=2)
    build(made)
    return made


def view_of(world: SmallWorld) -> View:
    return world.view(stages(), START)


def build(world: SmallWorld) -> None:
    view = view_of(world)
    for stage in view.stages.values():
        build_stage(view, stage, Execution(workers=1))


def looked_at(world: SmallWorld) -> set[str]:
    """The stages that a plan has to look at the rows of."""
    view = view_of(world)
    plan_graph(view)
    return set(view.read_by)


def change_a_test_text(world: SmallWorld) -> None:
    world.rows["test"][0]["fig_desc"] = "something else moves"
    world.write_annotations("test")


def change_a_test_span(world: SmallWorld) -> None:
    world.rows["test"][0]["time"] = [0.5, 2.0]
    world.write_annotations("test")


def add_a_test_video(world: SmallWorld) -> None:
    world.put_video("more", clip(3))
    world.add_query("test", 999, "more")
    world.write_annotations("test")


def touch_a_video(world: SmallWorld) -> None:
    world.clock = 10_000
    world.touch(world.video_path("train_0"))


EDITS: tuple[tuple[Callable[[SmallWorld], None], set[str]], ...] = (
    (change_a_test_text, TRAINS | {"frame_tensors", "video_embeddings", "video_index"}),
    (change_a_test_span, TRAINS | {"frame_tensors", "query_embeddings", "first_ranking"}),
    (add_a_test_video, TRAINS),
    (touch_a_video, TRAINS | {"video_embeddings", "query_embeddings", "predictions.sqr_sft"}),
)


@pytest.mark.parametrize(("edit", "unmoved"), EDITS, ids=[edit.__name__ for edit, _ in EDITS])
def test_what_reads_nothing_that_moved_is_not_looked_at(
    world: SmallWorld, edit: Callable[[SmallWorld], None], unmoved: set[str]
) -> None:
    assert looked_at(world) == FILES
    edit(world)
    assert not unmoved & looked_at(world)
    build(world)
    assert looked_at(world) == FILES


def table_of(folder: Path) -> Table:
    columns = {"value": pl.Int64, "vector": pl.List(pl.Float32)}
    table = Lake(folder / "lake").table("things", "toy", "thing_id", columns)
    rows = [{"thing_id": i, "status": "ok", "row_inputs": "{}", "value": n} for n, i in enumerate("acde")]
    table.commit(table.frame(rows), {})
    return table


def test_a_future_table_has_what_is_made_and_not_what_is_dropped(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    made = table.frame([{"thing_id": "b", "status": "ok"}, {"thing_id": "c", "status": "ok", "value": 7}])
    moved = pl.DataFrame({"thing_id": ["a"], "value": [9]})
    future = Future(table, made, ["d"], moved)
    assert future.rows(["value"])["value"].to_list() == [9, None, 7, 3]
    assert future.rows(["thing_id", "row_inputs"]).rows() == [("a", "{}"), ("b", None), ("c", None), ("e", "{}")]
    assert future.rows().columns == table.rows().columns


def test_a_future_table_reads_only_the_columns_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, asked = table_of(tmp_path), list[list[str]]()
    read = Table.rows
    monkeypatch.setattr(Table, "rows", lambda self, names, *rest: asked.append(list(names)) or read(self, names, *rest))
    Future(table, table.frame([])).rows(["thing_id", "value"])
    assert asked == [["thing_id", "value"]]


@pytest.mark.parametrize("has_shard", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4096])
def test_a_future_table_is_the_same_in_one_piece_in_batches_and_by_what_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, has_shard: bool
) -> None:
    monkeypatch.setattr(row_files, "BLOCK_ROWS", size)
    monkeypatch.setattr(row_files, "SMALL_FILE", 0)
    table = table_of(tmp_path)
    if has_shard:
        table.add_pending([{"thing_id": "bb", "status": "ok", "row_inputs": "{}", "value": 8}])
    named = [("0", 5), ("b", None), ("c", 7), ("z", 1)]
    made = table.frame([{"thing_id": i, "status": "ok", "value": value} for i, value in reversed(named)])
    future = Future(table, made, ["d"], pl.DataFrame({"thing_id": ["a"], "value": [9]}))
    expected = [("0", 5), ("a", 9), ("b", None), *([("bb", 8)] if has_shard else []), ("c", 7), ("e", 3), ("z", 1)]
    names = ["thing_id", "value"]
    assert future.rows(names).rows() == expected
    assert pl.concat(future.batches(names)).rows() == expected
    assert pl.concat(future.batches(["value"]))["value"].to_list() == [value for _, value in expected]
    for least in (3, 7, 9):  # of a column in which a row moved, too
        fits = [row for row in expected if row[1] is not None and row[1] >= least]
        assert future.rows(names, where=pl.col("value") >= least).rows() == fits
        assert future.rows(["value"], where=pl.col("value") >= least)["value"].to_list() == [row[1] for row in fits]
    assert future.rows(["thing_id"], where=pl.col("row_inputs").is_null())["thing_id"].to_list() == ["0", "b", "c", "z"]


def test_a_future_table_never_mixes_the_rows_of_two_commits(tmp_path: Path) -> None:
    """As where another process commits while a plan is made."""
    table = table_of(tmp_path)
    future = Future(table, table.frame([{"thing_id": "b", "status": "ok", "value": 5}]))
    assert future.rows(["thing_id"])["thing_id"].to_list() == ["a", "b", "c", "d", "e"]
    table.commit(table.rows()[1:], {})
    assert future.rows(["thing_id", "value"]).rows() == [("b", 5), ("c", 1), ("d", 2), ("e", 3)]


def test_columns_that_nothing_moves_in_are_read_as_they_are(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    future = Future(table, table.frame([]), [], pl.DataFrame({"thing_id": ["a"], "value": [9]}))
    assert future.rows(["row_inputs"])["row_inputs"].to_list() == ["{}"] * 4


def test_equal_rows_have_one_digest_however_they_came_about() -> None:
    rows = pl.DataFrame({"i": ["a", "b", "c"], "n": [1, 2, None], "t": [["x"], ["y", None], []]})
    joined = pl.concat([rows[1:], rows[:1]]).sort("i")
    assert content_digest([joined]) == content_digest([rows])
    assert content_digest([rows[:0], rows[:2], rows[2:]]) == content_digest([rows])
    assert content_digest([rows[:2]]) == content_digest(
        [pl.DataFrame({"i": ["a", "b"], "n": [1, 2], "t": [["x"], ["y", None]]})]
    )
    for other in (rows[:2], rows.reverse(), rows.rename({"n": "m"}), rows.with_columns(n=pl.lit(1))):
        assert content_digest([other]) != content_digest([rows])


IDS = ("a", "b", "c", "d")
ROWS = st.fixed_dictionaries(
    {
        "status": st.sampled_from(["ok", "failed"]),
        "split": st.sampled_from(["train", "test"]),
        "value": st.integers(0, 1),
        "row_inputs": st.just("{}"),
    }
)
DUE = ROWS.map(lambda row: {**row, "status": "ok", "row_inputs": None}) | ROWS
READINGS = st.builds(
    Reading.of,
    st.just("things"),
    st.sampled_from(["ok", "all", "results"]),
    st.sampled_from([None, ("thing_id", "value"), ("value", "thing_id", "split"), ("thing_id",)]),
    st.sampled_from([None, ("train",), ("train", "test")]),
)


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(
    there=st.dictionaries(st.sampled_from(IDS), ROWS, min_size=1),
    made=st.dictionaries(st.sampled_from(IDS), DUE),
    dropped=st.sets(st.sampled_from(IDS)),
    moved=st.dictionaries(st.sampled_from(IDS), st.integers(0, 1)),
    reading=READINGS,
)
def test_a_reading_is_spared_exactly_where_it_says_the_same_afterwards(
    tmp_path_factory: pytest.TempPathFactory,
    there: dict[str, Any],
    made: dict[str, Any],
    dropped: set[str],
    moved: dict[str, int],
    reading: Reading,
) -> None:
    columns = {"split": pl.String, "value": pl.Int64}
    table = Lake(tmp_path_factory.mktemp("lake")).table("things", "toy", "thing_id", columns)
    table.commit(table.frame([{"thing_id": i, **row} for i, row in there.items()]), {})
    gone = [i for i in dropped if i in there and i not in made]
    new = {i: value for i, value in moved.items() if i in there and i not in made and i not in gone}
    frame = pl.DataFrame({"thing_id": [*new], "value": [*new.values()]}) if new else None
    future = Future(table, table.frame([{"thing_id": i, **row} for i, row in made.items()]), gone, frame)
    is_known = reading.kind != "results" or reading.is_made(future, table.schema)
    was, will_be = (reading.of_rows(source, table.schema).rows() for source in (table, future))
    assert reading.spares(future) == (is_known and was == will_be)
