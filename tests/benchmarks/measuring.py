"""How the benchmarks measure: clocks, memory, works that take turns, and lines of a table. Nothing of models here."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from vsr1_core.models.peak_memory import PeakMemory


@dataclass
class Measured:
    """Seconds of each repeat, the highest memory of any, and what the work returned last."""

    seconds: list[float] = field(default_factory=list)
    peak_bytes: float = 0
    result: Any = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def run(self, work: Callable[[], Any], clock: Clock) -> None:
        with PeakMemory(clock.device, resident_bytes) as memory:
            started = clock()
            self.result = work()
            self.seconds.append(clock() - started)
        self.peak_bytes = max(self.peak_bytes, memory.peak_bytes)


def resident_bytes() -> float:
    """The resident set of this process; it includes what the allocator has not given back."""
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * 4096


@dataclass(frozen=True)
class Clock:
    """Seconds, once the device has done what it was asked to: of the wall, or of this process's processor time."""

    device: str
    kind: str = "wall"

    def __call__(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if self.kind == "cpu" else time.perf_counter()


def interleaved(repeats: int, clock: Clock, *works: Callable[[], Any]) -> list[Measured]:
    """Each work `repeats` times in turn: a busy machine slows all of them alike."""
    measured = [Measured() for _ in works]
    for _ in range(repeats):
        for one, work in zip(measured, works, strict=True):
            one.run(work, clock)
    return measured


def line(name: str, plain: str, ours: str, ratio: float | None = None, wanted: str = "") -> str:
    shown = "" if ratio is None else f"{ratio:>8.2f}x   {wanted}"
    return f"{name:46}{plain:>12}{ours:>12}{shown}"


def milliseconds(*seconds: float) -> list[str]:
    return [f"{s * 1e3:.2f}" for s in seconds]


def megabytes(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB"
