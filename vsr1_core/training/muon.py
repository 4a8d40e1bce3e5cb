"""Muon for the matrices of layers and AdamW for all other parameters, as one optimiser of torch.

As one optimiser it fits where a trainer expects one: schedules, accelerate, saving and resuming.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

RATE = 2.0
"""Muon's learning rate as a multiple of AdamW's."""
ADJUST = "match_rms_adamw"
"""Orthogonal steps are scaled to the size of AdamW's: `_scale_of`."""


def is_layer_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon steps the parameter: a matrix between layers, and no table of words."""
    return parameter.ndim == 2 and "embed" not in name and "lm_head" not in name


class BatchedMuon(torch.optim.Muon):
    """torch's Muon, up to the rounding of bfloat16, with all matrices of one shape orthogonalised in one batch: a
    matrix of 128 x 128 by itself takes three times as long on a CPU."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            learning = [p for p in group["params"] if p.grad is not None]
            grads, buffers = [p.grad for p in learning if p.grad is not None], [self._buffer(p) for p in learning]
            if not learning:
                continue
            torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
            updates = torch._foreach_lerp(grads, buffers, group["momentum"]) if group["nesterov"] else buffers
            torch._foreach_mul_(learning, 1 - group["lr"] * group["weight_decay"])
            for places in _by_shape(updates):
                some = orthogonal(
                    [updates[i] for i in places], group["ns_coefficients"], group["ns_steps"], group["eps"]
                )
                for i, update in zip(places, some, strict=True):
                    learning[i].add_(update, alpha=-group["lr"] * _scale_of(update.shape))

    def _buffer(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def _scale_of(shape: torch.Size) -> float:
    return 0.2 * math.sqrt(max(shape))


def _by_shape(matrices: Sequence[Tensor]) -> list[list[int]]:
    """The places of the matrices of each shape."""
    places: dict[torch.Size, list[int]] = {}
    for place, matrix in enumerate(matrices):
        places.setdefault(matrix.shape, []).append(place)
    return list(places.values())


def orthogonal(
    matrices: Sequence[Tensor], coefficients: tuple[float, float, float], steps: int, epsilon: float
) -> Tensor:
    """The nearest orthogonal matrices [n, rows, columns], in bfloat16, to `matrices` of one shape, roughly: by `steps`
    of a Newton-Schulz iteration, as torch does it for one matrix."""
    a, b, c = coefficients
    stacked = torch.stack([matrix.bfloat16() for matrix in matrices])
    is_tall = stacked.shape[1] > stacked.shape[2]
    # One norm per matrix: a norm over two dimensions of the stack sums in another order.
    norms = torch.stack([matrix.norm() for matrix in stacked]).clamp(min=epsilon)
    stacked = stacked / norms[:, None, None]
    stacked = stacked.mT.contiguous() if is_tall else stacked
    for _ in range(steps):
        gram = stacked @ stacked.mT
        stacked = torch.baddbmm(stacked, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), stacked, beta=a)
    return stacked.mT if is_tall else stacked


class MuonWithAdamW(torch.optim.Optimizer):
    """One optimiser over two. Each group of `groups` has `named`, a list of (name, parameter), and `lr`, the learning
    rate of AdamW; Muon's is `RATE` times that.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], weight_decay: float = 0.0) -> None:
        split = [(group, wanted) for wanted in (True, False) for group in groups]
        made = [(_group(group, wanted), wanted) for group, wanted in split]
        muon, adamw = (
            [group for group, is_muon in made if is_muon is wanted and group["params"]] for wanted in (True, False)
        )
        self.parts: list[Any] = []
        if muon:
            self.parts.append(BatchedMuon(muon, weight_decay=weight_decay, adjust_lr_fn=ADJUST))
        if adamw:
            # Of the many small tensors of a tiny model, each takes a dozen operations otherwise.
            is_on_cpu = all(p.device.type == "cpu" for group in adamw for p in group["params"])
            self.parts.append(torch.optim.AdamW(adamw, weight_decay=weight_decay, fused=is_on_cpu or None))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._link()

    def _link(self) -> None:
        """Let the two work on the groups and the state of this optimiser, which are saved and scheduled."""
        start = 0
        for part in self.parts:
            end = start + len(part.param_groups)
            part.param_groups, part.state, start = self.param_groups[start:end], self.state, end

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step all parameters."""
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._link()


def _group(group: dict[str, Any], is_muon: bool) -> dict[str, Any]:
    named: Sequence[tuple[str, nn.Parameter]] = group["named"]
    params = [parameter for name, parameter in named if is_layer_matrix(name, parameter) is is_muon]
    return {"params": params, "lr": group["lr"] * (RATE if is_muon else 1.0)}


def muon_with_adamw(groups: Sequence[dict[str, Any]], weight_decay: float, model: nn.Module) -> MuonWithAdamW:
    """The optimiser of groups with `params` and `lr`, whose parameters are those of `model`."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    named = [{"named": [(name_of[id(p)], p) for p in group["params"]], "lr": group["lr"]} for group in groups]
    return MuonWithAdamW(named, weight_decay)
