"""Work of many small kernels that is done again and again on tensors of the same shapes: on a GPU, launching these
kernels from Python takes many times longer than running them. So there the work is captured as a CUDA graph, which
launches all its kernels at once. A graph has fixed shapes and addresses, and knows nothing of Python: what changes from
one time to the next has to be in tensors.
"""

from __future__ import annotations

import functools
import logging
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as trees

T = TypeVar("T")
_log = logging.getLogger(__name__)
_CAPTURING = threading.Lock()
"""One thread captures at a time, because all use one stream."""


class Capture(Protocol):
    """Makes from work one that does the same again on the same tensors, and returns the same tensors, newly filled. To
    capture the work does not do it. Work of the same `Capture` may share memory: what is returned is there until any
    of it is done again."""

    def __call__(self, work: Callable[[], T]) -> Callable[[], T]: ...


def capture_on(device: torch.device) -> Capture | None:
    """How work is captured on a device; None where launching a kernel costs next to nothing."""
    return CudaGraphs(device) if device.type == "cuda" else None


def captured(capture: Capture, work: Callable[[], T], name: str) -> Callable[[], T] | None:
    """`work`, captured. None, and a warning that names it, where that is not possible: then nothing was done."""
    try:
        return capture(work)
    except RuntimeError as error:
        _log.warning("%s could not be captured, so each kernel is launched by itself: %s", name, error)
        return None


class Repeated:
    """Work on the tensors of its arguments, whose structure and shapes are the same each time, and which it must not
    change; the first argument is a tensor. It is captured, once the first work of its name has run from Python on the
    device: that prepares the libraries.
    """

    _prepared: set[tuple[str, torch.device]] = set()

    def __init__(self, work: Callable[..., Any], capture: Capture | None, name: str) -> None:
        """capture: None runs the work from Python each time."""
        self._work, self._capture, self._name = work, capture, name
        self._again: tuple[_SideBySide, Callable[[], Any]] | None = None

    def __call__(self, *arguments: Any) -> Any:
        """What the work returns: tensors of their own, in lists, tuples and dicts."""
        kind = self._name, arguments[0].device
        if self._again is not None:
            self._again[0].fill(arguments)
        elif self._capture and kind in self._prepared:
            self._again = self._captured(self._capture, arguments)
        if self._again is None:
            self._prepared.add(kind)
            return self._work(*arguments)
        return _SideBySide(self._again[1]()).tree

    def release(self) -> None:
        """Let go of the memory of what was captured."""
        self._again = None

    def _captured(self, capture: Capture, arguments: Any) -> tuple[_SideBySide, Callable[[], Any]] | None:
        inputs, work = _SideBySide(arguments), self._work
        again = captured(capture, lambda: work(*inputs.tree), self._name)
        if again is None:
            self._capture = None
            return None
        return inputs, again


class _SideBySide:
    """Copies of the tensors of a structure, those of a dtype in one buffer: so a few kernels fill all of them."""

    def __init__(self, tree: Any) -> None:
        tensors, structure = trees.tree_flatten(tree)
        # Tensors of odd sizes stand last: products and vectorised kernels want addresses that are multiples of 16.
        order = sorted(range(len(tensors)), key=lambda i: tensors[i].numel() % 16 > 0)
        self._places = {dtype: [i for i in order if tensors[i].dtype == dtype] for dtype in {t.dtype for t in tensors}}
        self._buffers: dict[torch.dtype, Tensor] = {}
        copies = list(tensors)
        for dtype, places in self._places.items():
            self._buffers[dtype] = torch.cat([tensors[i].reshape(-1) for i in places])
            parts = self._buffers[dtype].split([tensors[i].numel() for i in places])
            for i, part in zip(places, parts, strict=True):
                copies[i] = part.view(tensors[i].shape)
        self.tree = trees.tree_unflatten(copies, structure)

    def fill(self, tree: Any) -> None:
        """Copy the tensors of a structure that is the same."""
        tensors = trees.tree_leaves(tree)
        for dtype, places in self._places.items():
            torch.cat([tensors[i].reshape(-1) for i in places], out=self._buffers[dtype])


class CudaGraphs:
    """Captures work as CUDA graphs, which share memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory: _Memory | None = None

    def __call__(self, work: Callable[[], T]) -> Callable[[], T]:
        with _CAPTURING:
            self._memory = self._memory or _Memory(self._device)
            return _Replay(*_capture(self._device, work, self._memory.pool), self._memory)


@dataclass(frozen=True)
class _Replay(Generic[T]):
    graph: torch.cuda.CUDAGraph
    result: T
    memory: _Memory

    def __call__(self) -> T:
        self.graph.replay()
        return self.result


class _Memory:
    """The memory of the graphs of one `CudaGraphs`; those that come after it use it again. Else torch would take new
    memory for every pass of a training, and give that of the earlier ones back when there is no other left."""

    _free: dict[torch.device, list[torch.cuda.CUDAGraph]] = {}

    def __init__(self, device: torch.device) -> None:
        free = self._free.setdefault(device, [])
        # torch 2.11 fails an assertion where a pool is used again whose last graph is gone: so one stays.
        graph = free.pop() if free else _capture(device, lambda: torch.zeros(1, device=device))[0]
        self.pool = graph.pool()
        weakref.finalize(self, free.append, graph).atexit = False


def _capture(device: torch.device, work: Callable[[], T], pool: Any | None = None) -> tuple[torch.cuda.CUDAGraph, T]:
    graph, stream = torch.cuda.CUDAGraph(), _stream(device)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Other threads load frames and features meanwhile: their allocations are no business of the capture.
        graph.capture_begin(pool, capture_error_mode="thread_local")
        try:
            result = work()
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph, result


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which work is captured: the libraries keep memory of their own for each stream."""
    return torch.cuda.Stream(device)
