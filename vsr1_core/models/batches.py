"""Forms the batches in which models run: by measured sizes and the memory that is free, and never by rows alone.

This is the only place that does so. A batch that runs out of memory all the same is split, and the budget is halved
from then on. What is computed for a row does not depend on its batch, up to rounding.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from vsr1_core.models.memory import CPU_MOST, CPU_SHARE, GIB, GPU_SHARE, free_bytes

T = TypeVar("T")
R = TypeVar("R")

GPU_AHEAD = 8 << 30
"""Bytes of inputs that are made ahead of a GPU, at most: more than a batch of 32 videos of 64 frames."""
CPU_AHEAD_SHARE = 0.25
"""Share of the budget of a pass on a CPU that inputs may take which are made ahead of it."""


def _warn(line: str) -> None:
    warnings.warn(line, RuntimeWarning, stacklevel=3)


@dataclass
class Budget:
    """How many bytes one pass of a model may take; one budget serves all models of a process.

    log: is told once if the memory did not suffice. limit: bytes that no pass may exceed, whatever is free; it is
    halved when a pass runs out of memory.
    """

    log: Callable[[str], None] = _warn
    limit: float = float("inf")
    _was_said: bool = field(default=False, init=False)

    def bytes_on(self, device: torch.device) -> float:
        """What the next pass on `device` may take."""
        free = free_bytes(device)
        allowed = GPU_SHARE * free if device.type == "cuda" else min(CPU_SHARE * free, CPU_MOST)
        return min(self.limit, allowed)

    def bytes_ahead(self, device: torch.device) -> float:
        """What inputs may take in the memory of the machine that are made before the model on `device` needs them."""
        if device.type == "cuda":
            return min(CPU_SHARE * free_bytes(torch.device("cpu")), GPU_AHEAD)
        return CPU_AHEAD_SHARE * self.bytes_on(device)

    def batches(
        self, items: Iterable[T], bytes_of: Callable[[Sequence[T]], float], device: torch.device, max_rows: int
    ) -> Iterator[list[T]]:
        """Consecutive items in batches that fit into the budget, of at most `max_rows`; an item that does not fit is a
        batch of its own, which the work may split further. bytes_of: what a pass over these items takes. Items are
        taken as they are needed."""
        batch: list[T] = []
        allowed = self.bytes_on(device)
        for item in items:
            if batch and (len(batch) == max_rows or bytes_of([*batch, item]) > allowed):
                yield batch
                batch, allowed = [], self.bytes_on(device)
            batch.append(item)
        if batch:
            yield batch

    def map(
        self,
        items: Iterable[T],
        bytes_of: Callable[[Sequence[T]], float],
        work: Callable[[list[T]], Iterable[R]],
        device: torch.device,
        max_rows: int,
    ) -> Iterator[tuple[T, R]]:
        """Each item with its result, in order. work: one pass over a batch (see `batches`), a result for each item.

        Raises MemoryError if a single item does not fit into the memory of `device`.
        """
        for batch in self.batches(items, bytes_of, device, max_rows):
            yield from self._run(batch, bytes_of, work, device)

    def _run(
        self,
        batch: list[T],
        bytes_of: Callable[[Sequence[T]], float],
        work: Callable[[list[T]], Iterable[R]],
        device: torch.device,
    ) -> Iterator[tuple[T, R]]:
        results: list[R] | None = None
        try:
            results = list(work(batch))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise MemoryError(
                    f"{device} has too little memory for one row, which needs about {bytes_of(batch) / GIB:.1f} GiB: "
                    f"{error}; use fewer or smaller frames (frames.max_frames, frames.max_pixels), or a larger device"
                ) from error
        if results is not None:
            yield from zip(batch, results, strict=True)
            return
        # Outside the except block, whose traceback holds the tensors of the pass that failed.
        self._halve(bytes_of(batch), len(batch), device)
        yield from self.map(batch, bytes_of, work, device, len(batch))

    def _halve(self, needed: float, num_rows: int, device: torch.device) -> None:
        self.limit = min(self.limit, needed, self.bytes_on(device)) / 2
        if not self._was_said:
            self._was_said = True
            self.log(
                f"{device} ran out of memory with a batch of {num_rows} rows; batches are halved from here on, to "
                f"{self.limit / GIB:.2f} GiB at first, and the work goes on"
            )
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory could not be allocated, on a GPU, by torch on a CPU, or by Python."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU_WORDS)


_CPU_WORDS = ("can't allocate memory", "not enough memory", "Cannot allocate memory", "out of memory")
"""How torch's allocator of a CPU says it (on Linux, Windows, by the system's message), and cuBLAS and cuDNN."""
