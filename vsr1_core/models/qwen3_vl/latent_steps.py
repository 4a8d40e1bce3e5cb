"""Single steps after rows that were read with gradients, for the latents in training. Inference uses `single_steps`.

A step through all layers is one step of autograd with its own backward pass: of single operations, each over a dozen
tokens, it takes three times what its products take on a CPU, and on a GPU most of the time goes into launching them.
The gradients of weights, and those of a prompt's keys and values, are sums over all steps. Each step notes its factors
in its backward pass, and one product makes the sum at the end, in place of a gradient as large as all weights and all
keys for every step.

P, n, L, g: see `step_groups`; R: P * n, rows that are continued; S: steps; H: hidden size; h: heads of queries; k:
heads of keys; d: size of a head. Products have the precision of autocast, or that of the weights; all else is at least
float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from vsr1_core.models.qwen3_vl.batching import Batch
from vsr1_core.models.qwen3_vl.fused import swapped, unit, unit_backward
from vsr1_core.models.qwen3_vl.packed import Packed, Read, Rotations, rotations_at
from vsr1_core.models.qwen3_vl.prefix import read_by
from vsr1_core.models.qwen3_vl.step_groups import Gathered, Groups, InPacked
from vsr1_core.models.qwen3_vl.step_weights import StepWeights


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

    On a CPU, keys and values are there a second time as [P * k, d, L + S * n]: products with few rows are twice as fast
    where the other side is read in its order.
    """

    def __init__(
        self, module: torch.nn.Module, weights: StepWeights, keys: Tensor, values: Tensor, groups: Groups, bias: Tensor
    ) -> None:
        self.weights, self.groups, self.bias, self.precision = weights.constants(), groups, bias, bias.dtype
        self.scale, self.epsilon = module.self_attn.scaling, module.input_layernorm.variance_epsilon
        self.head_dim, self.num_groups = module.self_attn.head_dim, len(groups.hidden)
        self.num_key_heads = len(bias) // self.num_groups
        self.left = [(keys.shape, keys.dtype), (values.shape, values.dtype)]
        self.is_learning = keys.requires_grad or values.requires_grad
        self.keys, self.values = self._beside_steps(keys), self._beside_steps(values)
        self.keys_by_size, self.values_by_size = self.keys.mT, self.values.mT
        if bias.device.type == "cpu":
            self.keys_by_size, self.values_by_size = self.keys_by_size.contiguous(), self.values_by_size.contiguous()
        self.of_own: list[Tensor] = []
        """The gradients of the steps' own keys and values, [P * k, S * n, d], in a backward pass."""
        self.of_prompt: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def begin(self) -> None:
        """Begin a backward pass. What an earlier one noted and did not use is forgotten."""
        own = [t[:, self.groups.length :] for t in (self.keys, self.values)]
        self.of_own = [torch.zeros_like(t, dtype=torch.promote_types(t.dtype, torch.float32)) for t in own]
        self.of_prompt.clear()
        self.weights.forget()

    def _beside_steps(self, left: Tensor) -> Tensor:
        """Keys or values of the groups with room for the steps, [P * k, L + S * n, d]."""
        shape = self.num_groups, self.num_key_heads, self.bias.shape[-1], self.head_dim
        beside = torch.zeros(shape, dtype=self.precision, device=self.bias.device)
        self.groups.left.gathered(left.detach(), beside[:, :, : self.groups.length])
        return beside.flatten(0, 1)

    def _grouped(self, heads: Tensor) -> Tensor:
        """Heads [R, k * m, d] by group and key, [P * k, n * m, d]."""
        by_member = heads.view(self.num_groups, self.groups.members, self.num_key_heads, -1, self.head_dim)
        return by_member.transpose(1, 2).reshape(len(self.bias), -1, self.head_dim)

    def _by_row(self, grouped: Tensor) -> Tensor:
        """The reverse of `_grouped`."""
        shape = self.num_groups, self.num_key_heads, self.groups.members, -1, self.head_dim
        return grouped.view(shape).transpose(1, 2).reshape(self.num_groups * self.groups.members, -1, self.head_dim)

    def _columns(self, step: int) -> slice:
        """The columns of a step."""
        start = self.groups.length + step * self.groups.members
        return slice(start, start + self.groups.members)

    def forward(self, hidden: Tensor, step: int, rotations: Rotations) -> tuple[Tensor, _Kept]:
        """The next hidden states [R, H]."""
        w, columns = self.weights, self._columns(step)
        normed_before, factor_before = unit(hidden, self.epsilon)
        scaled_before = w.scaled("before", normed_before, self.precision)
        heads = w.product("queries_keys_values", scaled_before).unflatten(-1, (-1, self.head_dim))
        both, own_values = heads[:, : -self.num_key_heads], heads[:, -self.num_key_heads :]
        normed_heads, factor_heads = unit(both.to(hidden.dtype), self.epsilon)
        scaled = w.scaled("heads", normed_heads, hidden.dtype)
        rotated = (scaled * rotations[0]).addcmul_(swapped(scaled), rotations[1]).to(heads.dtype)
        queries = self._grouped(rotated[:, : -self.num_key_heads])
        self._put(columns, self._grouped(rotated[:, -self.num_key_heads :]), self._grouped(own_values))
        keys, bias = self.keys_by_size[..., : columns.stop], self.bias[..., : columns.stop]
        scores = torch.baddbmm(bias, queries, keys, alpha=self.scale)
        weights = torch.softmax(scores, -1)  # computed in float32, whatever the precision of the scores
        mixed = self._by_row(torch.bmm(weights, self.values[:, : columns.stop])).flatten(1)
        hidden = w.added(hidden, "output", mixed)
        normed_between, factor_between = unit(hidden, self.epsilon)
        scaled_between = w.scaled("between", normed_between, self.precision)
        gate, up = w.product("gate_and_up", scaled_between).chunk(2, dim=-1)
        active = F.silu(gate)
        gated = active * up
        before = (normed_before, factor_before, scaled_before, normed_heads, factor_heads, queries, weights, mixed)
        kept = _Kept(*before, normed_between, factor_between, scaled_between, gate, up, active, gated)
        return w.added(hidden, "down", gated), kept

    def _put(self, columns: slice, keys: Tensor, values: Tensor) -> None:
        self.keys[:, columns], self.values[:, columns] = keys, values
        if self.keys_by_size.data_ptr() != self.keys.data_ptr():
            self.keys_by_size[..., columns], self.values_by_size[..., columns] = keys.mT, values.mT

    def backward(self, grad: Tensor, step: int, rotations: Rotations, kept: _Kept, learns: bool) -> Tensor:
        """The gradient [R, H] of the hidden states before the layer, from that of those after it."""
        w, precision = self.weights, self.precision
        of_gated = w.product_backward("down", kept.gated, grad.to(precision), learns)
        of_gate = torch.ops.aten.silu_backward(of_gated * kept.up, kept.gate)
        of_both = torch.cat([of_gate, of_gated * kept.active], dim=-1)
        of_scaled = w.product_backward("gate_and_up", kept.scaled_between, of_both, learns)
        of_normed = w.scaled_backward("between", kept.normed_between, of_scaled, learns)
        grad = grad + unit_backward(of_normed, kept.normed_between, kept.factor_between)
        of_mixed = w.product_backward("output", kept.mixed, grad.to(precision), learns)
        of_heads, of_values = self._attention_backward(of_mixed, step, kept, learns)
        of_scaled = (of_heads * rotations[0]).add_(swapped(of_heads * rotations[1]))
        of_normed = w.scaled_backward("heads", kept.normed_heads, of_scaled, learns)
        of_heads = unit_backward(of_normed, kept.normed_heads, kept.factor_heads)
        of_projected = torch.cat([of_heads.flatten(1), of_values.flatten(1)], dim=1).to(precision)
        of_scaled = w.product_backward("queries_keys_values", kept.scaled_before, of_projected, learns)
        of_normed = w.scaled_backward("before", kept.normed_before, of_scaled, learns)
        return grad + unit_backward(of_normed, kept.normed_before, kept.factor_before)

    def _attention_backward(self, grad: Tensor, step: int, kept: _Kept, learns: bool) -> tuple[Tensor, Tensor]:
        """The gradients of rotated queries and keys of the step, [R, h + k, d], and of its values [R, k, d], from that
        of what attention gave, [R, h * d]."""
        length, columns, (of_own_keys, of_own_values) = self.groups.length, self._columns(step), self.of_own
        of_mixed, exact = self._grouped(grad.unflatten(-1, (-1, self.head_dim))), of_own_keys.dtype
        of_weights = torch.bmm(of_mixed, self.values_by_size[..., : columns.stop])
        of_scores = torch._softmax_backward_data(of_weights, kept.weights, -1, grad.dtype)  # not yet scaled
        of_queries = self._scaled_product(of_scores, self.keys[:, : columns.stop])
        own = slice(columns.stop - length)
        of_own_keys[:, own].add_(torch.bmm(of_scores[..., length:].mT, kept.queries), alpha=self.scale)
        of_own_values[:, own] += torch.bmm(kept.weights[..., length:].mT, of_mixed)
        if learns and self.is_learning:
            self.of_prompt.append((kept.queries, of_scores[..., :length], kept.weights[..., :length], of_mixed))
        # All later steps have gone backward before this one, which led to them.
        now = slice(columns.start - length, columns.stop - length)
        of_both = torch.cat([self._by_row(of_queries).to(exact), self._by_row(of_own_keys[:, now])], dim=1)
        return of_both, self._by_row(of_own_values[:, now])

    def _scaled_product(self, of_scores: Tensor, other: Tensor) -> Tensor:
        """The product with gradients of scores, times the scale of attention: in float32, as it is no power of 2."""
        return torch.baddbmm(of_scores.new_empty(()), of_scores, other, beta=0, alpha=self.scale)

    def gradients(self) -> list[Tensor | None]:
        """The gradients of the keys and values that the pass has left, and of the weights, by all steps. What was noted
        is forgotten."""
        return [*(self._of_left() if self.is_learning else (None, None)), *self.weights.gradients()]

    def _of_left(self) -> list[Tensor]:
        """The gradients of the keys and values that the pass has left, by all steps."""
        queries, of_scores, weights, of_mixed = (torch.cat(parts, dim=1) for parts in zip(*self.of_prompt, strict=True))
        found = [self._scaled_product(of_scores.mT, queries), torch.bmm(weights.mT, of_mixed)]
        self.of_prompt.clear()
        by_row = [grad.unflatten(0, (-1, self.num_key_heads)) for grad in found]
        return [
            self.groups.left.scattered(grad, shape).to(dtype)
            for grad, (shape, dtype) in zip(by_row, self.left, strict=True)
        ]


