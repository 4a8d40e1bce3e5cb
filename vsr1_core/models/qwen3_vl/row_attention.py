"""Attention within rows that lie side by side in flat sequences, as one step of autograd with its own backward pass.
Rows may begin with the same tokens, which stand once, before all rows.

The kernels are torch's for a CPU, those of `scaled_dot_product_attention`. They are called by their own names, because
the sums of their weights are needed: what a query makes of the shared keys, and what it makes of the keys of its row,
are softmaxes over two parts of what it sees, and the sums say how to weigh the two.

Q: queries of all rows; T: tokens of all rows; h: heads; d: size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Part:
    """`rows` rows beside each other with equally many tokens each. Their keys begin at `start` in the flat sequence,
    and the queries, which are those of the last tokens of each row, at `query_start` in theirs."""

    rows: int
    num_keys: int
    num_queries: int
    start: int
    query_start: int

    def keys(self, flat: Tensor) -> Tensor:
        """Their part of a flat sequence [T, h, d], as [rows, h, num_keys, d]; a view."""
        return _rows_of(flat, self.start, self.rows, self.num_keys)

    def queries(self, flat: Tensor) -> Tensor:
        """Their part of a flat sequence [Q, h, d], as [rows, h, num_queries, d]; a view."""
        return _rows_of(flat, self.query_start, self.rows, self.num_queries)

    def mask(self, like: Tensor) -> dict[str, Any]:
        """Which keys the queries see: none that come after them."""
        if self.num_queries == self.num_keys:
            return {"is_causal": True}
        if self.num_queries == 1:
            return {"is_causal": False}
        later = like.new_full((self.num_queries, self.num_keys), -torch.inf)
        return {"is_causal": False, "attn_mask": later.triu_(1 + self.num_keys - self.num_queries)}


def _rows_of(flat: Tensor, start: int, rows: int, length: int) -> Tensor:
    return flat[start : start + rows * length].unflatten(0, (rows, length)).transpose(1, 2)


@dataclass(frozen=True)
class Layout:
    """Where rows are. The first `shared` keys belong to all rows, and the queries from `sharing_from` on see them."""

    parts: Sequence[Part]
    shared: int = 0
    sharing_from: int = 0


def whole_rows(lengths: Sequence[int], shared: int = 0) -> Layout:
    """Rows of `lengths` tokens after the shared ones. All tokens are queries."""
    before = [Part(1, shared, shared, 0, 0)] if shared else []
    return Layout([*before, *_parts(lengths, lengths, shared, shared)], shared, shared)


def ends_of_rows(lengths: Sequence[int], last: Sequence[int], shared: int = 0) -> Layout:
    """The same rows, with the last `last[b]` tokens of each as the only queries."""
    return Layout(_parts(lengths, last, shared, 0), shared)


def _parts(lengths: Sequence[int], counts: Sequence[int], start: int, query_start: int) -> list[Part]:
    parts = []
    for (length, count), equal in groupby(zip(lengths, counts, strict=True)):
        rows = len(list(equal))
        parts.append(Part(rows, length, count, start, query_start))
        start, query_start = start + rows * length, query_start + rows * count
    return parts


def attend(queries: Tensor, keys: Tensor, values: Tensor, layout: Layout, scale: float) -> Tensor:
    """Causal attention within rows: queries [Q, h, d] to keys and values [T, h, d]; returns [Q, h * d]."""
    mixed: Tensor = _Attention.apply(queries, keys, values, layout, scale)  # type: ignore[no-untyped-call]
    return mixed


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, layout: Layout, scale: float) -> Tensor:
        mixed = torch.empty_like(queries, memory_format=torch.contiguous_format)
        sums = queries.new_empty(queries.shape[:2])  # logarithms of the sums of exp(score)
        for part in layout.parts:
            pair = part.keys(keys), part.keys(values)
            own, own_sums = _forward(part.queries(queries), *pair, scale=scale, **part.mask(queries))
            part.queries(mixed).copy_(own)
            part.queries(sums[..., None])[..., 0].copy_(own_sums)
        if layout.shared:
            _mix_shared(queries, keys, values, layout, scale, mixed, sums)
        ctx.save_for_backward(queries, keys, values, mixed, sums)
        ctx.layout, ctx.scale = layout, scale
        return mixed.flatten(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, mixed, sums = ctx.saved_tensors
        layout, grad = ctx.layout, grad.unflatten(-1, queries.shape[1:])
        of_queries, of_keys, of_values = (torch.empty(t.shape, dtype=t.dtype) for t in (queries, keys, values))
        for part in layout.parts:
            of_mixed, pair = part.queries(grad), (part.keys(keys), part.keys(values))
            found = part.queries(mixed), part.queries(sums[..., None])[..., 0]
            seen = {"dropout_p": 0.0, "scale": ctx.scale, **part.mask(queries)}
            own = _backward(of_mixed, part.queries(queries), *pair, *found, **seen)
            part.queries(of_queries).copy_(own[0])
            part.keys(of_keys).copy_(own[1])
            part.keys(of_values).copy_(own[2])
        if layout.shared:
            kept = (grad, queries, keys, values, mixed, sums)
            _add_shared(*kept, layout, ctx.scale, (of_queries, of_keys, of_values))
        return of_queries, of_keys, of_values, None, None


def _shared(flat: Tensor, layout: Layout) -> Tensor:
    """The shared part of keys or values [T, h, d], as [1, h, shared, d]."""
    return flat[None, : layout.shared].transpose(1, 2)


def _sharing(flat: Tensor, layout: Layout) -> Tensor:
    """What belongs to the queries that see the shared keys, of a flat [Q, h, ...]: [1, h, Q', ...]."""
    return flat[None, layout.sharing_from :].transpose(1, 2)


def _mix_shared(
    queries: Tensor, keys: Tensor, values: Tensor, layout: Layout, scale: float, mixed: Tensor, sums: Tensor
) -> None:
    """Add what the shared keys give to `mixed` [Q, h, d] and `sums` [Q, h]."""
    pair = _shared(keys, layout), _shared(values, layout)
    of_shared, shared_sums = _forward(_sharing(queries, layout), *pair, scale=scale)
    of_own, own_sums = _sharing(mixed, layout), _sharing(sums, layout)
    of_own.lerp_(of_shared, torch.sigmoid(shared_sums - own_sums)[..., None])
    own_sums.copy_(torch.logaddexp(own_sums, shared_sums))


def _add_shared(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mixed: Tensor,
    sums: Tensor,
    layout: Layout,
    scale: float,
    grads: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Add to `grads`, those of queries, keys and values, what goes through the shared keys and values."""
    sharing = [_sharing(flat, layout) for flat in (grad, queries, mixed, sums)]
    pair = _shared(keys, layout), _shared(values, layout)
    through = _backward(*sharing[:2], *pair, *sharing[2:], 0.0, False, scale=scale)
    _sharing(grads[0], layout).add_(through[0])
    for flat, part in zip(grads[1:], through[1:], strict=True):
        of_shared = _shared(flat, layout)
        # Where all queries are those of rows, nothing was written there yet.
        _ = of_shared.add_(part) if layout.sharing_from else of_shared.copy_(part)
