"""The whole graph with published models at tiny size: plain Qwen3-VL folders, without soft query modules of their own.

What the configuration asks of the method is what is trained and what is searched with. The recipes are watched while
the graph is built, so that a field which bears a version and is read by nobody is found.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from tests.core import train_run
from tests.core.test_recipe_fields import leaves, unused_of_sft
from tests.core.tiny_models import write_published
from tests.small_world import build
from tests.undrawn import draw_nothing
from tests.videos import write_video
from vsr1_core import recipes
from vsr1_core.configurations import NANO
from vsr1_core.datasets import toy
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.input_form import InputForm
from vsr1_core.media.decode import sample_frames
from vsr1_core.models.protocols import SoftQueryModel
from vsr1_core.models.registry import policy_family_of
from vsr1_core.models.soft_query import soft_query_of
from vsr1_core.recipes import Configuration, MethodOptions, ModelRecipe
from vsr1_core.rows.files import read_json
from vsr1_core.rows.lake import Lake
from vsr1_core.stages.base import View
from vsr1_core.stages.examples import SFT_FILE
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import all_stages
from vsr1_core.stages.loading import policy_of
from vsr1_core.stages.methods import ALL
from vsr1_core.stages.model_folders import options_of
from vsr1_core.stages.opened import OpenedModels

pytestmark = pytest.mark.slow

PROMPT = "Is it shown? End with <REFINE>."
FORM = InputForm(video_wrapper="published", time_marks="frame_count", sft_prompt="Is it shown here? End with <REFINE>.")
OPTIONS = MethodOptions(4, accumulate=False, seed_hidden="pre_norm", system_prompt=PROMPT, seed=7, form=FORM)
TRAINED = ("fine_tuned_checkpoint", "hard_refine_checkpoint", "sft_checkpoint", "grpo_checkpoint")
METHODS = ("zero_shot", "fine_tuned", "sqr_sft", "videosearch_r1", "hard_refine")


def configuration(folder: Path) -> Configuration:
    policy, embedder = write_published(folder / "policy", seed=1), write_published(folder / "embedder", seed=2)
    return dataclasses.replace(
        NANO,
        name="published-nano",
        toy=dataclasses.replace(NANO.toy, num_train=10, num_val=1, num_test=3),
        models=ModelRecipe(str(policy), str(embedder), OPTIONS),
        pool=dataclasses.replace(NANO.pool, num_matched=4, num_not_matched=4),
        evaluation=dataclasses.replace(NANO.evaluation, methods=METHODS, num_resamples=10),
    )


RECIPES = [kind for kind in vars(recipes).values() if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
SPELLING = {"vsr1_core.rows.versions", "vsr1_core.recipes", "dataclasses"}
"""Modules that read a field to spell, compare or copy the recipe, and not to act on it."""


def watch(patch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """Fills up with (recipe, field) as fields are read. A training recipe is named with what it refines with."""
    read: set[tuple[str, str]] = set()

    def watched(names: frozenset[str]) -> Any:
        def get(self: Any, name: str) -> Any:
            if name in names and sys._getframe(1).f_globals["__name__"] not in SPELLING:
                read.add((_named(self), name))
            return object.__getattribute__(self, name)

        return get

    for kind in RECIPES:
        patch.setattr(kind, "__getattribute__", watched(frozenset(f.name for f in dataclasses.fields(kind))))
    return read


def _named(recipe: Any) -> str:
    refine = object.__getattribute__(recipe, "__dict__").get("refine")
    return type(recipe).__name__ + (f" {refine}" if refine else "")


@dataclasses.dataclass
class Built:
    view: View
    read: set[tuple[str, str]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    home = tmp_path_factory.mktemp("home")
    config = configuration(home / "models")
    entry = DatasetEntry("shown", "toy", str(home / "data/videos"), str(home / "data"))
    with pytest.MonkeyPatch.context() as patch:
        read = watch(patch)
        draw_nothing(patch)
        view = View(Lake(home / "lake"), entry, config, all_stages(), home=home)
        build(view)
    return Built(view, read)


def soft_query(model: SoftQueryModel) -> dict[str, Any]:
    recorded = dataclasses.asdict(model.soft_query)
    return {f.name: recorded[f.name] for f in dataclasses.fields(OPTIONS) if f.name != "seed"}


ASKED = {name: value for name, value in dataclasses.asdict(OPTIONS).items() if name != "seed"}


def test_no_row_failed(built: Built) -> None:
    failed = {name: built.view.table(name).manifest()["num_failed"] for name in built.view.stages}
    assert {name: number for name, number in failed.items() if number} == {}


def test_the_base_policy_has_the_options_that_were_asked_for(built: Built) -> None:
    assert options_of(built.view, "base_models", "policy") == dataclasses.asdict(OPTIONS)
    assert options_of(built.view, "base_models", "embedder") is None
    assert soft_query(policy_of(built.view, Execution(), "base_models", "policy").model) == ASKED


def test_its_fresh_modules_are_those_of_the_seed(built: Built) -> None:
    names = built.view.config.models
    opened = policy_of(built.view, Execution(), "base_models", "policy").model.refine_projector[0].weight
    soft = soft_query_of(OPTIONS, 48, 48, names.embedder)
    family = policy_family_of(names.policy)
    made = (family.new_policy(Path(names.policy), soft, "cpu", torch.float32, seed) for seed in (7, 8))
    same, other = (policy.model.refine_projector[0].weight for policy in made)
    assert torch.equal(opened, same)
    assert not torch.equal(opened, other)


@pytest.mark.parametrize("asset", TRAINED)
def test_what_is_trained_has_them_too(built: Built, asset: str) -> None:
    (row,) = built.view.rows(asset).to_dicts()
    recorded = read_json(Path(row["path"]) / "config.json")["soft_query"]
    assert {name: recorded[name] for name in ASKED} == ASKED
    assert row["options"] == dataclasses.asdict(OPTIONS)


@pytest.mark.parametrize("method", ["sqr_sft", "videosearch_r1"])
def test_as_many_tokens_are_decoded_as_were_trained(built: Built, method: str) -> None:
    searcher = OpenedModels(built.view, Execution()).searcher("test", ALL[method])
    assert searcher.settings.decode.num_soft_tokens == 4
    assert not searcher.policy.model.soft_query.accumulate
    rows = built.view.rows(f"predictions.{method}")
    assert {turn["num_latent_tokens"] for turns in rows["turns"] for turn in turns} == {4}
    assert {len(ranks) for ranks in rows["prefix_ranks"]} == {5}
    curves = built.view.rows("refinement_curves")
    points = curves.filter((pl.col("method") == method) & (pl.col("curve") == "soft_tokens"))["x"]
    assert sorted(set(points)) == [0, 1, 2, 3, 4]


def test_the_published_training_file_has_the_prompt_of_the_policy(built: Built) -> None:
    rows = read_json(built.view.files("sft_examples") / SFT_FILE)
    assert {row["messages"][0]["content"] for row in rows} == {FORM.sft_prompt}


@pytest.mark.parametrize("method", ["zero_shot", "sqr_sft"])
def test_the_first_turn_ranks_as_the_first_ranking_did(built: Built, method: str) -> None:
    ranked = dict(built.view.rows("first_ranking", ["query_id", "top_scores"]).iter_rows())
    ranks = dict(built.view.rows("first_ranking", ["query_id", "rank"]).iter_rows())
    rows = built.view.rows(f"predictions.{method}").to_dicts()
    assert rows
    for row in rows:
        assert row["turns"][0]["score"] == ranked[row["query_id"]][0], "bit for bit: it is the stored vector"
        assert row["first_rank"] == ranks[row["query_id"]]


def test_a_policy_with_other_options_of_its_own_is_refused(built: Built, tmp_path: Path) -> None:
    """One of our own checkpoints as the configured base: it carries its options, and nothing may pretend otherwise."""
    row = built.view.rows("sft_checkpoint").to_dicts()[0]
    options = dataclasses.replace(OPTIONS, num_soft_tokens=6)
    models = dataclasses.replace(built.view.config.models, policy=row["path"], options=options)
    config = dataclasses.replace(built.view.config, models=models)
    view = View(Lake(tmp_path / "lake"), built.view.entry, config, built.view.stages, home=tmp_path)
    stage = view.stages["base_models"]
    made = {r["model_id"]: r for r in stage.make(view, stage.plan(view), Execution())}
    assert "options=...): num_soft_tokens=4" in made["policy"]["error"]
    assert "error" not in made["embedder"]


def test_nothing_is_left_to_do(built: Built) -> None:
    fresh = View(built.view.lake, built.view.entry, built.view.config, built.view.stages, home=built.view.home)
    assert {name: stage.due(fresh).due() for name, stage in fresh.stages.items() if stage.due(fresh).due()} == {}


def test_every_field_that_bears_a_version_is_read_by_what_is_made(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What other processes read (frames, rendered clips) and what this build lacks (tiny models) is made here."""
    config, read = built.view.config, watch(monkeypatch)
    sample_frames(write_video(tmp_path / "clip.mp4", [0.0, 1.0, 2.0]), config.frames)
    toy.annotations(config.toy)
    toy.draw(toy.scenes(config.toy)[0], config.toy)
    train_run.base_model()
    read |= built.read
    for recipe, idle in watched_recipes(config):
        unread = {name for name in leaves(recipe) if (_named(recipe), name) not in read}
        assert unread <= idle, _named(recipe)


def watched_recipes(config: Configuration) -> list[tuple[Any, set[str]]]:
    """The recipes that something was made with here, each with the fields that bear no version."""
    plain = [config.frames, config.toy, config.retrieval, config.pool, config.evaluation, config.teacher]
    models = [config.models.options.form, config.models.tiny]
    options = (config.models.options, {name for name in leaves(config.models.options) if name.startswith("form.")})
    trainings = [(recipe, set(unused_of_sft(recipe))) for recipe in (config.sft, config.fine_tuned, config.hard_refine)]
    grpo = {name for name in leaves(config.grpo) if name.startswith("rewards.")}
    return [*((recipe, set[str]()) for recipe in (*plain, *models)), options, *trainings, (config.grpo, grpo)]
