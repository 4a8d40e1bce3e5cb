"""Stage 2 with other rewards and other prompts than usual, and what it refuses."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest

from tests.core.test_grpo import RECIPE, World, make_world
from vsr1_core.reward_weights import RewardWeights
from vsr1_core.training.rewards import REWARDS, Reward


@pytest.fixture
def world() -> World:
    return make_world()


@pytest.mark.slow
def test_an_added_reward_is_weighed_and_logged_and_a_weight_without_a_reward_stops_before_sampling(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, steps=1, rewards=RewardWeights(brevity=100.0))
    with pytest.raises(ValueError, match="the reward 'brevity', which does not exist"):
        copy.deepcopy(world).train(recipe, tmp_path / "a")
    monkeypatch.setitem(REWARDS, "brevity", Reward("brevity", "one.", 0.0, 1.0, lambda episode: 1.0))
    logged = {p.name: p.value for p in world.train(recipe, tmp_path / "b").curve}
    assert (logged["rewards/brevity/mean"], logged["rewards/brevity/std"]) == (1.0, 0.0)
    assert logged["rewards/total/mean"] > 90


def test_a_corpus_without_negatives_still_trains(world: World, tmp_path: Path) -> None:
    world.vectors = {video_id: world.vectors[video_id] for video_id in ("v0",)}
    world.prompts = [replace(world.prompts[0], negative_ids=())]
    losses = [p.value for p in world.train(RECIPE, tmp_path).curve if p.name == "retrieval_loss"]
    assert losses == [0.0]


def test_no_prompts_and_lost_videos_are_refused_with_what_to_do(world: World, tmp_path: Path) -> None:
    lost = replace(world.prompts[0], gt_video_id="gone")
    with pytest.raises(ValueError, match=r"1 right videos have no vector, e\.g\. gone"):
        replace(world, prompts=[lost]).train(RECIPE, tmp_path)
    with pytest.raises(ValueError, match="grpo_prompts is empty"):
        replace(world, prompts=[]).train(RECIPE, tmp_path)
