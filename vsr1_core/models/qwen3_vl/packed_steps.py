"""Single steps after rows of a packed pass: `prefix.SharedPrefix` with few operations, for the latents in training.

The gradients of a prompt's keys and values are sums over all steps. Each step notes its factors in its backward pass,
and one product makes the sum at the end, in place of a gradient as large as all keys for every step.
R: rows that are continued; L: tokens of the longest prompt; h: heads; d: size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from vsr1_core.models.qwen3_vl.fused import rms_norm
from vsr1_core.models.qwen3_vl.packed import JointLayer, Packed, Read, rotations_at


@dataclass
class _Memory:
    """The keys and values [R, h, L, d] of the prompts in one layer, as constants; those of the steps so far, each
    [R, h, 1, d]; and what the backward passes of the steps noted.

    bias: [R, 1, 1, L], -inf at padding.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor
    step_keys: list[Tensor] = field(default_factory=list)
    step_values: list[Tensor] = field(default_factory=list)
    noted: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)


class _Remember(torch.autograd.Function):
    """A scalar that stands for keys and values: steps that depend on it add to the gradients of both."""

    @staticmethod
    def forward(ctx: Any, keys: Tensor, values: Tensor, memory: _Memory) -> Tensor:
        ctx.memory = memory
        return keys.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, of_scores, weights, of_mixed = (
            torch.cat(parts, dim=2) for parts in zip(*ctx.memory.noted, strict=True)
        )
        ctx.memory.noted.clear()
        return of_scores.mT @ queries, weights.mT @ of_mixed, None


class _Attend(torch.autograd.Function):
    """Attention of queries [R, h, 1, d] to the prompts of `memory` and to keys and values [R, h, s, d] of steps."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, _stand_in: Tensor, memory: _Memory, scale: float
    ) -> Tensor:
        length = memory.keys.shape[2]
        scores = torch.cat([queries @ memory.keys.mT + memory.bias, queries @ keys.mT], dim=-1).mul_(scale)
        weights = scores.softmax(-1)
        ctx.save_for_backward(queries, keys, values, weights)
        ctx.memory, ctx.scale = memory, scale
        return weights[..., :length] @ memory.values + weights[..., length:] @ values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, weights = ctx.saved_tensors
        memory, length = ctx.memory, ctx.memory.keys.shape[2]
        of_weights = torch.cat([grad @ memory.values.mT, grad @ values.mT], dim=-1)
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype).mul_(ctx.scale)
        of_prompt, of_steps = of_scores[..., :length], of_scores[..., length:]
        memory.noted.append((queries, of_prompt, weights[..., :length], grad))
        of_queries = of_prompt @ memory.keys + of_steps @ keys
        return of_queries, of_steps.mT @ queries, weights[..., length:].mT @ grad, grad.new_zeros(()), None, None


class PackedPrefix:
    """The rows `rows` of a packed pass, which are continued by one input per row at a time."""

    def __init__(self, model: Qwen3VLTextModel, packed: Packed, read: Read, rows: Sequence[int]) -> None:
        self.model, self.layers = model, read.layers
        lengths = torch.tensor([packed.lengths[row] for row in rows])
        parts = packed.positions.T.split(list(packed.lengths))
        self.next_positions = torch.stack([parts[row].max() for row in rows]) + 1
        is_padding = torch.arange(int(lengths.max())) >= lengths[:, None]
        bias = torch.zeros(is_padding.shape).masked_fill(is_padding, -torch.inf)[:, None, None]
        self.memories, self.stand_ins = [], []
        for flat in zip(read.keys, read.values, strict=True):
            of_rows = [t.split(list(packed.lengths)) for t in flat]
            keys, values = (
                pad_sequence([some[row] for row in rows], batch_first=True).transpose(1, 2).contiguous()
                for some in of_rows
            )
            memory = _Memory(keys.detach(), values.detach(), bias)
            self.memories.append(memory)
            self.stand_ins.append(_Remember.apply(keys, values, memory))  # type: ignore[no-untyped-call]

    def step(self, embeds: Tensor) -> Tensor:
        """Feed one input embedding per row, embeds [R, H]. Returns the hidden states [R, H] after the final norm."""
        rotations = rotations_at(self.model, embeds, self.next_positions.expand(3, -1))
        self.next_positions = self.next_positions + 1
        hidden = embeds
        for layer, memory, stand_in in zip(self.layers, self.memories, self.stand_ins, strict=True):
            hidden = _run_layer(layer, memory, stand_in, hidden, rotations)
        return rms_norm(hidden, self.model.norm)


def _run_layer(
    layer: JointLayer, memory: _Memory, stand_in: Tensor, hidden: Tensor, rotations: tuple[Tensor, Tensor]
) -> Tensor:
    normed = rms_norm(hidden, layer.module.input_layernorm)
    queries, keys, values = (t[:, :, None] for t in layer.queries_keys_values(normed, rotations))
    memory.step_keys.append(keys)
    memory.step_values.append(values)
    own = torch.cat(memory.step_keys, dim=2), torch.cat(memory.step_values, dim=2)
    mixed: Tensor = _Attend.apply(queries, *own, stand_in, memory, layer.attention.scaling)  # type: ignore[no-untyped-call]
    return layer.finish(hidden, mixed.flatten(1))
