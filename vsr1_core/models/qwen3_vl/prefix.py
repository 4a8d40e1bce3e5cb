"""Single steps after a prompt, which all share the keys and values of the prompt. Differentiable, for the latents in
training.

The cache of transformers concatenates the key of a step to all keys before it, so autograd would keep a copy of the
prompt's keys and values for every step: 5 GB per row of the 2B model for 7 steps after 6,700 tokens. Here the keys and
values of the prompt are kept once, and a step attends to them and to those of the steps as two parts of one softmax.
Inference uses `kv_cache`, and packed passes `packed_steps`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel, apply_rotary_pos_emb

from vsr1_core.models.qwen3_vl.batching import Batch


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


@dataclass
class _LayerState:
    """Keys and values of one layer: [R, heads, L, head_dim] of the prompts, [R, heads, 1, head_dim] of each step."""

    keys: Tensor
    values: Tensor
    step_keys: list[Tensor] = field(default_factory=list)
    step_values: list[Tensor] = field(default_factory=list)


class SharedPrefix:
    """Rows that `model` has read, which are continued by one input per row at a time.

    next_positions: [R], of the next input. is_padding: bool [R, L], True at columns that are no token of a row.
    """

    def __init__(
        self, model: Qwen3VLTextModel, layers: Sequence[_LayerState], next_positions: Tensor, is_padding: Tensor
    ) -> None:
        self.model, self.layers, self.next_positions = model, layers, next_positions
        self.bias = torch.zeros_like(is_padding, dtype=torch.float32).masked_fill(is_padding, -torch.inf)[:, None, None]

    def step(self, embeds: Tensor) -> Tensor:
        """Feed one input embedding per row, embeds [R, H]. Returns the hidden states [R, H] after the final norm."""
        hidden = embeds[:, None]
        cosines = self.model.rotary_emb(hidden, self.next_positions[None, :, None].expand(3, -1, -1))
        self.next_positions = self.next_positions + 1
        for layer, state in zip(self.model.layers, self.layers, strict=True):
            hidden = hidden + self._attend(layer, state, hidden, *cosines)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return self.model.norm(hidden)[:, 0]

    def _attend(self, layer: torch.nn.Module, state: _LayerState, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        attention, normed = layer.self_attn, layer.input_layernorm(hidden)
        key, value = keys_and_values(attention, normed, cos, sin)
        state.step_keys.append(key)
        state.step_values.append(value)
        query = attention.q_norm(heads_of(attention.q_proj(normed), attention.head_dim)).transpose(1, 2)
        query = apply_rotary_pos_emb(query, key, cos, sin)[0]
        # Group the heads that share a key: [R, query heads, 1, d] -> [R, key heads, heads per key, d].
        grouped = query.reshape(len(query), key.shape[1], -1, attention.head_dim)
        own_keys, own_values = torch.cat(state.step_keys, dim=2), torch.cat(state.step_values, dim=2)
        to_prompt = (grouped @ state.keys.mT).float() * attention.scaling + self.bias
        to_own = (grouped @ own_keys.mT).float() * attention.scaling
        weights = torch.cat([to_prompt, to_own], dim=-1).softmax(-1).to(value)
        length = state.keys.shape[2]
        mixed = weights[..., :length] @ state.values + weights[..., length:] @ own_values
        return attention.o_proj(mixed.reshape(len(query), 1, -1))


def after_batch(model: Qwen3VLTextModel, inputs: dict[int, Tensor], batch: Batch, rows: Sequence[int]) -> SharedPrefix:
    """The prefix of the rows `rows` of a batch.

    The keys and values of the prompts are computed again from what each layer read (`layer_inputs`), with two products
    per layer and for these rows only. So the large pass may be checkpointed, and rows that do not continue keep none.
    """
    at = torch.tensor(list(rows), device=batch.mask.device)
    cosines = model.rotary_emb(inputs[0], batch.positions[:, at])
    layers = [
        _LayerState(*checkpoint(read_by, layer, inputs[i][at], *cosines, use_reentrant=False))
        for i, layer in enumerate(model.layers)
    ]
    next_positions = batch.positions[:, at].amax(dim=(0, 2)) + 1  # padding has position 0
    return SharedPrefix(model, layers, next_positions, batch.mask[at] == 0)


def read_by(layer: torch.nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of what `layer` read, `hidden` [R, L, H]."""
    keys, values = keys_and_values(layer.self_attn, layer.input_layernorm(hidden), cos, sin)
    # If they were not contiguous, the product of every step would copy them.
    return keys.contiguous(), values.contiguous()


def keys_and_values(attention: torch.nn.Module, normed: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Keys (rotated) and values [R, heads, L, head_dim] of normed [R, L, H]."""
    keys = attention.k_norm(heads_of(attention.k_proj(normed), attention.head_dim)).transpose(1, 2)
    values = heads_of(attention.v_proj(normed), attention.head_dim).transpose(1, 2)
    return apply_rotary_pos_emb(keys, keys, cos, sin)[1], values


def heads_of(projected: Tensor, head_dim: int) -> Tensor:
    """A projection [R, L, heads * head_dim] as [R, L, heads, head_dim]."""
    return projected.unflatten(-1, (-1, head_dim))
