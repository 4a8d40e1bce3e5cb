"""Search and ranks of a flat index, against plain FAISS, which searches only, in turns in one run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import pytest

from tests.benchmarks.measuring import PROCESSOR, interleaved, line, milliseconds, scaled
from vsr1_core.search.index import build_index

NUM_VIDEOS, SIZE, TOP_K, REPEATS = max(1000, scaled(40_000)), 2048, 100, 5
DEFAULT_THRESHOLD = faiss.cvar.distance_compute_blas_threshold
MOST_SEARCH, MOST_BOTH = "at most 1.0", "at most 1.5"


def as_faiss_is(work: Callable[[], Any]) -> Callable[[], Any]:
    """With the setting of FAISS that `build_index` changes."""

    def unchanged() -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(faiss.cvar, "distance_compute_blas_threshold", DEFAULT_THRESHOLD)
            return work()

    return unchanged


@pytest.mark.parametrize("num_queries", [1, 32, 256])
def test_searching_and_ranking(num_queries: int) -> None:
    rng = np.random.default_rng(0)
    drawn = (rng.standard_normal((n, SIZE), dtype=np.float32) for n in (NUM_VIDEOS, num_queries))
    vectors, queries = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in drawn)
    plain, index = faiss.IndexFlatIP(SIZE), build_index([str(i) for i in range(NUM_VIDEOS)], vectors)
    plain.add(vectors)
    right = [str(i) for i in range(num_queries)]
    alone, ours, both = (
        min(each.seconds)
        for each in interleaved(
            REPEATS,
            PROCESSOR,
            as_faiss_is(lambda: plain.search(queries, TOP_K)),
            lambda: index.search(queries, TOP_K),
            lambda: index.search_and_rank(queries, TOP_K, right),
        )
    )
    of = f"{num_queries} of {NUM_VIDEOS:,} x {SIZE:,}, flat"
    for what, seconds, most in (("search", ours, MOST_SEARCH), ("search and ranks", both, MOST_BOTH)):
        print(
            line(f"{what}, {of}", *milliseconds(alone, seconds), seconds / alone, most, against="plain FAISS's search")
        )
