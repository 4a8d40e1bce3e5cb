"""What each layer of a pass reads, and the keys and values that it makes of that: for what continues a prompt.

The cache of transformers concatenates the key of a step to all keys before it, so autograd would keep a copy of the
prompt's keys and values for every step: 5 GB per row of the 2B model for 7 steps after 6,700 tokens. `latent_steps` and
`branches` keep the keys and values of a prompt once. Inference uses `kv_cache`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel, apply_rotary_pos_emb

KeysAndValues = tuple[Tensor, Tensor]
"""Both [R, heads, n, head_dim]."""


@contextlib.contextmanager
def layer_inputs(model: Qwen3VLTextModel) -> Iterator[dict[int, Tensor]]:
    """Yield a dict that a pass over `model` fills: number of a layer -> the hidden states [B, L, H] that it reads."""
    inputs: dict[int, Tensor] = {}

    def keep(layer: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs.setdefault(layer.self_attn.layer_idx, args[0])

    hooks = [layer.register_forward_pre_hook(keep) for layer in model.layers]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


def read_by(layer: torch.nn.Module, hidden: Tensor, rows: Tensor | slice, cos: Tensor, sin: Tensor) -> KeysAndValues:
    """Keys and values of the rows `rows` of what `layer` read, `hidden` [B, L, H]. A checkpoint of this keeps no
    copy of these rows."""
    return keys_and_values(layer.self_attn, layer.input_layernorm(hidden[rows]), cos, sin)


def keys_and_values(attention: torch.nn.Module, normed: Tensor, cos: Tensor, sin: Tensor) -> KeysAndValues:
    """Keys (rotated) and values [R, heads, L, head_dim] of normed [R, L, H]."""
    keys = attention.k_norm(heads_of(attention.k_proj(normed), attention.head_dim)).transpose(1, 2)
    values = heads_of(attention.v_proj(normed), attention.head_dim).transpose(1, 2)
    return apply_rotary_pos_emb(keys, keys, cos, sin)[1], values


def heads_of(projected: Tensor, head_dim: int) -> Tensor:
    """A projection [R, L, heads * head_dim] as [R, L, heads, head_dim]."""
    return projected.unflatten(-1, (-1, head_dim))
