"""One row followed back to its sources, on the whole graph with cheap models."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import pytest

from tests.cheap_stages import cheap_stages
from tests.small_world import SmallWorld, build, clip, fill
from vsr1_core.configurations import NANO
from vsr1_core.home.explain import ExplainedRow, explain
from vsr1_core.recipes import ModelRecipe
from vsr1_core.stages.base import View

FROM_OUTSIDE = {
    "stage",
    "recipe",
    "content",
    "path",
    "clash",
    "model",
    "borrowed",
    "imported",
    "adopted",
    "options",
    "dataset",
    "failures",
}
CONFIG = dataclasses.replace(NANO, evaluation=dataclasses.replace(NANO.evaluation, num_resamples=2))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    world = fill(SmallWorld(tmp_path_factory.mktemp("home")), num_train=3, num_test=2)
    build(view(world))
    return world


def view(world: SmallWorld) -> View:
    return world.view(cheap_stages(), CONFIG)


def rows_of(row: ExplainedRow) -> Iterator[ExplainedRow]:
    yield row
    for item in row.inputs:
        for upstream in item.rows:
            yield from rows_of(upstream)


def due_path(row: ExplainedRow) -> list[str]:
    """The assets on the way down changed inputs."""
    below = [upstream for item in row.inputs if item.is_changed for upstream in item.rows]
    return [row.asset, *(due_path(below[0]) if below else [])]


@pytest.mark.slow
def test_every_input_of_every_row_leads_to_rows_that_are_there(world: SmallWorld) -> None:
    tables = view(world)
    for name, stage in tables.stages.items():
        above = _all_upstream(tables, name)
        for row_id, row in stage.planned_rows(tables).items():
            for item in set(row.inputs) - FROM_OUTSIDE:
                read = stage.reads.get(item)
                assert read is not None, f"{name} does not say in `reads` where its input {item!r} comes from"
                found = read.rows(tables, row_id, row)
                assert any(ids for _, ids in found) != (row.inputs[item] in ("none", "missing")), (name, row_id, item)
                for asset, ids in found:
                    key = tables.stages[asset].key
                    assert asset in above, f"{name} reads {asset} and does not list it upstream"
                    assert set(ids) <= set(tables.rows(asset, [key])[key]), (name, row_id, item)


def _all_upstream(tables: View, name: str) -> set[str]:
    direct = tables.stages[name].upstream
    return {*direct, *(asset for parent in direct for asset in _all_upstream(tables, parent))}


def test_an_unchanged_row_is_followed_down_to_the_line_and_the_file(world: SmallWorld) -> None:
    explained = explain(view(world), "predictions.sqr_sft", "910_fig")
    assert (explained.state, explained.causes) == ("unchanged", ())
    found = {(row.asset, row.row_id): row for row in rows_of(explained)}
    assert found["moments", "910_fig"].source == "small_fig_test.jsonl:3"
    assert found["annotation_files", "small_fig_test.jsonl"].source == str(world.annotation_path("test"))
    assert found["raw_videos", "test_0"].source == str(world.video_path("test_0"))
    assert {row.state for row in found.values()} == {"unchanged"}
    shown_twice = [row for row in rows_of(explained) if row.is_shown_above]
    assert shown_twice
    assert not any(row.inputs for row in shown_twice)


def test_a_due_row_names_its_causes_down_to_the_edited_file(world: SmallWorld) -> None:
    path = world.annotation_path("test")
    before = path.read_text()
    try:
        world.find(910)[1]["fig_desc"] = "something else altogether"
        world.write_annotations("test")
        explained = explain(view(world), "predictions.sqr_sft", "910_fig")
        assert (explained.state, explained.causes) == ("stale", ("changed: query", "changed: query_embedding"))
        assert due_path(explained) == ["predictions.sqr_sft", "moments", "annotation_files"]
        assert explained.inputs[0].was != explained.inputs[0].version
        assert json.loads(explained.to_json())["inputs"][0]["name"] == "query"
        unknown = explain(view(world), "verification_probe.sqr_sft", "910_fig/right")
        assert (unknown.state, unknown.waits_for) == ("unknown", "first_ranking")
    finally:
        path.write_text(before)


def test_a_new_recipe_is_named_where_it_is_read_and_as_another_version_behind_it(world: SmallWorld) -> None:
    models = ModelRecipe(tiny=dataclasses.replace(CONFIG.models.tiny, contrastive_lr=0.5))
    tables = world.view(cheap_stages(), dataclasses.replace(CONFIG, models=models))
    assert explain(tables, "query_embeddings", "100_fig").causes == ("changed: embedder",)
    assert explain(tables, "base_models", "embedder").causes == ("changed: recipe",)


def test_new_orphaned_and_failed_rows_say_so(world: SmallWorld) -> None:
    world.put_video("train_9", b"not a video")
    world.add_query("train", 190, "train_9")
    dropped = world.rows["test"].pop()
    for split in ("train", "test"):
        world.write_annotations(split)
    try:
        assert explain(view(world), "moments", "190_fig").state == "new"
        assert explain(view(world), "moments", f"{dropped['desc_id']}_fig").state == "orphaned"
        build(view(world))
        failed = explain(view(world), "videos", "train_9")
        assert failed.state == "failed"
        assert failed.error is not None
        world.put_video("train_9", clip(3))
        assert explain(view(world), "videos", "train_9").causes == ("changed: raw_videos",)
    finally:
        world.rows["train"].pop()
        world.rows["test"].append(dropped)
        world.delete_video("train_9")


@pytest.mark.parametrize(
    ("asset", "row_id", "message"),
    [("nothing", "x", "no asset 'nothing'; there are: annotation_files"), ("moments", "x", "no row 'x'; it has")],
)
def test_what_is_not_there_is_answered_with_what_is(world: SmallWorld, asset: str, row_id: str, message: str) -> None:
    with pytest.raises(LookupError, match=message):
        explain(view(world), asset, row_id)
