"""Which keys and values the single steps of the latents see: rows that continue the same prompt are members of a group,
which has the keys and values of the prompt once.

P: groups; n: members of each; L: columns of keys before the steps, at most; S: steps; C: columns of all, see `first`
and `bias`; h: heads of queries; k: heads of keys; g: queries of a member that share a key, h / k; d: size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from vsr1_core.models.qwen3_vl.step_weights import precision_of, weight_of


class Left(Protocol):
    """Where the keys and values of the groups are in what a pass has left."""

    def gathered(self, left: Tensor, into: Tensor) -> None:
        """Copy keys or values, as the pass has left them, `into` [P, k, L, d]."""

    def scattered(self, grad: Tensor, shape: torch.Size) -> Tensor:
        """Gradients [P, k, L, d] in the places of what the pass has left, of that `shape`."""


@dataclass(frozen=True)
class InPacked:
    """Rows, each a group of its own, in the flat sequence of a packed pass of T tokens, which has left [T, k, d].
    The first `shared` tokens belong to all and come before their own."""

    spans: Sequence[tuple[int, int]]
    shared: int

    def gathered(self, left: Tensor, into: Tensor) -> None:
        into[:, :, : self.shared] = left[: self.shared].transpose(0, 1)
        for row, (start, end) in zip(into, self.spans, strict=True):
            row[:, self.shared : self.shared + end - start] = left[start:end].transpose(0, 1)

    def scattered(self, grad: Tensor, shape: torch.Size) -> Tensor:
        flat = grad.new_zeros(shape)
        flat[: self.shared] = grad[:, :, : self.shared].sum(0).transpose(0, 1)
        for row, (start, end) in zip(grad, self.spans, strict=True):
            flat[start:end] += row[:, self.shared : self.shared + end - start].transpose(0, 1)
        return flat


class Gathered:
    """Keys and values [P, k, L, d] as they are wanted."""

    def gathered(self, left: Tensor, into: Tensor) -> None:
        into.copy_(left)

    def scattered(self, grad: Tensor, shape: torch.Size) -> Tensor:
        return grad.reshape(shape)


@dataclass(frozen=True)
class Groups:
    """What the steps see of the columns before them and of each other.

    left: see `Left`. hidden: bool [P, n or 1, L], True at columns that a member does not see: padding, and the tokens
    of other members. members: n.
    """

    left: Left
    hidden: Tensor
    members: int = 1

    @property
    def length(self) -> int:
        return self.hidden.shape[-1]

    @property
    def first(self) -> int:
        """The first column of the steps."""
        return _aligned(self.length)

    def columns(self, num_steps: int) -> Tensor:
        """The columns of each step, [S, n], counted from the `first`."""
        own = torch.arange(num_steps * self.members, device=self.hidden.device)
        return own.view(num_steps, self.members)

    def bias(self, model: Qwen3VLTextModel, num_steps: int) -> tuple[Tensor, Tensor]:
        """[P * k, n * g or 1, C] in the precision of products, of all C columns: -inf at those that are not seen, as
        are all of steps, 0 elsewhere; and of the columns of one step [P * k, n * g or 1, n], once it is there."""
        precision = precision_of(weight_of(model.layers[0].self_attn.q_proj))
        num_columns = self.first + _aligned(num_steps * self.members)
        hidden = F.pad(self.hidden, (0, num_columns - self.length), value=True)
        others = ~torch.eye(self.members, dtype=torch.bool, device=hidden.device)
        if self.members > 1:
            of_member = model.layers[0].self_attn.num_key_value_groups
            hidden = hidden.expand(-1, self.members, -1).repeat_interleave(of_member, dim=1)
            others = others.repeat_interleave(of_member, dim=0)

        def of_keys(is_hidden: Tensor) -> Tensor:
            bias = torch.zeros(is_hidden.shape, dtype=precision, device=is_hidden.device)
            return bias.masked_fill_(is_hidden, -torch.inf).repeat_interleave(model.config.num_key_value_heads, dim=0)

        return of_keys(hidden), of_keys(others.expand(len(hidden), -1, -1))


def _aligned(columns: int) -> int:
    """At least so many columns. Where rows do not begin at multiples of 16 bytes, a GPU has only slow kernels for
    products in bf16."""
    return -(-columns // 8) * 8
