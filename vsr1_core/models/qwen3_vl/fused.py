"""The parts of a layer of the text model that are no matrix products, each as one step of autograd with its own
backward pass: normalisation, rotated heads, and the gate of the MLP. Attention is in `row_attention`.

Written as single operations, these parts keep every intermediate and go over it several times: a training step of the
tiny models spent three quarters of its time there, and a quarter in its matrix products. Results and gradients differ
from those of transformers by rounding alone (tested). They are plain torch in the precision of their inputs, and made
for a CPU; on a GPU, the steps of the latents use some of their parts. T: tokens of all rows side by side; H: hidden
size; h: heads; d: size of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def rms_norm(hidden: Tensor, norm: nn.Module) -> Tensor:
    """What `norm`, an RMSNorm of transformers, makes of hidden [T, H]."""
    normed: Tensor = _RMSNorm.apply(hidden, norm.weight, norm.variance_epsilon)  # type: ignore[no-untyped-call]
    return normed


def rotated_heads(projected: Tensor, norm: nn.Module, rotations: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys [T, h, d] from projected [T, h, d]: `norm` over each head, then the rotary embedding with the
    `rotations` of `signed`."""
    rotated: Tensor = _RotatedHeads.apply(projected, norm.weight, *rotations, norm.variance_epsilon)  # type: ignore[no-untyped-call]
    return rotated


def signed(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotations for `rotated_heads` from cosines and sines [T, d]: each [T, 1, d]. The sines have the signs with
    which they multiply a head whose halves have changed places."""
    first, second = sin.chunk(2, dim=-1)
    return cos[:, None], torch.cat([-first, second], dim=-1)[:, None]


def gated(gate_and_up: Tensor) -> Tensor:
    """silu(gate) * up, [T, I], of both beside each other, [T, 2 * I]."""
    product: Tensor = _Gated.apply(gate_and_up)  # type: ignore[no-untyped-call]
    return product


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        normed, inverse = unit(hidden, epsilon)
        ctx.save_for_backward(normed, inverse, weight)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        normed, inverse, weight = ctx.saved_tensors
        of_weight = (grad * normed).sum(0) if ctx.needs_input_grad[1] else None
        return unit_backward(grad * weight, normed, inverse), of_weight, None


def unit(hidden: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """`hidden` divided by its root mean square over the last dimension, and the factor of each row."""
    if hidden.is_cuda:  # there it is one kernel; on a CPU these operations are faster
        normed, inverse = torch.ops.aten._fused_rms_norm(hidden, hidden.shape[-1:], None, epsilon)
        return normed, inverse
    mean_square = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True).square_().div_(hidden.shape[-1])
    inverse = mean_square.add_(epsilon).rsqrt_()
    return hidden * inverse, inverse


def unit_backward(grad: Tensor, normed: Tensor, inverse: Tensor) -> Tensor:
    """The gradient before `unit`. `grad` is overwritten."""
    along = (grad * normed).sum(-1, keepdim=True).div_(-normed.shape[-1])
    return grad.addcmul_(normed, along).mul_(inverse)


class _RotatedHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, epsilon: float) -> Tensor:
        normed, inverse = unit(projected, epsilon)
        ctx.save_for_backward(normed, inverse, weight, cos, sin)
        scaled = normed * weight
        return (scaled * cos).addcmul_(swapped(scaled), sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        normed, inverse, weight, cos, sin = ctx.saved_tensors
        of_scaled = (grad * cos).add_(swapped(grad * sin))
        of_weight = (of_scaled * normed).sum((0, 1)) if ctx.needs_input_grad[1] else None
        return unit_backward(of_scaled.mul_(weight), normed, inverse), of_weight, None, None, None


def swapped(heads: Tensor) -> Tensor:
    """The halves of each head in the other order."""
    half = heads.shape[-1] // 2
    return torch.cat([heads[..., half:], heads[..., :half]], dim=-1)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_and_up: Tensor) -> Tensor:
        gate, up = gate_and_up.chunk(2, dim=-1)
        active = nn.functional.silu(gate)
        ctx.save_for_backward(gate_and_up, active)
        return active * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        gate_and_up, active = ctx.saved_tensors
        gate, up = gate_and_up.chunk(2, dim=-1)
        result = torch.empty_like(gate_and_up)
        of_gate, of_up = result.chunk(2, dim=-1)
        torch.mul(grad, active, out=of_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=of_gate)
        return result
