"""Batches by budget: what they hold, that results do not depend on them, and what happens when memory runs out."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.core.tiny_models import random_video, tiny_embedder, tiny_policy
from vsr1_core.models import batches, memory
from vsr1_core.models.batches import Budget, is_out_of_memory
from vsr1_core.models.feature_store import FeatureStore
from vsr1_core.models.memory import Passes, weight_bytes
from vsr1_core.models.protocols import DecodeSettings, VideoFrames
from vsr1_core.models.query_vectors import SoftTokens, embedded_queries
from vsr1_core.models.video_vectors import embedded_videos
from vsr1_core.search.episodes import verify
from vsr1_core.stages import loading
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.loading import budget_of

CPU = torch.device("cpu")


def sizes(items: Sequence[int]) -> float:
    return float(sum(items))


def test_a_batch_holds_what_fits_and_at_most_so_many_rows() -> None:
    made = list(Budget(limit=10).batches([3, 3, 3, 3, 12, 1, 1, 1, 1], sizes, CPU, 3))
    assert made == [[3, 3, 3], [3], [12], [1, 1, 1], [1]], "an item above the budget is a batch of its own"


def test_items_are_taken_as_they_are_needed() -> None:
    taken: list[int] = []
    items = (taken.append(i) or 1 for i in range(9))  # type: ignore[func-returns-value]
    next(Budget(limit=2).batches(items, sizes, CPU, 9))
    assert len(taken) == 3


class Small:
    """Work on a device that holds items of 4 bytes in all."""

    def __init__(self, error: Callable[[], Exception]) -> None:
        self.error, self.done, self.failed = error, list[list[int]](), 0

    def __call__(self, items: list[int]) -> list[int]:
        if sum(items) > 4:
            self.failed += 1
            raise self.error()
        self.done.append(items)
        return [10 * i for i in items]


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory"),
        lambda: RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
        MemoryError,
    ],
    ids=["GPU", "CPU", "Python"],
)
def test_out_of_memory_halves_the_budget_goes_on_and_is_said_once(error: Callable[[], Exception]) -> None:
    said: list[str] = []
    work, budget = Small(error), Budget(said.append, limit=16)
    made = list(budget.map([1] * 20, sizes, work, CPU, 100))
    assert made == [(1, 10)] * 20
    assert work.failed == 2, "16 and 8; every later batch is formed by the halved budget"
    assert budget.limit == 4
    assert [len(items) for items in work.done] == [4] * 5
    assert len(said) == 1
    assert "ran out of memory with a batch of 16 rows" in said[0]


def test_a_row_that_does_not_fit_alone_is_refused_with_what_to_do() -> None:
    with pytest.raises(MemoryError, match=r"one row.*frames.max_frames"):
        list(Budget(limit=16).map([9], sizes, Small(MemoryError), CPU, 4))


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        list(Budget().map([9], sizes, Small(lambda: RuntimeError("shapes do not match")), CPU, 4))


def test_the_budget_follows_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, allowed in ((2 << 30, batches.CPU_SHARE * (2 << 30)), (1 << 40, batches.CPU_MOST)):
        monkeypatch.setattr(batches, "free_bytes", lambda _device, free=free: float(free))
        assert Budget().bytes_on(CPU) == allowed
    assert Budget().bytes_on(torch.device("cuda")) == batches.GPU_SHARE * (1 << 40)


def test_a_limit_of_the_control_group_counts(tmp_path: Path) -> None:
    for name, text in (
        ("memory.max", "1000"),
        ("memory.current", "700"),
        ("memory.stat", "anon 600\ninactive_file 50"),
    ):
        (tmp_path / name).write_text(text)
    assert memory._free_in_group(tmp_path) == 350
    (tmp_path / "memory.max").write_text("max")
    assert memory._free_in_group(tmp_path) == memory._free_in_group(tmp_path / "none") == float("inf")


@pytest.mark.slow
def test_stages_of_a_process_share_what_was_found_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_budget_of_this_process", functools.cache(Budget))
    said: list[str] = []
    first = budget_of(Execution(log=said.append))
    first.limit = 16
    assert len(list(first.map([1] * 20, sizes, Small(MemoryError), CPU, 100))) == 20
    assert budget_of(Execution()).limit == 4
    assert len(said) == 1


def frames(seed: int) -> VideoFrames:
    rng = np.random.default_rng(seed)
    number = 2 * int(rng.integers(1, 4))
    return VideoFrames(rng.integers(0, 255, (number, 32, 32, 3), dtype=np.uint8), [float(i) for i in range(number)])


def test_vectors_do_not_depend_on_the_batches() -> None:
    embedder = tiny_embedder()
    videos = [(f"v{i}", frames(i)) for i in range(6)]
    texts = ["a red circle", "a blue bar moves left on a black background", "a ring"]
    for whole, single in (
        (dict(embedded_videos(embedder, videos, b, 32)) for b in (Budget(), Budget(limit=1))),
        (dict(zip(texts, embedded_queries(embedder, texts, b, 32), strict=True)) for b in (Budget(), Budget(limit=1))),
    ):
        assert list(whole) == list(single)
        for key, vector in whole.items():
            torch.testing.assert_close(vector, single[key], atol=1e-5, rtol=1e-5)


def test_soft_tokens_count_in_the_size_of_a_batch_and_are_made_for_one_batch_at_a_time() -> None:
    embedder, texts = tiny_embedder(), ["a ring", "a red circle", "a bar"]
    soft = [torch.randn(count, embedder.hidden_size) for count in (40, 1, 3)]
    made, passes = list[int](), Passes(embedder.size, weight_bytes(embedder.model))
    lengths = embedder.query_tokens(texts)
    two = passes.text([lengths[1] + 1, lengths[2] + 3])
    carried = SoftTokens([40, 1, 3], lambda place: (made.append(place), soft[place])[1])
    found = embedded_queries(embedder, texts, Budget(limit=two), 32, carried)
    torch.testing.assert_close(next(found), embedder.embed_queries(texts[:1], soft[:1])[0], atol=1e-5, rtol=1e-5)
    assert made == [0]
    torch.testing.assert_close(
        torch.stack(list(found)), embedder.embed_queries(texts[1:], soft[1:]), atol=1e-5, rtol=1e-5
    )
    assert made == [0, 1, 2]


def test_answers_do_not_depend_on_the_batches_and_features_are_held_in_parts() -> None:
    policy = tiny_policy()
    load = lambda v: random_video(int(v[1:]), policy.model.config)  # noqa: E731
    pairs = [(text, f"v{i % 4}") for i, text in enumerate(["a ring", "a golden bar moves", "a circle"] * 2)]
    found = []
    for budget, most in ((Budget(), 2 << 30), (Budget(limit=1), 1)):
        store = FeatureStore(policy.encoder, load, max_bytes=most, budget=budget, layout_of=load)
        assert len(list(store.parts([v for _, v in pairs]))) == (1 if most > 1 else len(pairs))
        found.append(verify(policy, store, dict.fromkeys(["v0", "v1", "v2", "v3"], 9.0), pairs, DecodeSettings(6), 64))
        assert most > 1 or store.num_videos == 1
    for a, b in zip(*found, strict=True):
        assert a.decoded.token_ids == b.decoded.token_ids
        torch.testing.assert_close(a.decoded.latents, b.decoded.latents, atol=1e-4, rtol=1e-4)


def test_a_query_costs_what_its_tokens_cost() -> None:
    embedder = tiny_embedder()
    short, long = embedder.query_tokens(["a ring", "a ring " * 20])
    assert long > short + 19
    passes = Passes(embedder.size, 4)
    assert passes.text([short, long]) == 2 * passes.text([long])


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(("what", "growth"), [("videos", 3.0), ("answers", 1.3)])
def test_peak_memory_grows_with_the_budget_and_not_with_the_number_or_length_of_videos(
    what: str, growth: float
) -> None:
    """growth: measured are 11 and, where the batch has all rows before the budget is spent, 1.5 to 1.6."""
    small, large = 24 << 20, 192 << 20
    few, many, wide, long, long_wide = _peak_bytes(
        what, (6, 16, small), (12, 16, small), (24, 16, large), (1, 96, small), (1, 96, large)
    )
    assert many < 1.3 * few
    assert wide > growth * many
    assert long_wide > 1.35 * long, "a long video alone is read in parts"


def _peak_bytes(what: str, *cases: tuple[int, int, int]) -> list[int]:
    """Growth of the resident set of a process of its own, for each (videos, frames of each, bytes of the budget).
    Blocks go back to the system at once there."""
    arguments = [sys.executable, "-m", "tests.core.peak_run", what, *(",".join(map(str, case)) for case in cases)]
    environ = {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(arguments, check=True, capture_output=True, text=True, env={**os.environ, **environ})
    return [int(line) for line in done.stdout.splitlines()[-len(cases) :]]
