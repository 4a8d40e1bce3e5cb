"""A training leaves the model as it found it: gradient checkpointing, which stays in the model, ends with it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.core import test_grpo, test_sft


def test_stage_1_leaves_no_checkpointing_to_the_next_one(tmp_path: Path) -> None:
    world = test_sft.make_world()
    recipe = replace(test_sft.RECIPE, steps=1)
    world.train(replace(recipe, gradient_checkpointing=True), tmp_path / "a")
    assert not world.policy.model.is_activation_checkpointing
    fresh = test_sft.make_world()
    fresh.policy.model.load_state_dict(world.policy.model.state_dict())
    assert world.train(recipe, tmp_path / "b") == fresh.train(recipe, tmp_path / "c")
    assert test_sft.changed(world.policy.model, test_sft.weights_of(fresh.policy.model)) == set()


def test_a_training_that_stops_leaves_the_model_as_it_found_it(tmp_path: Path) -> None:
    world = test_sft.make_world()
    recipe = replace(test_sft.RECIPE, steps=1, gradient_checkpointing=True)
    features, world.data.features.get = world.data.features.get, fails  # type: ignore[method-assign]
    with pytest.raises(OSError, match="the disk failed"):
        world.train(recipe, tmp_path / "a")
    assert (world.policy.model.is_activation_checkpointing, "forward" in vars(world.policy.model)) == (False, False)
    world.data.features.get = features  # type: ignore[method-assign]
    assert "text_loss" in test_sft.names(world.train(replace(recipe, gradient_checkpointing=False), tmp_path / "b"))


def fails(video_ids: Sequence[str]) -> Any:
    raise OSError("the disk failed")


def test_stage_2_leaves_no_checkpointing_to_the_next_one(tmp_path: Path) -> None:
    world = test_grpo.make_world()
    fresh = copy.deepcopy(world)
    world.train(replace(test_grpo.RECIPE, gradient_checkpointing=True), tmp_path / "a")
    assert not world.policy.model.is_activation_checkpointing
    fresh.policy.model.load_state_dict(world.policy.model.state_dict())
    curves = [one.train(test_grpo.RECIPE, tmp_path / name).curve for one, name in ((world, "b"), (fresh, "c"))]
    first, second = ([p for p in curve if "time" not in p.name] for curve in curves)
    assert first == second != []
