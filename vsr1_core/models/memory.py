"""How many bytes a pass of a model takes, computed from its shapes, and how many bytes a device has free.

The forecast (`home.capacity`) and the batches (`models.batches`) use the same formulas. A formula counts how many
tensors of which width are alive at the peak of a pass; `FACTORS` are these counts, checked against measured peaks in
tests/core/test_memory.py. Weights are not counted here, except by `learning_bytes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from vsr1_core.models.sizes import ModelSize

FP32, BF16 = 4, 2
"""Bytes of a number."""


@dataclass(frozen=True)
class Factor:
    """A number that a forecast multiplies with, and where it comes from."""

    value: float
    source: str


FACTORS: Mapping[str, Factor] = {
    "patch_copies": Factor(3, "fp32 copies of the input of a patch: of each video, of the batch, of the tower; read"),
    "vision_states": Factor(8, "states of the tower's width per patch in one block; measured on a CPU"),
    "vision_rotary": Factor(6, "fp32 states of the tower's width that rotary positions take per patch; measured"),
    "vision_inner": Factor(2, "states of the MLP's width per patch in one block; measured on a CPU"),
    "text_states": Factor(10, "states of the text model's width per token in one layer; measured on a CPU"),
    "text_inner": Factor(3, "states of the MLP's width per token in one layer; measured on a CPU"),
    "mask_bytes": Factor(6, "bytes per pair of tokens of a row, for the mask in its two forms; measured on a CPU"),
    "logit_copies": Factor(4, "fp32 copies of the logits of a token when one is chosen; read"),
}


@dataclass(frozen=True)
class Passes:
    """What the passes of one model take without gradients. number_bytes: of a weight and of an activation."""

    size: ModelSize
    number_bytes: int = BF16

    def vision(self, num_patches: int) -> float:
        """A pass of the vision tower over so many patches, with its input, without the features that it makes."""
        size, factor = self.size, _values()
        states = self.number_bytes * (
            factor["vision_states"] * size.vision_hidden_size + factor["vision_inner"] * size.vision_intermediate_size
        )
        rotary = FP32 * factor["vision_rotary"] * size.vision_hidden_size
        return num_patches * (FP32 * factor["patch_copies"] * size.patch_values + states + rotary)

    def features(self, num_tokens: float) -> float:
        """The features of so many video tokens: their own, and those of the deepstack."""
        return num_tokens * self.size.num_levels * self.size.hidden_size * self.number_bytes

    def text(self, lengths: Sequence[int]) -> float:
        """A pass of the text model over rows of so many tokens, padded to the longest; no keys and values are kept."""
        size, factor, longest = self.size, _values(), max(lengths, default=0)
        states = factor["text_states"] * size.hidden_size + factor["text_inner"] * size.intermediate_size
        per_row = longest * self.number_bytes * states + factor["mask_bytes"] * longest**2
        return len(lengths) * per_row

    def cache(self, lengths: Sequence[float]) -> float:
        """The keys and values of rows of so many tokens, padded to the longest."""
        return len(lengths) * max(lengths, default=0) * self.size.cache_size * self.number_bytes

    def decoding(self, lengths: Sequence[int], num_new: int) -> float:
        """Reading prompts of so many tokens, and writing at most `num_new` after each."""
        logits = len(lengths) * _values()["logit_copies"] * FP32 * self.size.vocab_size
        # A cache that grows has the old and the new buffer of one layer for a moment.
        return self.text(lengths) + self.cache([n + num_new for n in lengths]) + logits

    def video_embedding(self, patches: Sequence[int], lengths: Sequence[int]) -> float:
        """Embedding videos of so many patches and prompt tokens: the tower, then the text model with the features."""
        per_token = self.size.patches_per_token
        return max(self.vision(sum(patches)), self.text(lengths)) + self.features(sum(patches) / per_token)


def _values() -> dict[str, float]:
    return {name: factor.value for name, factor in FACTORS.items()}


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a weight of `model`, in whose precision it computes."""
    return next(model.parameters()).element_size()


def free_bytes(device: torch.device) -> float:
    """Bytes that a new pass may take on `device`: free ones, and those that torch's allocator holds without using them.
    On a CPU, a limit of the control group counts too."""
    if device.type == "cuda":
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
