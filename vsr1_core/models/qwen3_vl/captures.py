"""Work of many small kernels that is done again and again on tensors of the same shapes: on a GPU, launching these
kernels from Python takes many times longer than running them. So there the work is captured as a CUDA graph, which
launches all its kernels at once. A graph has fixed shapes and addresses, and knows nothing of Python: what changes from
one time to the next has to be in tensors.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class SideBySide:
    """The tensors of a structure, those of a dtype in one buffer: a few kernels copy all of them.

    buffers: [n] of each dtype, or [S, n] of S times the same structure. order: of the tensors in these buffers.
    """

    buffers: list[Tensor]
    order: list[list[int]]
    shapes: list[torch.Size]
    structure: trees.TreeSpec

    @classmethod
    def of(cls, structure: Any) -> SideBySide:
        """Copies of the tensors of a structure, which may be one already."""
        if isinstance(structure, SideBySide):
            return structure
        tensors, spec = trees.tree_flatten(structure)
        # Tensors of odd sizes stand last: products and vectorised kernels want addresses that are multiples of 16.
        places = sorted(range(len(tensors)), key=lambda i: tensors[i].numel() % 16 > 0)
        order = [[i for i in places if tensors[i].dtype == dtype] for dtype in dict.fromkeys(t.dtype for t in tensors)]
        buffers = [torch.cat([tensors[i].reshape(-1) for i in some]) for some in order]
        return cls(buffers, order, [tensor.shape for tensor in tensors], spec)

    @staticmethod
    def stacked(several: Sequence[SideBySide]) -> SideBySide:
        """Several of the same kind, S, as one."""
        buffers = zip(*(each.buffers for each in several), strict=True)
        return replace(several[0], buffers=[torch.stack(parts) for parts in buffers])

    def apart(self) -> Any:
        """The structure, of views of the buffers: of the shapes that the tensors had, or [S, *shape]."""
        tensors: list[Any] = [None] * len(self.shapes)
        for buffer, order in zip(self.buffers, self.order, strict=True):
            parts = buffer.split([math.prod(self.shapes[i]) for i in order], dim=-1)
            for i, part in zip(order, parts, strict=True):
                tensors[i] = part.view(buffer.shape[:-1] + self.shapes[i])
        return trees.tree_unflatten(tensors, self.structure)

    def clone(self) -> SideBySide:
        return replace(self, buffers=[buffer.clone() for buffer in self.buffers])

    def copy_(self, other: SideBySide) -> None:
        for buffer, of_other in zip(self.buffers, other.buffers, strict=True):
            buffer.copy_(of_other)


def apart(structure: Any) -> Any:
    """A structure of tensors, which may be `SideBySide`."""
    return structure.apart() if isinstance(structure, SideBySide) else structure


class Repeated:
    """Work on tensors, and on structures of many, which it must not change; it returns such, too. All are of the same
    shapes each time. It is captured, once the first work of its name has run from Python on the device: that prepares
    the libraries.
    """

    _prepared: set[tuple[str, torch.device]] = set()

    def __init__(self, work: Callable[..., Sequence[Any]], capture: Capture | None, name: str) -> None:
        """capture: None runs the work from Python each time."""
        self._work, self._capture, self._name = work, capture, name
        self._again: tuple[Sequence[Any], Callable[[], Sequence[Any]]] | None = None

    def __call__(self, *arguments: Any) -> Sequence[Any]:
        """What the work returns, in memory of its own. The first argument is a tensor. Structures may be `SideBySide`,
        and are if they come of what was captured: to take them apart costs more than to launch a graph."""
        kind = self._name, arguments[0].device
        if self._capture and not self._again and kind in self._prepared:
            self._again = self._captured(self._capture, arguments)
        if not self._again:
            self._prepared.add(kind)
            return self._work(*map(apart, arguments))
        inputs, again = self._again
        for mine, given in zip(inputs, arguments, strict=True):
            mine.copy_(_with_few_buffers(given))
        return [each.clone() for each in again()]

    def release(self) -> None:
        """Let go of the memory of what was captured."""
        self._again = None

    def _captured(self, capture: Capture, arguments: Any) -> tuple[Sequence[Any], Callable[[], Sequence[Any]]] | None:
        inputs, work = [_with_few_buffers(each).clone() for each in arguments], self._work
        again = captured(capture, lambda: [_with_few_buffers(each) for each in work(*map(apart, inputs))], self._name)
        if again is None:
            self._capture = None
            return None
        return inputs, again


def _with_few_buffers(argument: Any) -> Any:
    return argument if isinstance(argument, Tensor) else SideBySide.of(argument)


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
