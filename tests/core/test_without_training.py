"""Datasets that train less than the whole graph: without train queries, with a checkpoint from elsewhere, offline."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import polars as pl
import pytest

from tests.cheap_stages import cheap_stages
from tests.core.tiny_models import write_published
from tests.small_world import SmallWorld, build, fill, plans
from vsr1_core.configurations import NANO
from vsr1_core.home.building import with_upstream
from vsr1_core.models import checkpoints
from vsr1_core.models.weights import digest_weights
from vsr1_core.recipes import Configuration, ModelRecipe
from vsr1_core.rows.files import write_json
from vsr1_core.stages.adopted import Adopted, write_adopted
from vsr1_core.stages.base import View
from vsr1_core.stages.base_models import BaseModels
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.methods import TRAINED

METHODS = ("zero_shot", "sqr_sft", "videosearch_r1")


def configuration(*methods: str, policy: str = "org/policy") -> Configuration:
    evaluation = dataclasses.replace(NANO.evaluation, methods=methods or METHODS, num_resamples=10)
    models = ModelRecipe(policy, "org/embedder", NANO.models.options)
    return dataclasses.replace(NANO, name="published", models=models, evaluation=evaluation)


@pytest.fixture
def world(tmp_path: Path) -> SmallWorld:
    return fill(SmallWorld(tmp_path), num_train=3, num_test=2)


def opened(world: SmallWorld, config: Configuration) -> View:
    return world.view(cheap_stages(), config)


def trained_rows(view: View) -> dict[str, int]:
    return {name: view.table(name).rows().height for name in TRAINED if view.table(name).exists()}


def adopt(view: View, asset: str = "grpo_checkpoint") -> None:
    folder = view.lake.root / "elsewhere"
    write_json(folder / "config.json", {"soft_query": {"num_soft_tokens": 8, "system_prompt": "Is it shown?"}})
    write_adopted(view, asset, Adopted(str(folder), "a1b2", "org/stage2"))


@pytest.mark.slow
def test_a_folder_without_train_queries_is_evaluated_zero_shot(tmp_path: Path) -> None:
    world = fill(SmallWorld(tmp_path), num_train=0, num_test=3)
    view = opened(world, configuration())
    build(view)
    assert trained_rows(view) == dict.fromkeys(TRAINED, 0)
    metrics = view.rows("metrics", ["method", "metric", "value"])
    assert set(metrics["method"]) == {"zero_shot"}
    assert metrics.filter(pl.col("metric") == "vr_r@1")["value"].is_not_null().all()
    (report,) = view.rows("report")["path"]
    assert Path(report).is_file()
    assert {name: plan.due() for name, plan in plans(view).items() if plan is None or plan.due()} == {}
    fill(world, num_train=2, num_test=3)
    build(opened(world, configuration()))
    assert trained_rows(view)["grpo_checkpoint"] == 1, "queries to train on came later"


def test_an_embedder_without_a_policy_ranks_and_trains_nothing(world: SmallWorld) -> None:
    view = opened(world, configuration(policy=""))
    build(view)
    assert set(view.rows("base_models")["model_id"]) == {"embedder"}
    assert trained_rows(view) == dict.fromkeys(TRAINED, 0)
    assert view.rows("predictions.zero_shot").is_empty()
    assert view.rows("first_ranking").height == 10


def test_the_predictions_of_an_adopted_checkpoint_train_nothing(world: SmallWorld) -> None:
    view = opened(world, configuration())
    adopt(view)
    names = with_upstream(view, ["predictions.videosearch_r1"])
    assert {"grpo_checkpoint", "base_models", "video_index"} <= set(names)
    assert {"sft_checkpoint", "sft_examples", "reasoning_traces", "grpo_prompts"}.isdisjoint(names)
    for name in names:
        view.stages[name].build(view, Execution(workers=1))
    assert trained_rows(view) == {"grpo_checkpoint": 1}
    assert view.rows("predictions.videosearch_r1")["checkpoint"].unique().to_list() == ["a1b2"]


def test_where_only_an_adopted_checkpoint_is_reported_nothing_is_trained_and_no_base_policy_fetched(
    world: SmallWorld,
) -> None:
    config = configuration("videosearch_r1")
    view = opened(world, config)
    adopt(view)
    build(view)
    assert trained_rows(view) == {**dict.fromkeys(TRAINED, 0), "grpo_checkpoint": 1}
    assert set(view.rows("base_models")["model_id"]) == {"embedder"}
    assert view.rows("predictions.videosearch_r1").height == 4
    (view.files("grpo_checkpoint") / "adopted.json").unlink()
    build(opened(world, config))
    assert trained_rows(view)["sft_checkpoint"] == 1, "stage 2 starts from it again"
    assert set(view.rows("base_models")["model_id"]) == {"embedder", "policy"}


def test_a_stage_1_that_is_reported_itself_is_trained_beside_an_adopted_stage_2(world: SmallWorld) -> None:
    view = opened(world, configuration("sqr_sft", "videosearch_r1"))
    adopt(view)
    build(view)
    assert trained_rows(view)["sft_checkpoint"] == 1


def test_a_model_that_could_not_be_fetched_is_tried_again_by_the_next_build(
    world: SmallWorld, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there: list[str] = ["org/embedder"]

    def fetch(name: str) -> Path:
        if name not in there:
            raise OSError(f"{name} could not be downloaded")
        return write_published(tmp_path / name)

    monkeypatch.setattr(checkpoints, "fetch_model", fetch)
    stage, view = BaseModels(), opened(world, configuration())

    def rows() -> dict[str, str]:
        outcome = stage.build(view, Execution(workers=1))
        found = view.table("base_models").rows(["model_id", "status"]).iter_rows()
        return {**dict(found), "made": str(outcome.num_processed)}

    build_upstream(view)
    assert rows() == {"embedder": "ok", "policy": "failed", "made": "2"}
    assert stage.due(view).causes == {"policy": ("failed before",)}
    assert rows() == {"embedder": "ok", "policy": "failed", "made": "1"}
    there.append("org/policy")
    assert rows() == {"embedder": "ok", "policy": "ok", "made": "1"}
    assert view.rows("base_models")["digest"].to_list() == [
        digest_weights(tmp_path / name) for name in ("org/embedder", "org/policy")
    ]
    assert rows()["made"] == "0"


def build_upstream(view: View) -> None:
    for name in ("annotation_files", "raw_videos", "videos", "moments", "frame_tensors"):
        view.stages[name].build(view, Execution(workers=1))
