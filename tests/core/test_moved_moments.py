"""Where annotations or corrections moved, only the moments that are said otherwise are planned; never fewer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.few_stages import START, stages
from tests.short_cuts import assert_short_cuts_are_exact
from tests.small_world import SmallWorld, clip, fill
from vsr1_core.datasets.corrections import Annotated, Correction, appending, corrections_path
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.stages.base import Row, View
from vsr1_core.stages.corpus import Moments
from vsr1_core.stages.corrections import annotated_moments
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import plan_graph
from vsr1_core.stages.unmoved import build_stage

CORPUS = ("annotation_files", "raw_videos", "videos", "moments")


def corpus(view: View) -> View:
    """The same with the first stages alone."""
    return dataclasses.replace(view, stages={name: view.stages[name] for name in CORPUS})


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The ids of the moments of each plan."""
    found, plan = list[set[str]](), Moments.plan

    def noted(stage: Moments, view: View) -> dict[str, Row]:
        rows = plan(stage, view)
        found.append({*rows})
        return rows

    monkeypatch.setattr(Moments, "plan", noted)
    return found


@pytest.fixture
def world(tmp_path: Path) -> SmallWorld:
    made = fill(SmallWorld(tmp_path / "home"), num_train=2, num_test=2).register()
    made.add_query("test", 990, "test_0", duration=None)  # its length is that of the video
    made.add_query("test", 991, "test_0", fig_desc="")
    made.write_annotations("test")
    build(made)
    return made


def view_of(world: SmallWorld) -> View:
    return corpus(world.view(stages(), START))


def build(world: SmallWorld) -> None:
    view = view_of(world)
    for stage in view.stages.values():
        build_stage(view, stage, Execution(workers=1))


def change_a_text(world: SmallWorld) -> None:
    world.rows["test"][0]["fig_desc"] = "something else moves"


def change_a_caption(world: SmallWorld) -> None:
    world.rows["train"][1]["cog_desc"] = "something else"


def change_a_span(world: SmallWorld) -> None:
    world.rows["test"][1]["time"] = [2.0, 99.0]


def change_the_length(world: SmallWorld) -> None:
    world.rows["test"][1]["duration"] = 5.0


def drop_a_query(world: SmallWorld) -> None:
    del world.rows["test"][2]


def drop_a_line_before_a_bad_one(world: SmallWorld) -> None:
    del world.rows["test"][0]


def mend_the_bad_line(world: SmallWorld) -> None:
    world.rows["test"][-1]["fig_desc"] = "mended"


def add_a_query(world: SmallWorld) -> None:
    world.add_query("train", 777, "train_1")


def move_to_the_other_split(world: SmallWorld) -> None:
    world.rows["train"].append(world.rows["test"].pop(1))


def use_an_id_twice(world: SmallWorld) -> None:
    """The line in the file that comes first has it now."""
    world.rows["train"].append({**world.rows["train"][0], "desc_id": world.rows["test"][1]["desc_id"]})


def swap_two_lines(world: SmallWorld) -> None:
    rows = world.rows["test"]
    rows[0], rows[1] = rows[1], rows[0]


def replace_the_video_whose_length_counts(world: SmallWorld) -> None:
    world.put_video("test_0", clip(5))


def correct(world: SmallWorld, index: int, action: Any = "change", **changes: Any) -> Correction:
    view = view_of(world)
    query_id, said = sorted(annotated_moments(view).items())[index]
    before = Annotated.of(said)
    assert before is not None
    after = None if action == "reject" else dataclasses.replace(before, **changes)
    made = Correction.made("someone", action, query_id, before=before, after=after)
    with appending(corrections_path(world.home, world.name)) as corrections:
        corrections.append(made)
    return made


def correct_a_text(world: SmallWorld) -> None:
    correct(world, 0, query="corrected")


def reject_a_query(world: SmallWorld) -> None:
    correct(world, 1, "reject")


def undo(world: SmallWorld, made: Correction) -> None:
    with appending(corrections_path(world.home, world.name)) as corrections:
        corrections.append(Correction.made("someone", "undo", made.query_id, undoes=made.correction_id))


def undo_what_is_built(world: SmallWorld) -> None:
    made = correct(world, 0, query="corrected")
    build(world)
    undo(world, made)


def change_what_was_corrected(world: SmallWorld) -> None:
    """The correction is a conflict then."""
    made = correct(world, 0, query="corrected")
    build(world)
    (row,) = (r for rows in world.rows.values() for r in rows if f"{r['desc_id']}_fig" == made.query_id)
    row["fig_desc"] = "annotated otherwise"


def lose_all_corrections(world: SmallWorld) -> None:
    correct(world, 0, query="corrected")
    correct(world, 1, "reject")
    build(world)
    corrections_path(world.home, world.name).unlink()


def touch_everything(world: SmallWorld) -> None:
    for path in (world.annotation_path("test"), world.video_path("train_0")):
        world.touch(path)


