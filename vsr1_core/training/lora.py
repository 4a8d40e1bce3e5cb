"""Low-rank adapters on the text model of the policy (peft): with them, without them, and their merge. The trainer
decides which other parameters learn.

An adapter replaces the linear layer that it extends, so all code that runs the parts of the policy runs the adapters
too. After the merge, the policy has its original layers with new weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft import LoraConfig, LoraModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ALPHA_PER_RANK = 2
"""alpha / rank, the factor by which the update is scaled."""
_NAME = "default"


@dataclass(frozen=True)
class Adapters:
    """The adapters of one text model."""

    tuner: LoraModel

    def merge(self) -> None:
        """Merge the adapters into the layers, and put the layers back into their places."""
        self.tuner.merge_and_unload()

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """A context in which the layers are those that were there before `attach`: the policy as it was at the start.
        Passes that are differentiated later must not run in it."""
        self.tuner.disable_adapter_layers()
        try:
            yield
        finally:
            self.tuner.enable_adapter_layers()


def attach(text_model: nn.Module, rank: int, seed: int) -> Adapters:
    """Freeze `text_model`, and add an adapter of `rank` to each of its linear layers, in attention and MLP.

    The adapters change nothing at the start; `seed` decides their weights, which are float32 beside layers of any
    precision.
    """
    config = LoraConfig(r=rank, lora_alpha=ALPHA_PER_RANK * rank, target_modules=TARGETS)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tuner = LoraModel(text_model, {_NAME: config}, _NAME)
    for name, parameter in text_model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    return Adapters(tuner)


@torch.no_grad()
def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All weights of `model`, one at a time, by their names without adapters. A layer with an adapter is yielded with
    its adapter merged; the model itself does not change."""
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    for name, parameter in model.named_parameters():
        layer, is_base, own = name.partition(".base_layer.")
        if is_base:
            change = adapted[layer].get_delta_weight(_NAME).to(parameter) if own == "weight" else 0.0
            yield f"{layer}.{own}", parameter + change
        elif "lora_" not in name:
            yield name, parameter.detach()
