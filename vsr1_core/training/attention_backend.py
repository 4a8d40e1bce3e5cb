"""Which attention kernel trains fastest where. Execution only: the numbers are the same to rounding."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def training_attention(device: torch.device | str, is_checkpointed: bool = False) -> AbstractContextManager[None]:
    """To be held over the forward pass. On a CPU attention is then plain products: the backward pass of the fused
    kernel took a quarter of a step of the tiny models, and more than all other attention together.

    Not where activations are checkpointed: they are computed again in the backward pass, where this is not held.
    """
    if torch.device(device).type != "cpu" or is_checkpointed:
        return contextlib.nullcontext()
    return sdpa_kernel(SDPBackend.MATH)
