"""Several processes that train one model: each takes its share of every step, and their gradients become one.

The losses run parts of the policy and never its forward, which DistributedDataParallel hooks into; so gradients are
averaged here, between the backward pass and clipping. A loss is a sum over the rows (or tokens) of a process, divided
by the mean count of all, so that the average is the mean over all of them: two processes train what one does.
Differences: stage 2's samples are drawn in each process, and the curve is of the first one's share.
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
"""Elements."""


def share_of(total: int, what: str) -> int:
    """How many of a step's `total` rows each process takes. ValueError where they cannot be shared evenly."""
    processes = PartialState().num_processes
    if total % processes:
        raise ValueError(
            f"a step of {total} {what} cannot be shared by {processes} processes; set VSR1_PROCESSES to a number that "
            f"{total} can be divided by, or change the recipe"
        )
    return total // processes


def local_share(items: Sequence[T]) -> list[T]:
    """This process's share of a step's rows, which all processes know: every n-th item, of n processes."""
    state = PartialState()
    return list(items[state.process_index :: state.num_processes])


def gather(items: Sequence[T]) -> list[T]:
    """The items of all processes, those of the first one first."""
    return list(gather_object(list(items)))


def shared_mean(total: Tensor, count: int) -> Tensor:
    """What each process's sum over `count` items adds to the mean over the items of all, once gradients are averaged.
    0 where nobody has any."""
    state = PartialState()
    if state.num_processes == 1:
        return total / max(count, 1)
    counts = torch.tensor(float(count), device=total.device)
    torch.distributed.all_reduce(counts)
    return total * state.num_processes / counts.clamp(min=1)


def all_gather_rows(rows: Tensor) -> Tensor:
    """[B, D] -> [processes * B, D]: the rows of all processes, each with as many. Gradients reach this one's only: a
    loss over all of them is to be multiplied by the number of processes, as gradients are averaged."""
    state = PartialState()
    if state.num_processes == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(state.num_processes)]
    torch.distributed.all_gather(parts, rows.detach().contiguous())
    parts[state.process_index] = rows
    return torch.cat(parts)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over all processes; none counts as zero where another one has it."""
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
    """Gradients of one type to be sent at once: a small model's many would each wait for the slowest process."""
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
    """Mixed into a trainer: gradients are averaged when they are complete, and the model is not wrapped for it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Nothing calls the wrapped forward, so a wrapper would only hold a second copy of all gradients.
        self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            average_gradients(self.model.parameters())
        return loss
