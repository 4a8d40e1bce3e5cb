"""How the benchmarks measure: clocks, memory, works that take turns, and rows of the table. Nothing of models here.

torch is imported where memory is measured: many benchmarks need none, and each file of them runs in its own process.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipelines.settings import prepare_process
from tests.benchmarks.rows import SCALE, Row, keep


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
        from vsr1_core.models.peak_memory import PeakMemory

        with PeakMemory(clock.device, resident_bytes) as memory:
            started = clock()
            self.result = work()
            self.seconds.append(clock() - started)
        self.peak_bytes = max(self.peak_bytes, memory.peak_bytes)


def as_of_a_command() -> dict[str, str]:
    """The environment of a process that `vsr1` starts in that of this one. What polars' allocator was told is taken
    from it, as polars puts its own defaults there when it is imported."""
    environ = {name: value for name, value in os.environ.items() if name != "_RJEM_MALLOC_CONF"}
    prepare_process(environ)
    return environ


def resident_bytes() -> float:
    """The resident set of this process; it includes what the allocator has not given back."""
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * 4096


@dataclass(frozen=True)
class Clock:
    """Seconds, once the device has done what it was asked to: of the wall, of this process's processor time (`cpu`), or
    of that of the processes that it started and waited for (`children`)."""

    device: str
    kind: str = "wall"

    def __call__(self) -> float:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        if self.kind == "children":
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            return used.ru_utime + used.ru_stime
        return time.process_time() if self.kind == "cpu" else time.perf_counter()


PROCESSOR, CHILDREN, WALL = Clock("cpu", "cpu"), Clock("cpu", "children"), Clock("cpu")


def interleaved(repeats: int, clock: Clock, *works: Callable[[], Any]) -> list[Measured]:
    """Each work `repeats` times in turn: a busy machine slows all of them alike."""
    measured = [Measured() for _ in works]
    for _ in range(repeats):
        for one, work in zip(measured, works, strict=True):
            one.run(work, clock)
    return measured


def line(
    name: str,
    plain: str,
    ours: str,
    ratio: float | None = None,
    wanted: str = "",
    *,
    against: str = "",
    judged: float | None = None,
) -> str:
    """Add a row to the table, and return it as a line of what a benchmark prints; see `rows.Row`."""
    row = Row(name, against, plain, ours, ratio, wanted, judged)
    keep(row)
    shown = "" if ratio is None else f"{ratio:>8.2f}x   {row.bound}"
    return f"{name:46}{plain:>12}{ours:>12}{shown}"


def not_measured(name: str, against: str, why: str) -> str:
    """Add a row without numbers: why begins with `skipped: ` or `failed: `."""
    keep(Row(name, against, why=why))
    return f"{name}, {against}: {why}"


def scaled(number: int) -> int:
    """A size, as large as this run wants it."""
    return max(1, round(number * float(os.environ.get(SCALE, "1"))))


def milliseconds(*seconds: float) -> list[str]:
    return [f"{s * 1e3:.2f} ms" for s in seconds]


def in_seconds(*seconds: float) -> list[str]:
    return [f"{s:.2f} s" for s in seconds]


def megabytes(count: float) -> str:
    mebibytes = count / 2**20
    return f"{mebibytes:,.0f} MiB" if mebibytes >= 10 else f"{mebibytes:.2g} MiB"
