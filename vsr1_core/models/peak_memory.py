"""The most memory that this process holds while something runs, on a GPU or on a CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import torch

_EVERY_S = 0.01


def anonymous_bytes() -> float:
    """Memory of this process that is no file's: the pages of mapped weights can be dropped at any time."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon:"))
        return float(line.split()[1]) * 1024
    import psutil

    return float(psutil.Process().memory_info().rss)


class PeakMemory:
    """A context that measures memory: allocated bytes on a GPU; on a CPU, what `held` says, looked at every 10 ms.

    peak_bytes: the most that was held. grown_bytes: how much of it came on top of what was held at the start.
    """

    def __init__(self, device: str, held: Callable[[], float] = anonymous_bytes) -> None:
        self.is_cuda = torch.device(device).type == "cuda"
        self.held: Callable[[], float] = torch.cuda.memory_allocated if self.is_cuda else held
        self.before = self.peak_bytes = 0.0

    @property
    def grown_bytes(self) -> float:
        return self.peak_bytes - self.before

    def __enter__(self) -> PeakMemory:
        self.before = self.peak_bytes = self.held()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_cuda:
            self.peak_bytes = torch.cuda.max_memory_allocated()
        else:
            self._ended.set()
            self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY_S):
            self.peak_bytes = max(self.peak_bytes, self.held())