class _LastNorm:
    """The weight [H] of the last norm, as a constant, and the factors of its gradient."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.factors = weight.detach(), list[Tensor]()

    def gradients(self) -> list[Tensor | None]:
        total = torch.stack(self.factors).sum(0)
        self.factors.clear()
        return [total]


@dataclass
class _Stack:
    """All layers and the last norm."""

    layers: list[_Layer]
    norm: _LastNorm
    backward_pass: int = -1
    """The number of the backward pass that was here last."""

    def begin(self) -> None:
        """Begin a backward pass, if the one that runs is not here yet. An earlier one may have ended before it used its
        notes: by an error, or because only gradients of activations were asked for."""
        number = torch._C._current_graph_task_id()
        if number != self.backward_pass:
            self.backward_pass = number
            self.norm.factors.clear()
            for layer in self.layers:
                layer.begin()


def _taken(ctx: Any) -> Any:
    """What a node of autograd holds. It lets go of that unless the graph is retained: autograd does so with saved
    tensors, but not with what else a node refers to, and a loss that is logged keeps all nodes that led to it."""
    if ctx.held is None:
        raise RuntimeError(
            "the steps of the latents have gone backward already and kept nothing; pass retain_graph=True to the first "
            "backward pass"
        )
    held = ctx.held
    if not torch._C._autograd._get_current_graph_task_keep_graph():
        ctx.held = None
    return held


class _Recall(torch.autograd.Function):
    """A scalar that stands for the tensors of a layer: steps that depend on it add to their gradients. A node for each
    layer, so that the gradients of its weights are added to the others before those of the next layer are made."""

    @staticmethod
    def forward(ctx: Any, noted: _Layer | _LastNorm, *tensors: Tensor) -> Tensor:
        ctx.held = noted
        return tensors[0].new_zeros((), dtype=torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grad.device.type, enabled=False):
            return None, *_taken(ctx).gradients()


class _Step(torch.autograd.Function):
    """One token of each row through all layers and the last norm: [R, H] -> [R, H], at least float32."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, _stand_in: Tensor, stack: _Stack, step: int, rotations: Rotations) -> Tensor:
        kept = []
        with torch.autocast(hidden.device.type, enabled=False):
            for layer in stack.layers:
                hidden, of_layer = layer.forward(hidden, step, rotations)
                kept.append(of_layer)
            normed, factor = unit(hidden, stack.layers[-1].epsilon)
            ctx.held = stack, step, rotations, kept, normed, factor
            return normed * stack.norm.weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        learns = ctx.needs_input_grad[1]
        stack, step, rotations, all_kept, normed, factor = _taken(ctx)
        stack.begin()
        with torch.autocast(grad.device.type, enabled=False):
            if learns:
                stack.norm.factors.append((grad * normed).sum(0))
            grad = unit_backward(grad * stack.norm.weight, normed, factor)
            for layer, kept in zip(reversed(stack.layers), reversed(all_kept), strict=True):
                grad = layer.backward(grad, step, rotations, kept, learns)
            return grad, grad.new_zeros((), dtype=torch.float32), None, None, None


