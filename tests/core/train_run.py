"""`accelerate launch -m tests.core.train_run FOLDER`: a few steps of each training; each process saves its weights."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from accelerate import PartialState
from safetensors.torch import save_file
from torch import nn

from tests.core import test_grpo, test_sft
from vsr1_core.configurations import NANO
from vsr1_core.models.protocols import VideoFrames
from vsr1_core.reasoning.tasks import EventNote
from vsr1_core.training.contrastive import train_base

SFT = replace(test_sft.RECIPE, steps=3, num_negatives=4, in_batch_positives=True)
"""Each row names two negatives and draws two."""
BASE = replace(NANO.models.tiny, contrastive_batch=4)
GRPO = replace(test_grpo.RECIPE, steps=2)


def base_model() -> nn.Module:
    """Of six videos with a different number of events each."""
    captions = {f"v{i}": [f"a {c} ring {m}" for m in ("grows", "falls")[: 1 + i % 2]] for i, c in enumerate("abcdef")}
    events = {v: [EventNote(3.0 * k, 3.0 * k + 3, c) for k, c in enumerate(some)] for v, some in captions.items()}
    texts = [c for some in captions.values() for c in some] * 20
    return train_base(BASE, "", events, lambda v: frames(int(v[1:])), texts)[0].model


def frames(seed: int) -> VideoFrames:
    """Six seconds of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    return VideoFrames(pixels, range(6))


def save(model: nn.Module, path: Path) -> None:
    save_file({name: tensor.detach().clone() for name, tensor in model.named_parameters()}, path)


def main(folder: Path) -> None:
    state = PartialState(cpu=True)
    sft = test_sft.make_world()
    sft.train(SFT, folder / "trainer")
    save(sft.policy.model, folder / f"sft-{state.process_index}.safetensors")
    grpo = test_grpo.make_world()
    grpo.train(GRPO, folder / "trainer")
    save(grpo.policy.model, folder / f"grpo-{state.process_index}.safetensors")
    save(base_model(), folder / f"base-{state.process_index}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
