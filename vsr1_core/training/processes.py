"""Several processes that train one model: each takes its share of every step, and their gradients become one.

The losses run parts of the policy and never its forward, which DistributedDataParallel hooks into; so gradients are
averaged here, between the backward pass and clipping. A loss is a sum over the rows (or tokens) of a process, divided
by the mean count of all, so that the average is the mean over all of them: two processes train what one does.
Differences: random negatives and samples are drawn in each process, and the curve is of the first one's share.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import Trainer


def share_of(total: int, what: str) -> int:
    """How many of a step's `total` rows each process takes. ValueError where they cannot be shared evenly."""
    processes = PartialState().num_processes
    if total % processes:
        raise ValueError(
            f"a step of {total} {what} cannot be shared by {processes} processes; set VSR1_PROCESSES to a number that "
            f"{total} can be divided by, or change the recipe"
        )
    return total // processes


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter], processes: int) -> None:
    """Replace each gradient by its mean over all processes; none counts as zero where another one has it."""
    trained = [p for p in parameters if p.requires_grad]
    has_gradient = torch.tensor([p.grad is not None for p in trained], dtype=torch.float32, device=trained[0].device)
    torch.distributed.all_reduce(has_gradient)
    for parameter, number in zip(trained, has_gradient.tolist(), strict=True):
        if number:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= processes


class SharedSteps(Trainer):
    """Mixed into a trainer: gradients are averaged when they are complete, and the model is not wrapped for it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Nothing calls the wrapped forward, so a wrapper would only hold a second copy of all gradients.
        self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.num_processes > 1 and self.accelerator.sync_gradients:
            average_gradients(self.model.parameters(), self.accelerator.num_processes)
        return loss