OfLayer = tuple[StepWeights, Tensor, Tensor]
"""The weights of a layer, and the keys and values that a pass has left."""


class LatentSteps:
    """Rows that `model` has read, which are continued by one input per row at a time, `num_steps` times.

    next_positions: [R], of the next input on all rotary axes. layers: each is made only when the one before is in its
    place, so that backward passes end one layer after the other. Raises ValueError for activations other than silu.
    """

    def __init__(
        self,
        model: Qwen3VLTextModel,
        groups: Groups,
        next_positions: Tensor,
        num_steps: int,
        layers: Iterable[OfLayer],
    ) -> None:
        if model.config.hidden_act != "silu":
            raise ValueError(
                f"the text model's hidden_act is {model.config.hidden_act!r}; latents are trained through layers with "
                "silu only, as all published Qwen3-VL models have"
            )
        self.model, self.next_positions, self.step_number = model, next_positions, 0
        self.exact = torch.promote_types(model.norm.weight.dtype, torch.float32)
        bias, weight = groups.bias(model, num_steps), model.norm.weight.to(self.exact)
        self.stack = _Stack([], _LastNorm(weight))
        stand_ins: list[Tensor] = [_Recall.apply(self.stack.norm, weight)]  # type: ignore[no-untyped-call]
        for module, (weights, keys, values) in zip(model.layers, layers, strict=True):
            layer = _Layer(module, weights, keys, values, groups, bias)
            self.stack.layers.append(layer)
            stand_ins.append(_Recall.apply(layer, keys, values, *weights.learning))  # type: ignore[no-untyped-call]
        self.stand_in = torch.stack(stand_ins).sum()

    def step(self, embeds: Tensor) -> Tensor:
        """Feed one input embedding per row, embeds [R, H]. Returns the hidden states [R, H] after the final norm. Where
        gradients are wanted, `embeds` must come of what the step before returned: the backward pass goes that way."""
        hidden = embeds.to(self.exact)
        rotations = rotations_at(self.model, hidden, self.next_positions.expand(3, -1))
        self.next_positions = self.next_positions + 1
        after: Tensor = _Step.apply(hidden, self.stand_in, self.stack, self.step_number, rotations)  # type: ignore[no-untyped-call]
        self.step_number += 1
        return after.to(embeds.dtype)


