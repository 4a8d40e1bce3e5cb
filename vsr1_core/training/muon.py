"""Muon for the matrices of layers and AdamW for all other parameters, as one optimiser of torch.

As one optimiser it fits where a trainer expects one: schedules, accelerate, saving and resuming.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

RATE = 2.0
"""Muon's learning rate as a multiple of AdamW's."""
ADJUST = "match_rms_adamw"
"""Orthogonal steps are scaled to the size of AdamW's."""


def is_layer_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon steps the parameter: a matrix between layers, and no table of words."""
    return parameter.ndim == 2 and "embed" not in name and "lm_head" not in name


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
            self.parts.append(torch.optim.Muon(muon, weight_decay=weight_decay, adjust_lr_fn=ADJUST))
        if adamw:
            self.parts.append(torch.optim.AdamW(adamw, weight_decay=weight_decay))
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