EDITS: tuple[tuple[Callable[[SmallWorld], None], int], ...] = (
    (change_a_text, 1),
    (change_a_caption, 1),
    (change_a_span, 1),
    (change_the_length, 1),
    (drop_a_query, 1),
    (drop_a_line_before_a_bad_one, 1),
    (mend_the_bad_line, 1),
    (add_a_query, 1),
    (move_to_the_other_split, 2),
    (swap_two_lines, 0),
    (change_what_was_corrected, 1),
    (touch_everything, 0),
)
LOOKED_AT_TOGETHER = (correct_a_text, reject_a_query, undo_what_is_built, lose_all_corrections, use_an_id_twice)
"""Corrections, and an id that comes twice."""


@pytest.mark.parametrize(("edit", "num_moved"), EDITS, ids=[edit.__name__ for edit, _ in EDITS])
def test_what_is_said_as_before_is_not_planned_and_the_plan_is_that_of_all(
    world: SmallWorld, planned: list[set[str]], edit: Callable[[SmallWorld], None], num_moved: int
) -> None:
    edit(world)
    for split in world.rows:
        world.write_annotations(split)
    planned.clear()
    plan_graph(view_of(world))
    most = num_moved + 1  # whose length is that of its video is always among them
    assert len(planned) == 1
    assert num_moved <= len(planned[0]) <= most
    assert_short_cuts_are_exact(view_of(world))
    build(world)
    planned.clear()
    plan_graph(view_of(world))
    assert planned == []
    assert_short_cuts_are_exact(view_of(world))


@pytest.mark.parametrize("edit", LOOKED_AT_TOGETHER, ids=lambda edit: edit.__name__)
def test_where_anything_else_moved_all_moments_are_planned(
    world: SmallWorld, planned: list[set[str]], edit: Callable[[SmallWorld], None]
) -> None:
    edit(world)
    change_a_text(world)
    for split in world.rows:
        world.write_annotations(split)
    planned.clear()
    plan_graph(view_of(world))
    assert len(planned[0]) >= sum(map(len, world.rows.values())) - 1
    assert_short_cuts_are_exact(view_of(world))


def test_where_a_video_moved_whose_length_counts_all_moments_are_planned(
    world: SmallWorld, planned: list[set[str]]
) -> None:
    replace_the_video_whose_length_counts(world)
    change_a_text(world)
    world.write_annotations("test")
    plan_graph(view_of(world))
    assert [len(ids) for ids in planned] == [sum(map(len, world.rows.values()))]
    assert_short_cuts_are_exact(view_of(world))


def test_what_a_killed_build_left_is_seen(world: SmallWorld, planned: list[set[str]]) -> None:
    table = view_of(world).table("moments")
    table.add_pending(table.rows()[:1].to_dicts())
    change_a_text(world)
    world.write_annotations("test")
    plan_graph(view_of(world))
    assert [len(ids) for ids in planned] == [sum(map(len, world.rows.values()))]
    assert_short_cuts_are_exact(view_of(world))


def test_a_build_of_annotations_that_say_the_same_keeps_that_they_do(
    world: SmallWorld, planned: list[set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise every later plan would compare them again."""
    world.rows["test"] = [row for row in world.rows["test"] if row["duration"] is not None]
    world.write_annotations("test")
    build(world)
    swap_two_lines(world)
    world.write_annotations("test")
    planned.clear()
    build(world)
    monkeypatch.delattr(Moments, "moved_beside")
    plan_graph(view_of(world))
    assert planned == []


def test_a_file_that_is_another_one_while_it_is_compared_is_compared_again(
    world: SmallWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first content was not compared, so it must not be kept as what the table was made from."""
    world.rows["test"] = [row for row in world.rows["test"] if row["duration"] is not None]
    world.write_annotations("test")
    build(world)
    path, compare = world.annotation_path("test"), Moments.moved_beside
    original = path.read_text()
    change_a_text(world)
    world.write_annotations("test")
    aside = path.with_name("aside")

    def overtaken(stage: Moments, view: View) -> Any:
        path.rename(aside)  # with its time
        path.write_text(original)
        return compare(stage, view)

    view = view_of(world)
    with monkeypatch.context() as patch:
        patch.setattr(Moments, "moved_beside", overtaken)
        assert build_stage(view, view.stages["moments"], Execution(workers=1)).plan.due() == []
    aside.rename(path)
    assert_short_cuts_are_exact(view_of(world))
    build(world)
    assert "something else moves" in view_of(world).table("moments").rows()["query"]


def test_ids_that_may_be_those_of_earlier_texts_are_planned_together(tmp_path: Path, planned: list[set[str]]) -> None:
    """Which query takes the id of one that is gone depends on all of them."""
    world = SmallWorld(tmp_path / "home")
    world.put_video("a", clip(0))
    table = tmp_path / "home/a.csv"
    entry = DatasetEntry("small", "folder", str(world.videos), str(table), "nano")
    lines = ["video,start,end,query,duration", "a,0,2,a dog runs,6", "a,2,4,a cat sits,6"]
    table.write_text("\n".join(lines))

    def view() -> View:
        return corpus(dataclasses.replace(world.view(stages(), START), entry=entry))

    built = view()
    for stage in built.stages.values():
        build_stage(built, stage, Execution(workers=1))
    table.write_text("\n".join([*lines[:2], "a,2,4,a black cat sits,6"]))
    planned.clear()
    plan_graph(view())
    assert [len(ids) for ids in planned] == [2]
    assert_short_cuts_are_exact(view())
