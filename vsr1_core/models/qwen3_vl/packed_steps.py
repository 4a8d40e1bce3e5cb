"""Single steps after rows of a packed pass: `prefix.SharedPrefix` with few operations, for the latents in training.

A step through all layers is one step of autograd with its own backward pass: of single operations, each over a dozen
tokens, it took three times what its products take. The gradients of weights, and those of a prompt's keys and values,
are sums over all steps. Each step notes its factors in its backward pass, and one product makes the sum at the end, in
place of a gradient as large as all weights and all keys for every step.

R: rows that are continued; L: tokens of the longest prompt; S: steps; T: tokens of the packed pass; H: hidden size;
h: heads; d: size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from vsr1_core.models.qwen3_vl.fused import swapped, unit, unit_backward
from vsr1_core.models.qwen3_vl.packed import JointLayer, Packed, Read, Rotations, rotations_at


@dataclass(frozen=True)
class _Weights:
    """What a layer multiplies by. heads [2 * h, d]: the norms of each head of queries, then of keys."""

    before: Tensor
    queries_keys_values: Tensor
    heads: Tensor
    output: Tensor
    between: Tensor
    gate_and_up: Tensor
    down: Tensor

    @classmethod
    def of(cls, layer: JointLayer) -> _Weights:
        module, attention = layer.module, layer.attention
        norms = (attention.q_norm.weight, attention.k_norm.weight)
        return cls(
            module.input_layernorm.weight,
            layer.weight,
            torch.cat([norm.expand(layer.sizes[0] // attention.head_dim, -1) for norm in norms]),
            attention.o_proj.weight,
            module.post_attention_layernorm.weight,
            layer.gate_and_up,
            module.mlp.down_proj.weight,
        )


NAMES = [one.name for one in fields(_Weights)]


@dataclass(frozen=True)
class _Rows:
    """Where the rows are in a flat sequence of the packed pass, of which the first `shared` tokens belong to all and
    come before their own. bias: [R * h, 1, L + S], -inf at padding."""

    spans: Sequence[tuple[int, int]]
    shared: int
    bias: Tensor
    length: int

    @classmethod
    def of(cls, packed: Packed, rows: Sequence[int], heads: int, steps: int) -> _Rows:
        spans = [packed.spans[row] for row in rows]
        lengths = torch.tensor([packed.shared + end - start for start, end in spans])
        length = int(lengths.max())
        places = torch.arange(length + steps)
        is_padding = (places >= lengths[:, None]) & (places < length)
        bias = packed.embeds.new_zeros(is_padding.shape).masked_fill_(is_padding, -torch.inf)
        return cls(spans, packed.shared, bias.repeat_interleave(heads, dim=0)[:, None], length)

    def gathered(self, flat: Tensor) -> Tensor:
        """Keys or values [T, h, d] of the rows with room for the steps, [R * h, L + S, d]."""
        _, heads, size = flat.shape
        rows = flat.new_zeros(len(self.spans), heads, self.bias.shape[-1], size)
        rows[:, :, : self.shared] = flat[: self.shared].transpose(0, 1)
        for row, (start, end) in zip(rows, self.spans, strict=True):
            row[:, self.shared : self.shared + end - start] = flat[start:end].transpose(0, 1)
        return rows.flatten(0, 1)

    def scattered(self, gathered: Tensor, shape: torch.Size) -> Tensor:
        """Gradients [R * h, L, d] in their places in the flat sequence, of `shape` [T, h, d]."""
        flat, rows = gathered.new_zeros(shape), gathered.unflatten(0, (len(self.spans), -1))
        flat[: self.shared] = rows[:, :, : self.shared].sum(0).transpose(0, 1)
        for row, (start, end) in zip(rows, self.spans, strict=True):
            flat[start:end] += row[:, self.shared : self.shared + end - start].transpose(0, 1)
        return flat


@dataclass(frozen=True)
class _Kept:
    """What the backward pass of a step through a layer needs. Names end in what they are of."""

    normed_before: Tensor
    factor_before: Tensor
    scaled_before: Tensor
    normed_heads: Tensor
    factor_heads: Tensor
    queries: Tensor
    weights: Tensor
    mixed: Tensor
    normed_between: Tensor
    factor_between: Tensor
    scaled_between: Tensor
    gate: Tensor
    up: Tensor
    active: Tensor
    gated: Tensor


class _Layer:
    """A layer with the keys and values of its rows, as constants, and what the backward passes of the steps noted.
    Nothing here may belong to the graph of autograd, whose nodes hold this: Python does not see such a circle, and all
    of it would stay for ever.

    Keys and values are there a second time as [R * h, d, L + S]: products with one row are twice as fast where the
    other side is read in its order.
    """

    def __init__(self, weights: _Weights, keys: Tensor, values: Tensor, rows: _Rows, layer: JointLayer) -> None:
        self.weights, self.rows, self.shape = weights, rows, keys.shape
        self.scale, self.epsilon = layer.attention.scaling, layer.module.input_layernorm.variance_epsilon
        self.keys, self.values = rows.gathered(keys), rows.gathered(values)
        self.keys_by_size, self.values_by_size = self.keys.mT.contiguous(), self.values.mT.contiguous()
        self.of_own = [torch.zeros_like(t[:, rows.length :]) for t in (self.keys, self.values)]
        """The gradients of the steps' own keys and values, [R * h, S, d]."""
        self.factors: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in NAMES}
        """Of each weight, what it multiplied and the gradient of the result."""
        self.of_prompt: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def forward(self, hidden: Tensor, step: int, rotations: Rotations) -> tuple[Tensor, _Kept]:
        """The next hidden states [R, H]."""
        w, heads, seen = self.weights, self.shape[1], self.rows.length + step + 1
        normed_before, factor_before = unit(hidden, self.epsilon)
        scaled_before = normed_before * w.before
        *both, own_values = F.linear(scaled_before, w.queries_keys_values).unflatten(-1, (3, heads, -1)).unbind(1)
        normed_heads, factor_heads = unit(torch.cat(both, dim=1), self.epsilon)
        scaled = normed_heads * w.heads
        rotated = (scaled * rotations[0]).addcmul_(swapped(scaled), rotations[1])
        queries, own_keys = (part.flatten(0, 1) for part in rotated.chunk(2, dim=1))
        own_values = own_values.flatten(0, 1)
        self.keys[:, seen - 1] = self.keys_by_size[..., seen - 1] = own_keys
        self.values[:, seen - 1] = self.values_by_size[..., seen - 1] = own_values
        queries = queries[:, None]
        scores = torch.baddbmm(self.rows.bias[..., :seen], queries, self.keys_by_size[..., :seen], alpha=self.scale)
        weights = torch.softmax(scores, -1, out=scores)
        mixed = torch.bmm(weights, self.values[:, :seen]).view(len(hidden), -1)
        hidden = torch.addmm(hidden, mixed, w.output.T)
        normed_between, factor_between = unit(hidden, self.epsilon)
        scaled_between = normed_between * w.between
        gate, up = F.linear(scaled_between, w.gate_and_up).chunk(2, dim=-1)
        active = F.silu(gate)
        gated = active * up
        before = (normed_before, factor_before, scaled_before, normed_heads, factor_heads, queries, weights, mixed)
        kept = _Kept(*before, normed_between, factor_between, scaled_between, gate, up, active, gated)
        return torch.addmm(hidden, gated, w.down.T), kept

    def backward(self, grad: Tensor, step: int, rotations: Rotations, kept: _Kept, learns: bool) -> Tensor:
        """The gradient [R, H] of the hidden states before the layer, from that of those after it."""
        w, noted = self.weights, []
        of_gated = grad @ w.down
        of_gate = torch.ops.aten.silu_backward(of_gated * kept.up, kept.gate)
        of_both = torch.cat([of_gate, of_gated * kept.active], dim=-1)
        of_scaled = of_both @ w.gate_and_up
        noted += [("down", kept.gated, grad), ("gate_and_up", kept.scaled_between, of_both)]
        noted.append(("between", kept.normed_between, of_scaled))
        grad = grad + unit_backward(of_scaled * w.between, kept.normed_between, kept.factor_between)
        noted.append(("output", kept.mixed, grad))
        of_heads, of_values = self._attention_backward(grad @ w.output, step, kept, learns)
        of_normed = (of_heads * rotations[0]).add_(swapped(of_heads * rotations[1]))
        noted.append(("heads", kept.normed_heads, of_normed))
        of_heads = unit_backward(of_normed * w.heads, kept.normed_heads, kept.factor_heads)
        of_projected = torch.cat([of_heads.flatten(1), of_values.reshape(len(grad), -1)], dim=1)
        of_scaled = of_projected @ w.queries_keys_values
        noted += [("queries_keys_values", kept.scaled_before, of_projected)]
        noted.append(("before", kept.normed_before, of_scaled))
        if learns:
            for name, inputs, of_result in noted:
                self.factors[name].append((inputs, of_result))
        return grad + unit_backward(of_scaled * w.before, kept.normed_before, kept.factor_before)

    def _attention_backward(self, grad: Tensor, step: int, kept: _Kept, learns: bool) -> tuple[Tensor, Tensor]:
        """The gradients of rotated queries and keys of the step, [R, 2 * h, d], and of its values [R * h, d], from that
        of what attention gave [R, h * d]."""
        length, heads = self.rows.length, self.shape[1]
        seen, (of_own_keys, of_own_values) = length + step + 1, self.of_own
        of_mixed = grad.view(len(kept.queries), 1, -1)
        of_weights = torch.bmm(of_mixed, self.values_by_size[..., :seen])
        of_scores = torch._softmax_backward_data(of_weights, kept.weights, -1, grad.dtype).mul_(self.scale)
        of_queries = torch.bmm(of_scores, self.keys[:, :seen])[:, 0]
        of_own_keys[:, : step + 1].baddbmm_(of_scores[..., length:].mT, kept.queries)
        of_own_values[:, : step + 1].baddbmm_(kept.weights[..., length:].mT, of_mixed)
        if learns:
            self.of_prompt.append((kept.queries, of_scores[..., :length], kept.weights[..., :length], of_mixed))
        # All later steps have gone backward before this one, which led to them.
        of_both = torch.cat([t.unflatten(0, (-1, heads)) for t in (of_queries, of_own_keys[:, step])], dim=1)
        of_values = of_own_values[:, step].clone()
        for own in self.of_own:
            own[:, step] = 0  # for another backward pass through the same steps
        return of_both, of_values

    def gradients(self) -> list[Tensor]:
        """The gradients of the keys and values [T, h, d] of the packed pass, and of the weights, by all steps. What was
        noted is forgotten."""
        queries, of_scores, weights, of_mixed = (torch.cat(parts, dim=1) for parts in zip(*self.of_prompt, strict=True))
        found = [torch.bmm(of_scores.mT, queries), torch.bmm(weights.mT, of_mixed)]
        grads = [self.rows.scattered(grad, self.shape) for grad in found]
        for name in NAMES:
            inputs, of_results = (torch.cat(parts) for parts in zip(*self.factors[name], strict=True))
            is_matrix = name in ("queries_keys_values", "output", "gate_and_up", "down")
            grads.append(of_results.mT @ inputs if is_matrix else (of_results * inputs).sum(0))
            self.factors[name].clear()
        self.of_prompt.clear()
        return grads