def after_packed(
    model: Qwen3VLTextModel, packed: Packed, read: Read, rows: Sequence[int], num_steps: int
) -> LatentSteps:
    """Steps after the rows `rows` of a packed pass."""
    of_all = packed.spans
    spans = [of_all[row] for row in rows]
    next_positions = torch.stack([packed.positions[:, start:end].max() for start, end in spans]) + 1
    lengths = torch.tensor([packed.shared + end - start for start, end in spans])
    is_padding = torch.arange(int(lengths.max())) >= lengths[:, None]

    def layers() -> Iterator[OfLayer]:
        for layer, keys, values in zip(read.layers, read.keys, read.values, strict=True):
            joint = {"queries_keys_values": layer.weight, "gate_and_up": layer.gate_and_up}
            yield StepWeights.of(layer.module, joint), keys, values

    groups = Groups(InPacked(spans, packed.shared), is_padding[:, None])
    return LatentSteps(model, groups, next_positions, num_steps, layers())


def after_batch(
    model: Qwen3VLTextModel, inputs: dict[int, Tensor], batch: Batch, rows: Sequence[int], num_steps: int
) -> LatentSteps:
    """Steps after the rows `rows` of a batch.

    The keys and values of the prompts are computed again from what each layer read (`prefix.layer_inputs`), with two
    products per layer and for these rows only. So the large pass may be checkpointed, and rows that do not continue
    keep none.
    """
    at = torch.tensor(list(rows), device=batch.mask.device)
    cosines = model.rotary_emb(inputs[0], batch.positions[:, at])
    next_positions = batch.positions[:, at].amax(dim=(0, 2)) + 1  # padding has position 0

    def layers() -> Iterator[OfLayer]:
        for number, layer in enumerate(model.layers):
            weights = StepWeights.of(layer)
            yield weights, *checkpoint(read_by, layer, inputs[number], at, *cosines, use_reentrant=False)

    groups = Groups(Gathered(), (batch.mask[at] == 0)[:, None])
    return LatentSteps(model, groups, next_positions, num_steps, layers())
