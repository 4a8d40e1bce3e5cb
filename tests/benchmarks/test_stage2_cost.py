"""What a replay of stage 2 with its backward pass costs, against whole rows in the same run: `make bench`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from transformers import Qwen3VLConfig

from tests.benchmarks.measuring import PROCESSOR, in_seconds, interleaved, line
from tests.core.test_grpo import RECIPE, make_world
from tests.core.unshared import gradients, largest_difference, unshared_replay
from vsr1_core.models.qwen3_vl.inputs import VideoPatches, video_patches
from vsr1_core.training.rollout import replay

GROUP = replace(RECIPE, group_size=8, num_turns=2, max_new_tokens=40)


def long_video(seed: int, config: Qwen3VLConfig) -> VideoPatches:
    """12 frames of 192 x 256 pixels: 1,152 tokens at a patch of 8."""
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 192, 256, 3), dtype=np.uint8)
    return video_patches(pixels, [float(second) for second in range(12)], config)


def test_a_group_of_eight_reads_its_long_prompts_once() -> None:
    world = make_world(long_video)
    world.policy.vision_tower.requires_grad_(False)
    world.policy.model.refine_gate.requires_grad_(False)
    world.prompts = world.prompts[:1]
    rollouts = world.sample(GROUP)
    turns = [turn for rollout in rollouts for turn in rollout.episode.turns]
    plain, ours = interleaved(
        3,
        PROCESSOR,
        lambda: gradients(world.policy, unshared_replay(world.policy, rollouts, world.features)),
        lambda: gradients(world.policy, replay(world.policy, rollouts, world.features, 1.0)),
    )
    ratio = plain.median / ours.median
    apart = largest_difference(ours.result, plain.result)
    lengths = {len(turn.prompt.token_ids) for turn in turns}
    print(f"\n{len(turns)} turns after prompts of {min(lengths)} tokens; gradients are {apart:.1e} apart (relative)")
    what = f"stage 2: replay and backward pass, {len(turns)} turns"
    print(line(what, *in_seconds(plain.median, ours.median), ratio, "at least 2", against="whole rows, one by one"))
    assert apart < 1e-5
