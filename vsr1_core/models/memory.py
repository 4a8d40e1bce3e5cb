"""How many bytes a pass of a model takes, computed from its shapes, and how many bytes a device has free.

The forecast (`home.capacity`) and the batches (`models.batches`) use the same formulas. A formula counts how many
tensors of which width are alive at the peak of a pass; `FACTORS` are these counts, checked against measured peaks in
tests/core/test_memory.py. Weights are not counted here, except by `Learning`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vsr1_core.models.sizes import ModelSize

if TYPE_CHECKING:
    import torch
    from torch import nn

GIB = 2**30
FP32, BF16 = 4, 2
"""Bytes of a number."""
GPU_SHARE = 0.6
"""Share of the free memory of a GPU that one pass may take; the allocator needs room for fragments."""
CPU_SHARE = 0.25
"""Share of the free memory of a CPU, which other processes use too."""
CPU_MOST = 1 << 30
"""Bytes that a pass on a CPU may take at most: larger passes are no faster there."""

MAX_LOGITS = 1 << 26
"""Logits that stage 2 holds at once, in float32 256 MiB: with a vocabulary of 151,936, those of 441 tokens."""


@dataclass(frozen=True)
class Factor:
    """A number that a forecast multiplies with, and where it comes from."""

    value: float
    source: str


FACTORS: Mapping[str, Factor] = {
    "patch_copies": Factor(3, "fp32 copies of the input of a patch: of each video, of the batch, of the tower; read"),
    "vision_states": Factor(4, "states of the tower's width per patch in one block; measured on a CPU"),
    "vision_rotary": Factor(4, "fp32 states of the tower's width that rotary positions take per patch; measured"),
    "vision_inner": Factor(2, "states of the MLP's width per patch in one block; measured on a CPU"),
    "text_states": Factor(4, "states of the text model's width per token in one layer; measured on a CPU"),
    "text_inner": Factor(3, "states of the MLP's width per token in one layer; measured on a CPU"),
    "mask_bytes": Factor(2, "bytes per pair of tokens of a row, for the mask; 1 measured on a CPU, a copy on a GPU"),
    "learning_states": Factor(12, "states of the text model's width per token that one layer takes; measured"),
    "learning_inner": Factor(4, "states of the MLP's width per token that one layer takes; measured on a CPU"),
    "adapter_states": Factor(4, "states in fp32 that adapters take per token in one layer; measured on a CPU"),
    "input_states": Factor(3, "copies of the input embeddings: words, with features put in, and their gradient; read"),
    "loss_copies": Factor(4, "fp32 copies of the logits of an answer token, forward and backward; read"),
    "logit_copies": Factor(4, "fp32 copies of the logits of a token when one is chosen; read"),
}
_VALUES = {name: factor.value for name, factor in FACTORS.items()}


@dataclass(frozen=True)
class Passes:
    """What the passes of one model take without gradients. number_bytes: of a weight and of an activation."""

    size: ModelSize
    number_bytes: int = BF16

    def vision(self, num_patches: int) -> float:
        """A pass of the vision tower over so many patches, with its input, without the features that it makes."""
        size, factor = self.size, _VALUES
        states = self.number_bytes * (
            factor["vision_states"] * size.vision_hidden_size + factor["vision_inner"] * size.vision_intermediate_size
        )
        rotary = FP32 * factor["vision_rotary"] * size.vision_hidden_size
        return num_patches * (FP32 * factor["patch_copies"] * size.patch_values + states + rotary)

    def vision_in_parts(self, num_patches: int, most: float) -> float:
        """As `vision`, for one video that is read in parts where its pass would take more than `most`: then its input
        is held beside each part."""
        held = num_patches * FP32 * self.size.patch_values
        return min(self.vision(num_patches), most + held)

    def features(self, num_tokens: float) -> float:
        """The features of so many video tokens: their own, and those of the deepstack."""
        return num_tokens * self.size.num_levels * self.size.hidden_size * self.number_bytes

    def text(self, lengths: Sequence[int]) -> float:
        """A pass of the text model over rows of so many tokens, padded to the longest; no keys and values are kept."""
        size, factor, longest = self.size, _VALUES, max(lengths, default=0)
        states = factor["text_states"] * size.hidden_size + factor["text_inner"] * size.intermediate_size
        per_row = longest * self.number_bytes * states + factor["mask_bytes"] * longest**2
        return len(lengths) * per_row

    def cache(self, lengths: Sequence[float]) -> float:
        """The keys and values of rows of so many tokens, padded to the longest."""
        return len(lengths) * max(lengths, default=0) * self.size.cache_size * self.number_bytes

    def decoding(self, lengths: Sequence[int], num_new: int) -> float:
        """Reading prompts of so many tokens, and writing at most `num_new` after each."""
        logits = len(lengths) * _VALUES["logit_copies"] * FP32 * self.size.vocab_size
        # A cache that grows has the old and the new buffer of one layer for a moment.
        return self.text(lengths) + self.cache([n + num_new for n in lengths]) + logits

    def video_embedding(self, patches: Sequence[int], lengths: Sequence[int], most: float = math.inf) -> float:
        """Embedding videos of so many patches and prompt tokens: the tower, then the text model with the features.
        most: bytes above which the tower reads a single video in parts."""
        num_patches = sum(patches)
        vision = self.vision_in_parts(num_patches, most) if len(patches) == 1 else self.vision(num_patches)
        return max(vision, self.text(lengths)) + self.features(num_patches / self.size.patches_per_token)


@dataclass(frozen=True)
class Learning:
    """What a training of the text model takes, beside the frozen vision tower and embedder.

    lora_rank: rank of the adapters, beside which the text model stays in bf16; 0 trains the text model itself, in fp32.
    is_checkpointed: activations within layers are computed again in the backward pass. on_cpu: the optimiser steps one
    tensor after another there, and all together on a GPU.
    """

    size: ModelSize
    lora_rank: int = 0
    is_checkpointed: bool = True
    on_cpu: bool = False

    @property
    def num_refine(self) -> int:
        """Parameters of the soft query modules: four matrices of the model's width."""
        return 4 * self.size.hidden_size**2

    @property
    def num_learning(self) -> int:
        """How many parameters learn."""
        return self.num_refine + (self.num_adapters if self.lora_rank else self.size.text)

    @property
    def num_adapters(self) -> int:
        """Parameters of the adapters: rank x (inputs + outputs) of each of the seven linear layers of a layer."""
        size = self.size
        attention = 4 * size.hidden_size + 2 * size.attention_size + size.cache_size // max(size.num_layers, 1)
        return self.lora_rank * size.num_layers * (attention + 3 * (size.hidden_size + size.intermediate_size))

    @property
    def weights(self) -> float:
        """The weights: those that learn in fp32."""
        base = BF16 * self.size.text if self.lora_rank else 0
        return base + FP32 * self.num_learning

    @property
    def held(self) -> float:
        """What is held all the time: weights, and the two moments of AdamW."""
        return self.weights + 2 * FP32 * self.num_learning

    @property
    def optimiser_temporaries(self) -> float:
        """What a step of AdamW takes for a moment: a copy of the second moments, of the largest tensor on a CPU."""
        largest = 0 if self.lora_rank else self.size.vocab_size * self.size.hidden_size
        return FP32 * (max(largest, self.size.hidden_size**2) if self.on_cpu else self.num_learning)

    @property
    def bf16_copies(self) -> float:
        """The copies in bf16 of weights in fp32, which stay until the backward pass is over: those that autocast keeps,
        and those of the layers for the steps of the latents. The soft query modules compute in fp32."""
        size = self.size
        layers = size.text - size.vocab_size * size.hidden_size
        return BF16 * (2 * self.num_adapters if self.lora_rank else size.text + layers)

    def activations(self, lengths: Sequence[int], num_answer: int) -> float:
        """The activations of a forward and backward pass over rows of so many tokens, padded to the longest, with
        `num_answer` tokens each whose logits are computed; with the input embeddings and the features in them."""
        size, factor, tokens = self.size, _VALUES, len(lengths) * max(lengths, default=0)
        state = (BF16 if self.lora_rank else FP32) * size.hidden_size
        inner = factor["learning_states"] * size.hidden_size + factor["learning_inner"] * size.intermediate_size
        adapters = FP32 * factor["adapter_states"] * size.hidden_size * bool(self.lora_rank)
        layers = 1 if self.is_checkpointed else size.num_layers
        between = state * (size.num_layers + factor["input_states"] + size.num_levels)
        mask = factor["mask_bytes"] * len(lengths) * max(lengths, default=0) ** 2
        logits = factor["loss_copies"] * FP32 * size.vocab_size * len(lengths) * num_answer
        return tokens * (between + (BF16 * inner + adapters) * layers) + mask + logits

    def continued(self, lengths: Sequence[int], by_answers: bool = False) -> float:
        """What is held beside the activations of rows of so many tokens because latents follow them: keys and values in
        bf16, and once these are gone, the gradients of what each layer read. by_answers: whether answers follow first,
        for which the keys and values are held as the layers made them, keys with the numbers of the states."""
        size, tokens, state = self.size, len(lengths) * max(lengths, default=0), BF16 if self.lora_rank else FP32
        for_answers = (state + BF16) * size.cache_size / 2 if by_answers else 0
        return tokens * max(BF16 * size.cache_size + for_answers, state * size.hidden_size * size.num_layers)

    def peak(self, lengths: Sequence[int], num_answer: int, beside: float = 0) -> float:
        """The most that a step takes. beside: what else is held during the backward pass."""
        # The gradient of the word embeddings is added to the one that the tied head has left.
        words = 0 if self.lora_rank else FP32 * self.size.vocab_size * self.size.hidden_size
        backward = self.bf16_copies + self.activations(lengths, num_answer) + words + beside
        return self.held + FP32 * self.num_learning + max(backward, self.optimiser_temporaries)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a weight of `model`, in whose precision it computes."""
    return next(model.parameters()).element_size()


def free_bytes(device: torch.device) -> float:
    """Bytes that a new pass may take on `device`: free ones, and those that torch's allocator holds without using them.
    On a CPU, a limit of the control group counts too."""
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(_free_here(), _free_in_group())


def _free_here() -> float:
    """What this machine can still give to processes without swapping."""
    facts = Path("/proc/meminfo")
    if facts.exists():
        line = next(line for line in facts.read_text().splitlines() if line.startswith("MemAvailable:"))
        return float(line.split()[1]) * 1024
    import psutil

    return float(psutil.virtual_memory().available)


_GROUP = Path("/sys/fs/cgroup")


def _free_in_group(folder: Path = _GROUP) -> float:
    """What a control group (version 2) still allows; infinite where there is no limit. Cached files do not count as
    used, because the kernel gives them up."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return float("inf")
    return float("inf") if limit == "max" else max(0.0, int(limit) - used + int(facts.get("inactive_file", 0)))
