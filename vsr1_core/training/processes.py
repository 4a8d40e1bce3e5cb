"""Several processes that train one model: each computes its share of every step, and their gradients are averaged.

The losses run parts of the policy but never its forward method, which DistributedDataParallel hooks into; so gradients
are averaged here, between the backward pass and clipping. A loss is a sum over the rows (or tokens) of a process,
divided by the mean count over the processes, so that the average is the mean over the rows of all processes: two
processes train the same weights as one. There are three differences: each process draws its own samples in stage 2,
the curve shows the share of the first process, and where stage 1 takes one pass (`steps` 0) whose rows do not fill the
last step, accelerate fills it with the first rows, so that each process has as many.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import Trainer

T = TypeVar("T")
BUCKET_SIZE = 16_000_000
"""How many elements of gradients are sent at once."""


def share_of(total: int, what: str) -> int:
    """How many of the `total` rows of a step each process takes. Raises ValueError if they cannot be shared evenly."""
    processes = PartialState().num_processes
    if total % processes:
        raise ValueError(
            f"a step of {total} {what} cannot be shared by {processes} processes; set VSR1_PROCESSES to a number that "
            f"divides {total}, or change the configuration"
        )
    return total // processes


def local_share(items: Sequence[T]) -> list[T]:
    """The share of this process in the rows of a step, which all n processes know: every n-th item."""
    state = PartialState()
    return list(items[state.process_index :: state.num_processes])


def gather(items: Sequence[T]) -> list[T]:
    """The items of all processes, in the order of the processes."""
    return list(gather_object(list(items)))


def shared_mean(total: Tensor, count: int) -> Tensor:
    """Scale `total`, the sum over the `count` items of this process, so that averaging gradients over the processes
    gives the mean over the items of all processes. 0 if no process has any items."""
    state = PartialState()
    if state.num_processes == 1:
        return total / max(count, 1)
    counts = torch.tensor(float(count), device=total.device)
    torch.distributed.all_reduce(counts)
    return total * state.num_processes / counts.clamp(min=1)


def all_gather_rows(rows: Tensor) -> Tensor:
    """Gather the rows [B, D] of all processes, each of which has B, as [processes * B, D]. Gradients reach only the
    rows of this process, so a loss over all rows has to be multiplied by the number of processes, because gradients
    are averaged afterwards."""
    state = PartialState()
    if state.num_processes == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(state.num_processes)]
    torch.distributed.all_gather(parts, rows.detach().contiguous())
    parts[state.process_index] = rows
    return torch.cat(parts)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over all processes. A gradient that only some processes have counts as zero in
    the others."""
    processes = PartialState().num_processes
    if processes == 1:
        return
    trained = [p for p in parameters if p.requires_grad]
    has_gradient = torch.tensor([p.grad is not None for p in trained], dtype=torch.float32, device=trained[0].device)
    torch.distributed.all_reduce(has_gradient)
    learning = [p for p, number in zip(trained, has_gradient.tolist(), strict=True) if number]
    for parameter in learning:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for some in _buckets([p.grad for p in learning if p.grad is not None]):
        flat = torch.cat([gradient.flatten() for gradient in some])
        torch.distributed.all_reduce(flat)
        parts = (flat / processes).split([gradient.numel() for gradient in some])
        for gradient, mean in zip(some, parts, strict=True):
            gradient.copy_(mean.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Groups of gradients of one type that are sent at once. If the many gradients of a small model were sent one by
    one, each would wait for the slowest process."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and (
            gradient.dtype != bucket[0].dtype or sum(g.numel() for g in bucket) + gradient.numel() > BUCKET_SIZE
        ):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


class SharedSteps(Trainer):
    """A mixin for a trainer that averages gradients when they are complete, without wrapping the model."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The losses do not call the model's forward, so a wrapper would only hold a second copy of all gradients.
        self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            average_gradients(self.model.parameters())
        return loss