@dataclass
class _Memory:
    """All layers, and the factors of the last norm's weight."""

    layers: list[_Layer]
    norm: Tensor
    of_norm: list[Tensor]


class _Recall(torch.autograd.Function):
    """A scalar that stands for all keys, values and weights: steps that depend on it add to their gradients."""

    @staticmethod
    def forward(ctx: Any, memory: _Memory, norm: Tensor, *_of_layers: Tensor) -> Tensor:
        ctx.memory = memory
        return norm.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _grad: Tensor) -> tuple[Tensor | None, ...]:
        memory = ctx.memory
        grads = [torch.stack(memory.of_norm).sum(0), *(grad for layer in memory.layers for grad in layer.gradients())]
        memory.of_norm.clear()
        wanted = ctx.needs_input_grad[1:]
        return None, *(grad if is_wanted else None for grad, is_wanted in zip(grads, wanted, strict=True))


class _Step(torch.autograd.Function):
    """One token of each row through all layers and the last norm: [R, H] -> [R, H]."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, _stand_in: Tensor, memory: _Memory, step: int, rotations: Rotations
    ) -> Tensor:
        kept = []
        for layer in memory.layers:
            hidden, of_layer = layer.forward(hidden, step, rotations)
            kept.append(of_layer)
        ctx.memory, ctx.step, ctx.rotations, ctx.kept = memory, step, rotations, kept
        ctx.normed, ctx.factor = unit(hidden, memory.layers[-1].epsilon)
        return ctx.normed * memory.norm

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        memory, learns = ctx.memory, ctx.needs_input_grad[1]
        if learns:
            memory.of_norm.append((grad * ctx.normed).sum(0))
        grad = unit_backward(grad * memory.norm, ctx.normed, ctx.factor)
        for layer, kept in zip(reversed(memory.layers), reversed(ctx.kept), strict=True):
            grad = layer.backward(grad, ctx.step, ctx.rotations, kept, learns)
        return grad, grad.new_zeros(()), None, None, None


class PackedPrefix:
    """The rows `rows` of a packed pass, which are continued by one input per row at a time, `num_steps` times."""

    def __init__(
        self, model: Qwen3VLTextModel, packed: Packed, read: Read, rows: Sequence[int], num_steps: int
    ) -> None:
        self.model, self.step_number = model, 0
        spans = [packed.spans[row] for row in rows]
        self.next_positions = torch.stack([packed.positions[:, start:end].max() for start, end in spans]) + 1
        places = _Rows.of(packed, rows, read.keys[0].shape[1], num_steps)
        flat: list[Tensor] = []
        layers = []
        for layer, keys, values in zip(read.layers, read.keys, read.values, strict=True):
            weights = _Weights.of(layer)
            of_layer = [getattr(weights, name) for name in NAMES]
            flat += [keys, values, *of_layer]
            constants = _Weights(*(t.detach() for t in of_layer))
            layers.append(_Layer(constants, keys.detach(), values.detach(), places, layer))
        self.memory = _Memory(layers, model.norm.weight.detach(), [])
        self.stand_in: Tensor = _Recall.apply(self.memory, model.norm.weight, *flat)  # type: ignore[no-untyped-call]

    def step(self, embeds: Tensor) -> Tensor:
        """Feed one input embedding per row, embeds [R, H]. Returns the hidden states [R, H] after the final norm."""
        rotations = rotations_at(self.model, embeds, self.next_positions.expand(3, -1))
        self.next_positions = self.next_positions + 1
        hidden: Tensor = _Step.apply(embeds, self.stand_in, self.memory, self.step_number, rotations)  # type: ignore[no-untyped-call]
        self.step_number += 1
        return hidden
