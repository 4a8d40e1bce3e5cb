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
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from vsr1_core.models.qwen3_vl.fused import rms_norm
from vsr1_core.models.qwen3_vl.packed import JointLayer, Packed, Read, rotations_at


@dataclass
class _Memory:
    """The keys and values of the prompts in one layer, as constants, each [R * h, L, d] and transposed [R * h, d, L]:
    products with one row are twice as fast where the other side is read in its order. Then what the backward passes of
    the steps noted. Nothing here may belong to the graph of autograd, whose nodes hold this: Python does not see such a
    circle, and all of it would stay for ever.

    spans: where the rows are in the flat keys and values [T, h, d], of which the first `shared` belong to all rows, and
    come before their own. bias: [R * h, 1, L], -inf at padding.
    """

    spans: Sequence[tuple[int, int]]
    shared: int
    keys: Tensor
    keys_by_size: Tensor
    values: Tensor
    values_by_size: Tensor
    bias: Tensor
    noted: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)


@torch.no_grad()
def _memory(keys: Tensor, values: Tensor, spans: Sequence[tuple[int, int]], shared: int) -> _Memory:
    """The memory of the rows `spans` of flat keys and values [T, h, d], whose first `shared` all of them see."""
    lengths = torch.tensor([shared + end - start for start, end in spans])
    heads, length = keys.shape[1], int(lengths.max())
    padded = []
    for flat in (keys, values):
        rows = flat.new_zeros(len(spans), heads, length, flat.shape[-1])
        rows[:, :, :shared] = flat[:shared].transpose(0, 1)
        for row, (start, end) in zip(rows, spans, strict=True):
            row[:, shared : shared + end - start] = flat[start:end].transpose(0, 1)
        padded.append(rows.flatten(0, 1))
    is_padding = torch.arange(length) >= lengths[:, None]
    bias = (
        keys.new_zeros(is_padding.shape).masked_fill_(is_padding, -torch.inf).repeat_interleave(heads, dim=0)[:, None]
    )
    of_keys, of_values = padded
    return _Memory(spans, shared, of_keys, of_keys.mT.contiguous(), of_values, of_values.mT.contiguous(), bias)


class _Remember(torch.autograd.Function):
    """A scalar that stands for keys and values: steps that depend on it add to the gradients of both."""

    @staticmethod
    def forward(ctx: Any, keys: Tensor, values: Tensor, memory: _Memory) -> Tensor:
        ctx.memory, ctx.shape = memory, keys.shape
        return keys.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _grad: Tensor) -> tuple[Tensor | None, ...]:
        memory = ctx.memory
        queries, of_scores, weights, of_mixed = (torch.cat(parts, dim=1) for parts in zip(*memory.noted, strict=True))
        memory.noted.clear()
        of_keys, of_values = torch.bmm(of_scores.mT, queries), torch.bmm(weights.mT, of_mixed)
        return *(_flat(grad, memory, ctx.shape) for grad in (of_keys, of_values)), None


def _flat(padded: Tensor, memory: _Memory, shape: torch.Size) -> Tensor:
    """Gradients [R * h, L, d] in their places in the flat sequence, of `shape` [T, h, d]."""
    flat, rows, shared = padded.new_zeros(shape), padded.unflatten(0, (len(memory.spans), -1)), memory.shared
    flat[:shared] = rows[:, :, :shared].sum(0).transpose(0, 1)
    for row, (start, end) in zip(rows, memory.spans, strict=True):
        flat[start:end] = row[:, shared : shared + end - start].transpose(0, 1)
    return flat


class _Attend(torch.autograd.Function):
    """Attention of queries [R * h, 1, d] to the prompts of `memory` and to keys and values [R * h, s, d] of steps."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, _stand_in: Tensor, memory: _Memory, scale: float
    ) -> Tensor:
        length = memory.keys.shape[1]
        to_prompt = torch.baddbmm(memory.bias, queries, memory.keys_by_size, alpha=scale)
        to_steps = torch.bmm(queries, keys.mT).mul_(scale)
        weights = torch.cat([to_prompt, to_steps], dim=-1).softmax(-1)
        ctx.save_for_backward(queries, keys, values, weights)
        ctx.memory, ctx.scale = memory, scale
        return torch.bmm(weights[..., :length], memory.values).baddbmm_(weights[..., length:], values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, weights = ctx.saved_tensors
        memory, length = ctx.memory, ctx.memory.keys.shape[1]
        of_weights = torch.cat([torch.bmm(grad, memory.values_by_size), torch.bmm(grad, values.mT)], dim=-1)
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype).mul_(ctx.scale)
        of_prompt, of_steps = of_scores[..., :length], of_scores[..., length:]
        if ctx.needs_input_grad[3]:
            memory.noted.append((queries.detach(), of_prompt, weights[..., :length], grad))
        of_queries = torch.bmm(of_prompt, memory.keys).baddbmm_(of_steps, keys)
        of_keys, of_values = torch.bmm(of_steps.mT, queries), torch.bmm(weights[..., length:].mT, grad)
        return of_queries, of_keys, of_values, grad.new_zeros(()), None, None


class PackedPrefix:
    """The rows `rows` of a packed pass, which are continued by one input per row at a time."""

    def __init__(self, model: Qwen3VLTextModel, packed: Packed, read: Read, rows: Sequence[int]) -> None:
        self.model, self.layers = model, read.layers
        spans = [packed.spans[row] for row in rows]
        self.next_positions = torch.stack([packed.positions[:, start:end].max() for start, end in spans]) + 1
        pairs = list(zip(read.keys, read.values, strict=True))
        self.memories = [_memory(keys, values, spans, packed.shared) for keys, values in pairs]
        self.stand_ins: list[Tensor] = [
            _Remember.apply(*pair, memory)  # type: ignore[no-untyped-call]
            for pair, memory in zip(pairs, self.memories, strict=True)
        ]
        self.own: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in pairs]
        """Layer -> keys and values [R * h, 1, d] of each step so far."""

    def step(self, embeds: Tensor) -> Tensor:
        """Feed one input embedding per row, embeds [R, H]. Returns the hidden states [R, H] after the final norm."""
        rotations = rotations_at(self.model, embeds, self.next_positions.expand(3, -1))
        self.next_positions = self.next_positions + 1
        hidden = embeds
        for layer, memory, stand_in, own in zip(self.layers, self.memories, self.stand_ins, self.own, strict=True):
            hidden = _run_layer(layer, memory, stand_in, own, hidden, rotations)
        return rms_norm(hidden, self.model.norm)


def _run_layer(
    layer: JointLayer,
    memory: _Memory,
    stand_in: Tensor,
    own: tuple[list[Tensor], list[Tensor]],
    hidden: Tensor,
    rotations: tuple[Tensor, Tensor],
) -> Tensor:
    """The next hidden states [R, H]. own: keys and values of the steps so far, to which those of this one are added."""
    normed = rms_norm(hidden, layer.module.input_layernorm)
    queries, keys, values = (t.flatten(0, 1)[:, None] for t in layer.queries_keys_values(normed, rotations))
    for kept, new in zip(own, (keys, values), strict=True):
        kept.append(new)
    of_steps = (torch.cat(kept, dim=1) for kept in own)
    mixed: Tensor = _Attend.apply(queries, *of_steps, stand_in, memory, layer.attention.scaling)  # type: ignore[no-untyped-call]
    return layer.finish(hidden, mixed.view(len(hidden), -1))
