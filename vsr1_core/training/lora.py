"""Low-rank adapters on the text model of the policy (peft), and their merge. The trainer decides which other parameters
learn.

An adapter replaces the linear layer that it extends, so all code that runs the parts of the policy runs the adapters
too. After the merge, the policy has its original layers with new weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft import LoraConfig, LoraModel
from torch import nn

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ALPHA_PER_RANK = 2
"""alpha / rank, the factor by which the update is scaled."""


def attach(text_model: nn.Module, rank: int, seed: int) -> Callable[[], None]:
    """Freeze `text_model`, and add an adapter of `rank` to each of its linear layers, in attention and MLP.

    The adapters change nothing at the start; `seed` decides their weights, which are float32 beside layers of any
    precision. Returns a function that merges the adapters
    into the layers and puts the layers back into their places.
    """
    config = LoraConfig(r=rank, lora_alpha=ALPHA_PER_RANK * rank, target_modules=TARGETS)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tuner = LoraModel(text_model, {"default": config}, "default")
    for name, parameter in text_model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()

    def merge() -> None:
        tuner.merge_and_unload()

    return merge
