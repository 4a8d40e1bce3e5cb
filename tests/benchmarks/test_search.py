"""Search and ranks of a flat index, against plain FAISS, which searches only, in the same run."""

from __future__ import annotations

import os
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.benchmarks.measuring import PROCESSOR, WALL, Measured, interleaved, line, milliseconds, not_measured, scaled
from vsr1_core.search.index import VideoIndex, build_index

NUM_VIDEOS, SIZE, TOP_K = int(os.environ.get("BENCH_VIDEOS", max(1000, scaled(40_000)))), 2048, 100
MOST = "at most 1.5"
"""Times that plain FAISS takes for its search."""
OF = f"of {NUM_VIDEOS:,} x {SIZE:,}"


def fastest(measured: Measured) -> float:
    """Other work on the machine only adds to a time."""
    return min(measured.seconds)


@pytest.fixture(scope="module")
def searched() -> tuple[Any, VideoIndex, NDArray[np.float32]]:
    """An index of plain FAISS, ours of the same vectors, and queries."""
    rng = np.random.default_rng(0)
    drawn = (rng.standard_normal((n, SIZE), dtype=np.float32) for n in (NUM_VIDEOS, 256))
    vectors, queries = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in drawn)
    plain, index = faiss.IndexFlatIP(SIZE), build_index([str(i) for i in range(NUM_VIDEOS)], vectors)
    plain.add(vectors)
    return plain, index, queries


def test_searching_and_ranking(searched: tuple[Any, VideoIndex, NDArray[np.float32]]) -> None:
    plain, index, queries = searched
    faiss.omp_set_num_threads(1)
    for count in (1, 2, 4, 8, 16, 32, 256):
        some, right = queries[:count], [str(i) for i in range(count)]
        alone, search, both = interleaved(
            9 if count < 32 else 3,
            PROCESSOR,
            lambda some=some: plain.search(some, TOP_K),  # type: ignore[misc]
            lambda some=some: index.search(some, TOP_K),  # type: ignore[misc]
            lambda some=some, right=right: index.search_and_rank(some, TOP_K, right),  # type: ignore[misc]
        )
        assert np.allclose(alone.result[0], search.result[1], atol=1e-6)  # rounding decides between near ties
        assert both.result[0] == search.result[0]
        for name, ours in (("search", search), ("search and ranks", both)):
            times = fastest(alone), fastest(ours)
            what = f"{name}, queries: {count} {OF}, flat"
            print(line(what, *milliseconds(*times), times[1] / times[0], MOST, against="plain FAISS's search"))


def test_few_queries_on_two_threads(searched: tuple[Any, VideoIndex, NDArray[np.float32]]) -> None:
    """Wall time, which needs two cores without other work. FAISS searches with one thread per query."""
    plain, index, queries = searched
    against = "plain FAISS's search, two threads"
    if (os.cpu_count() or 1) < 2:
        print(not_measured(f"search on two threads {OF}, flat", against, "skipped: one core"))
        return
    faiss.omp_set_num_threads(2)
    for count in (1, 2, 4):
        some, right = queries[:count], [str(i) for i in range(count)]
        alone, ours = interleaved(
            25,
            WALL,
            lambda some=some: plain.search(some, TOP_K),  # type: ignore[misc]
            lambda some=some, right=right: index.search_and_rank(some, TOP_K, right),  # type: ignore[misc]
        )
        times, what = (fastest(alone), fastest(ours)), f"search and ranks, two threads, queries: {count} {OF}, flat"
        print(line(what, *milliseconds(*times), times[1] / times[0], "at most 1", against=against))
    faiss.omp_set_num_threads(1)


@pytest.mark.parametrize("num_queries", [1, 64])
def test_ranking_windows_costs_no_second_pass(num_queries: int) -> None:
    """Three windows of each video: the best segments and the ranks of videos, against two plain products."""
    rng, count = np.random.default_rng(0), NUM_VIDEOS // 3 * 3
    vectors = rng.standard_normal((count, SIZE), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = [f"video-{i // 3}//{i % 3}-{i % 3 + 2}" for i in range(count)]
    index, queries = build_index(ids, vectors), vectors[:num_queries]
    right = [f"video-{i}" for i in range(num_queries)]
    plain, ours = interleaved(
        3,
        PROCESSOR,
        lambda: [queries @ vectors.T for _ in range(2)],
        lambda: index.search_and_rank(queries, TOP_K, right),
    )
    times, what = (fastest(plain), fastest(ours)), f"windows searched and ranked, queries: {num_queries} {OF}"
    print(line(what, *milliseconds(*times), times[1] / times[0], "at most 1", against="two plain products"))
