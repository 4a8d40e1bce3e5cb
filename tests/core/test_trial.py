"""The trial of models: all steps run on small ones, with measured and forecast seconds and memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.core.tiny_models import tiny_embedder, tiny_policy
from vsr1_core.configurations import LAPTOP
from vsr1_core.home.capacity import processor
from vsr1_core.home.trial import KEPT_LAYERS, longest_video, try_models
from vsr1_core.models.checkpoints import save_embedder, save_policy
from vsr1_core.recipes import FrameRecipe

CONFIG = dataclasses.replace(LAPTOP, frames=FrameRecipe(max_frames=4, max_pixels=64 * 64))
DEVICE = processor(2, 8e9, has_bf16=False)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trial") / "embedder"
    save_embedder(tiny_embedder(), folder, {})
    return folder


def test_an_embedder_alone_is_loaded_and_embeds(embedder: Path) -> None:
    loaded, embedded = try_models(CONFIG, embedder, None, DEVICE, "cpu", torch.float32)
    assert loaded.found == str(embedder)
    assert embedded.found.startswith("4 frames, 128 patches")
    assert embedded.forecast_s is not None
    assert embedded.seconds > 0


@pytest.mark.slow
def test_a_policy_runs_an_episode_with_latents_and_a_training_step(embedder: Path, tmp_path: Path) -> None:
    save_policy(tiny_policy(), tmp_path / "policy", {})
    steps = {t.name: t for t in try_models(CONFIG, embedder, tmp_path / "policy", DEVICE, "cpu", torch.float32)}
    assert list(steps) == [
        *("load the embedder", "embed a video", "load the policy", "run an episode", "take a LoRA step"),
    ]
    assert "latent tokens" in steps["run an episode"].found
    assert "and 0 latent tokens" not in steps["run an episode"].found
    assert steps["take a LoRA step"].found.startswith(f"{KEPT_LAYERS} layers")
    assert all(step.forecast_bytes is not None for step in steps.values())
    assert all(step.forecast_s for step in list(steps.values())[3:])


def test_the_video_is_the_longest_that_the_configuration_samples() -> None:
    video = longest_video(LAPTOP.frames)
    assert video.pixels.shape == (16, 256, 256, 3)
    assert len(video.timestamps_s) == 16
