"""Low-rank adapters on the policy's text model (peft), and their merge. Which parameters else learn is the trainer's.

The adapters stand in place of the linear layers they extend, so everything that runs the policy's parts runs them, too;
merged, the policy is what it was, with other weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft import LoraConfig, LoraModel
from torch import nn

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ALPHA_PER_RANK = 2
"""The update is scaled by alpha / rank, so by this."""


def attach(text_model: nn.Module, rank: int, seed: int) -> Callable[[], None]:
    """Freeze `text_model` and put an adapter of `rank` beside each of its linear layers, attention and MLP.

    The adapters start as no change, with weights that `seed` decides. Returns what merges them into the layers, which
    then stand in their old places.
    """
    config = LoraConfig(r=rank, lora_alpha=ALPHA_PER_RANK * rank, target_modules=TARGETS)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tuner = LoraModel(text_model, {"default": config}, "default")

    def merge() -> None:
        tuner.merge_and_unload()

    return merge
