"""Chooses the attention kernel that trains fastest on a device. Results change only by rounding."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def training_attention(device: torch.device | str, is_checkpointed: bool = False) -> AbstractContextManager[None]:
    """A context for the forward pass. On a CPU, attention is computed by plain products in it: the backward pass of the
    fused kernel took a quarter of a step of the tiny models, and more than the rest of attention together.

    It does nothing if activations are checkpointed, because these are computed again in the backward pass, outside the
    context.
    """
    if torch.device(device).type != "cpu" or is_checkpointed:
        return contextlib.nullcontext()
    return sdpa_kernel(SDPBackend.MATH)
