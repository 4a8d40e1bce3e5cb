"""Stands in for CUDA graphs on any device: records what work does to tensors, and does the same to the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as trees
from torch.utils._python_dispatch import TorchDispatchMode

T = TypeVar("T")


class RecordedGraphs:
    """A `Capture`. As a CUDA graph does, what it repeats knows nothing of Python, reads and writes at the addresses of
    the first time, and puts its results there. Before each time, all that graphs have made in their memory is NaN: what
    lives longer must have been copied.

    Attributes:
        graphs: Those that were captured, first to last.
    """

    def __init__(self) -> None:
        self.graphs: list[_Graph] = []

    def __call__(self, work: Callable[[], T]) -> Callable[[], T]:
        graph = _Graph(work)
        self.graphs.append(graph)

        def replay() -> T:
            for each in self.graphs:
                each.spoil()
            return graph.run()

        return replay


class _Graph:
    def __init__(self, work: Callable[[], Any]) -> None:
        self._work: Callable[[], Any] | None = work
        self._operations: list[tuple[Callable[..., Any], Any, dict[str, Any], list[Tensor]]] = []
        self.result: Any = None
        self.num_runs = 0

    def run(self) -> Any:
        self.num_runs += 1
        if self._work is None:
            for operation, args, kwargs, made in self._operations:
                for same, new in zip(made, _new_tensors(operation(*args, **kwargs), args, kwargs), strict=True):
                    same.copy_(new)
            return self.result
        with _Recording(self._operations):  # to capture runs nothing, so what is recorded is the first run
            self.result = self._work()
        self._work = None
        return self.result

    def spoil(self) -> None:
        for *_, made in self._operations:
            for tensor in made:
                if tensor.is_floating_point():
                    tensor.fill_(torch.nan)


class _Recording(TorchDispatchMode):
    def __init__(self, operations: list[Any]) -> None:
        super().__init__()
        self._operations = operations

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise RuntimeError(f"{operation} waits for the device, which a graph cannot")
        result = operation(*args, **(kwargs or {}))
        self._operations.append((operation, args, kwargs or {}, _new_tensors(result, args, kwargs)))
        return result


def _new_tensors(result: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors of a result that are no views of the arguments, and not these themselves."""
    of_arguments = {_storage(each) for each in trees.tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
    tensors = [each for each in trees.tree_leaves(result) if isinstance(each, Tensor)]
    return [each for each in tensors if each.numel() and _storage(each) not in of_arguments]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
