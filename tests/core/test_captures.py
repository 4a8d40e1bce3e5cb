"""Work that is captured, by itself: what a replay costs in Python, and tensors that stand side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.core.recorded_graphs import RecordedGraphs
from vsr1_core.models.qwen3_vl.captures import Repeated, SideBySide, apart

T = TypeVar("T")
SHAPES = [(3, 16), (5,), (2, 8, 4), (0,), (), (1, 32)]


class Calls(TorchDispatchMode):
    """Counts operations that make or change tensors."""

    num = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num += not operation.is_view
        return operation(*args, **(kwargs or {}))


def many(number: int) -> dict[str, Any]:
    made = [torch.full(shape, float(number + i)) for i, shape in enumerate(SHAPES)]
    return {"one": made, "other": ([each.to(torch.bfloat16) for each in made], made[0].long())}


def test_what_stands_side_by_side_is_the_same_and_aligned() -> None:
    both = [SideBySide.of(many(number)) for number in (0, 50)]
    assert [len(each.buffers) for each in both] == [3, 3], "one for each dtype"
    for number, each in zip((0, 50), both, strict=True):
        torch.testing.assert_close(each.apart(), many(number), atol=0, rtol=0)
        of_odd_size = [tensor for tensor in each.apart()["other"][0] if tensor.data_ptr() % 16]
        assert all(tensor.numel() % 16 for tensor in of_odd_size)
    stacked = SideBySide.stacked(both).apart()
    for i, shape in enumerate(SHAPES):
        expected = torch.stack([torch.full(shape, float(i)), torch.full(shape, float(50 + i))])
        torch.testing.assert_close(stacked["one"][i], expected, atol=0, rtol=0)
    assert SideBySide.of({}).clone().apart() == {}


def test_a_replay_copies_a_few_buffers_however_many_tensors_there_are() -> None:
    def work(tensor: Tensor, structure: Any) -> tuple[Tensor, Any]:
        return tensor + 1, [each * tensor for each in structure]

    def capture(work: Callable[[], T]) -> Callable[[], T]:
        made = work()
        return lambda: made

    def calls(num_tensors: int) -> int:
        repeated = Repeated(work, capture, f"{num_tensors} products")
        given = torch.ones(16), SideBySide.of([torch.ones(16)] * num_tensors)
        for _ in range(2):
            repeated(*given)
        with Calls() as counted:
            repeated(*given)
        return counted.num

    assert calls(3) == calls(300) <= 6


def test_captured_work_returns_what_it_returns_from_python_in_memory_of_its_own() -> None:
    """Of structures apart and side by side, also those that it has returned."""

    def work(tensor: Tensor, structure: Any) -> tuple[Tensor, Any]:
        return tensor * 2, {"sum": structure["sum"] + tensor, "odd": structure["odd"] - 1}

    graphs = RecordedGraphs()
    repeated = Repeated(work, graphs, "a sum")
    given = {"sum": torch.zeros(16), "odd": torch.zeros(3)}
    returned: list[Any] = []
    for number in range(5):
        returned.append(repeated(torch.full((16,), float(number)), returned[-1][1] if number % 2 else given))
    for number, (doubled, structure) in enumerate(returned):
        before = number - 1 if number % 2 else 0
        assert set(doubled.tolist()) == {2.0 * number}
        assert set(apart(structure)["sum"].tolist()) == {float(number + before)}
        assert set(apart(structure)["odd"].tolist()) == {-2.0 if number % 2 else -1.0}
    assert [isinstance(structure, SideBySide) for _, structure in returned] == [False, True, True, True, True]
    assert [graph.num_runs for graph in graphs.graphs] == [4]
