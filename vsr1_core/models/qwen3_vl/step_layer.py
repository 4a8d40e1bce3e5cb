"""A layer of the text model in single steps of the latents: forward and backward, on tensors alone. What differs from
step to step is in `Place`. All steps attend to the columns of all of them, of which later ones have no weight.

P, n, L, C, g: see `step_groups`; R: P * n, rows that are continued; H: hidden size; h: heads of queries; k: heads of
keys; d: size of a head. Products have the precision of autocast, or that of the weights; all else is at least float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vsr1_core.models.qwen3_vl.captures import SideBySide, apart
from vsr1_core.models.qwen3_vl.fused import swapped, unit, unit_backward
from vsr1_core.models.qwen3_vl.step_groups import Groups
from vsr1_core.models.qwen3_vl.step_weights import Noted, StepWeights


class Kept(NamedTuple):
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
    gate_and_up: Tensor
    active: Tensor
    gated: Tensor


class Place(NamedTuple):
    """Where a step is: its columns [n], counted from `Groups.first`, and the rotations of its rows, [R, 1, d]."""

    columns: Tensor
    cosines: Tensor
    sines: Tensor


class StepLayer:
    """A layer with the keys and values of its rows, as constants, and what the backward passes of the steps noted.
    Nothing here may belong to the graph of autograd, whose nodes hold this: Python does not see such a circle, and all
    of it would stay for ever.

    On a CPU, keys and values are there a second time as [P * k, d, C]: products with few rows are twice as fast where
    the other side is read in its order.
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
        """The gradients of the steps' own keys and values, [P * k, C - first, d], in a backward pass."""
        self.noted: list[Noted | SideBySide] = []
        """By step, beside what `StepWeights` note: the factors of the gradients of all `keys` and `values`."""

    def begin(self) -> None:
        """Begin a backward pass. What an earlier one noted and did not use is forgotten."""
        own = [t[:, self.groups.first :] for t in (self.keys, self.values)]
        self.of_own = self.of_own or [
            torch.empty_like(t, dtype=torch.promote_types(t.dtype, torch.float32)) for t in own
        ]
        for grad in self.of_own:
            grad.zero_()
        self.noted.clear()

    def _beside_steps(self, left: Tensor) -> Tensor:
        """Keys or values of the groups with room for the steps, [P * k, C, d]."""
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

    def forward(self, hidden: Tensor, place: Place) -> tuple[Tensor, Kept]:
        """The next hidden states [R, H]."""
        w = self.weights
        normed_before, factor_before = unit(hidden, self.epsilon)
        scaled_before = w.scaled("before", normed_before, self.precision)
        heads = w.product("queries_keys_values", scaled_before).unflatten(-1, (-1, self.head_dim))
        both, own_values = heads[:, : -self.num_key_heads], heads[:, -self.num_key_heads :]
        normed_heads, factor_heads = unit(both.to(hidden.dtype), self.epsilon)
        scaled = w.scaled("heads", normed_heads, hidden.dtype)
        rotated = (scaled * place.cosines).addcmul_(swapped(scaled), place.sines).to(heads.dtype)
        queries = self._grouped(rotated[:, : -self.num_key_heads])
        self._put(place.columns, self._grouped(rotated[:, -self.num_key_heads :]), self._grouped(own_values))
        scores = torch.baddbmm(self.bias, queries, self.keys_by_size, alpha=self.scale)
        weights = torch.softmax(scores, -1)  # computed in float32, whatever the precision of the scores
        mixed = self._by_row(torch.bmm(weights, self.values)).flatten(1)
        hidden = w.added(hidden, "output", mixed)
        normed_between, factor_between = unit(hidden, self.epsilon)
        scaled_between = w.scaled("between", normed_between, self.precision)
        gate_and_up = w.product("gate_and_up", scaled_between)
        gate, up = gate_and_up.chunk(2, dim=-1)
        active = F.silu(gate)
        gated = active * up
        before = (normed_before, factor_before, scaled_before, normed_heads, factor_heads, queries, weights, mixed)
        kept = Kept(*before, normed_between, factor_between, scaled_between, gate_and_up, active, gated)
        return w.added(hidden, "down", gated), kept

    def _put(self, columns: Tensor, keys: Tensor, values: Tensor) -> None:
        first = self.groups.first
        self.keys[:, first:].index_copy_(1, columns, keys)
        self.values[:, first:].index_copy_(1, columns, values)
        if self.keys_by_size.data_ptr() != self.keys.data_ptr():
            self.keys_by_size[..., first:].index_copy_(2, columns, keys.mT)
            self.values_by_size[..., first:].index_copy_(2, columns, values.mT)

    def backward(self, grad: Tensor, place: Place, kept: Kept) -> tuple[Tensor, Noted]:
        """The gradient [R, H] of the hidden states before the layer, from that of those after it."""
        w, precision = self.weights, self.precision
        noted: Noted = {}
        of_gated = w.product_backward("down", kept.gated, grad.to(precision), noted)
        gate, up = kept.gate_and_up.chunk(2, dim=-1)
        of_gate = torch.ops.aten.silu_backward(of_gated * up, gate)
        of_both = torch.cat([of_gate, of_gated * kept.active], dim=-1)
        of_scaled = w.product_backward("gate_and_up", kept.scaled_between, of_both, noted)
        of_normed = w.scaled_backward("between", kept.normed_between, of_scaled, noted)
        grad = grad + unit_backward(of_normed, kept.normed_between, kept.factor_between)
        of_mixed = w.product_backward("output", kept.mixed, grad.to(precision), noted)
        of_heads, of_values = self._attention_backward(of_mixed, place.columns, kept, noted)
        of_scaled = (of_heads * place.cosines).add_(swapped(of_heads * place.sines))
        of_normed = w.scaled_backward("heads", kept.normed_heads, of_scaled, noted)
        of_heads = unit_backward(of_normed, kept.normed_heads, kept.factor_heads)
        of_projected = torch.cat([of_heads.flatten(1), of_values.flatten(1)], dim=1).to(precision)
        of_scaled = w.product_backward("queries_keys_values", kept.scaled_before, of_projected, noted)
        of_normed = w.scaled_backward("before", kept.normed_before, of_scaled, noted)
        return grad + unit_backward(of_normed, kept.normed_before, kept.factor_before), noted

    def _attention_backward(self, grad: Tensor, columns: Tensor, kept: Kept, noted: Noted) -> tuple[Tensor, Tensor]:
        """The gradients of rotated queries and keys of the step, [R, h + k, d], and of its values [R, k, d], from that
        of what attention gave, [R, h * d]."""
        first, (of_own_keys, of_own_values) = self.groups.first, self.of_own
        of_mixed, exact = self._grouped(grad.unflatten(-1, (-1, self.head_dim))), of_own_keys.dtype
        of_weights = torch.bmm(of_mixed, self.values_by_size)
        of_scores = torch._softmax_backward_data(of_weights, kept.weights, -1, grad.dtype)  # not yet scaled
        of_queries = _scaled_product(of_scores, self.keys, self.scale)
        of_own_keys.add_(torch.bmm(of_scores[..., first:].mT, kept.queries), alpha=self.scale)
        of_own_values += torch.bmm(kept.weights[..., first:].mT, of_mixed)
        if self.is_learning:
            noted |= {"keys": (of_scores, kept.queries), "values": (kept.weights, of_mixed)}
        # All later steps have gone backward before this one, which led to them.
        of_keys, of_values = (self._by_row(t.index_select(1, columns)) for t in self.of_own)
        return torch.cat([self._by_row(of_queries).to(exact), of_keys], dim=1), of_values

    def gradients(self) -> list[Tensor | None]:
        """The gradients of the keys and values that the pass has left, and of the weights, by all steps. What was noted
        is forgotten."""
        noted = _of_all(self.noted)
        self.noted.clear()
        of_keys = self._of_left(0, self.scale, noted.pop("keys", None))
        of_values = self._of_left(1, 1.0, noted.pop("values", None))
        return [of_keys, of_values, *self.weights.gradients(noted)]

    def _of_left(self, number: int, scale: float, factors: tuple[Tensor, Tensor] | None) -> Tensor | None:
        """The gradient of the keys (0) or values (1) that the pass has left, from its factors in all steps."""
        if not factors:
            return None
        weights, of_mixed = factors
        grad = _scaled_product(weights[..., : self.groups.length].mT, of_mixed, scale)
        shape, dtype = self.left[number]
        return self.groups.left.scattered(grad.unflatten(0, (-1, self.num_key_heads)), shape).to(dtype)


def _of_all(steps: Sequence[Any]) -> Noted:
    """What all steps noted, side by side or not: the rows of one after those of the other."""
    joined: Callable[[Any, int], Tensor]
    if steps and all(isinstance(noted, SideBySide) for noted in steps):
        by_name, joined = SideBySide.stacked(steps).apart(), _rows_of_stacked
    else:
        by_step = [apart(noted) for noted in steps]
        names = by_step[0] if steps else ()
        by_name, joined = {n: zip(*(noted[n] for noted in by_step), strict=True) for n in names}, torch.cat
    rows_at = {"keys": 1, "values": 1}  # in each head
    return {n: tuple(joined(parts, rows_at.get(n, 0)) for parts in factors) for n, factors in by_name.items()}


def _rows_of_stacked(stacked: Tensor, dim: int) -> Tensor:
    return (stacked.transpose(0, dim) if dim else stacked).flatten(dim, dim + 1)


def _scaled_product(one: Tensor, other: Tensor, scale: float) -> Tensor:
    """The products of two batches, times the scale of attention: in float32, as it is no power of 2."""
    return torch.baddbmm(one.new_empty(()), one, other, beta=0, alpha=scale)
