"""Parts of the check that search: the product's index on a GPU against the same index on the CPU."""

from __future__ import annotations

import gc
import importlib.util
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from tests.gpu_check.measures import Setup, part, timed
from vsr1_core.search import index as index_module
from vsr1_core.search.faiss_kinds import MAX_GPU_RESULTS, has_gpu, is_on_gpu, load_faiss
from vsr1_core.search.index import TIE, VideoIndex, build_index, on_gpu_where_it_pays

SIZES = {"2b": (100_000, 1_000_000, 2048), "tiny": (400, 1600, 32)}
"""Vectors of the part `index`, vectors of the part `large_index`, and the numbers of a vector."""
NUM_QUERIES = (1, 32, 256)
K = 10

Vectors = NDArray[np.float32]


@part
def index(setup: Setup) -> dict[str, Any]:
    """A flat and an IVF index: whether the GPU finds what the CPU finds, milliseconds of a search, and memory."""
    if reason := _not_searched(setup):
        return {"skipped": reason}
    count, _, dim = SIZES[setup.size]
    vectors = _vectors(setup, count, dim)
    return {kind: _compared(setup, vectors, kind, repeats=3) for kind in ("flat", "ivf")}


@part
def large_index(setup: Setup) -> dict[str, Any]:
    """The same of a flat index that is ten times as large."""
    if reason := _not_searched(setup):
        return {"skipped": reason}
    _, count, dim = SIZES[setup.size]
    return {"flat": _compared(setup, _vectors(setup, count, dim), "flat", repeats=1)}


def _not_searched(setup: Setup) -> str | None:
    """Why the device cannot search, if it cannot."""
    if importlib.util.find_spec("faiss") is None:
        return "faiss is not installed"
    if setup.device == "cuda" and not has_gpu():
        faiss = load_faiss()
        return f"faiss {faiss.__version__} ({faiss.get_compile_options().strip()}) finds {faiss.get_num_gpus()} GPUs"
    return None


def _vectors(setup: Setup, count: int, dim: int) -> Vectors:
    """Random unit vectors, made on the device, whose memory is given back."""
    torch.manual_seed(0)
    vectors: Vectors = torch.nn.functional.normalize(torch.randn(count, dim, device=setup.device)).cpu().numpy()
    if setup.device == "cuda":
        torch.cuda.empty_cache()
    return vectors


def _queries(vectors: Vectors, right: NDArray[np.int64]) -> Vectors:
    """A query for each vector of the rows `right`, which it is so near to that some tens of others are nearer."""
    rng, cosine = np.random.default_rng(0), 3.5 / vectors.shape[1] ** 0.5
    noise = rng.standard_normal((len(right), vectors.shape[1])).astype(np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    queries = cosine * vectors[right] + (1 - cosine**2) ** 0.5 * noise
    found: Vectors = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    return found


def _compared(setup: Setup, vectors: Vectors, kind: str, repeats: int) -> dict[str, Any]:
    right = np.linspace(0, len(vectors) - 1, max(NUM_QUERIES)).astype(np.int64)
    queries, ids = _queries(vectors, right), [f"v{row}" for row in range(len(vectors))]
    started = setup.clock()
    built = build_index(ids, vectors, kind)
    build_s = setup.clock() - started
    facts = {
        "vectors": vectors.shape,
        "build_s": build_s,
        "cpu_threads": load_faiss().omp_get_max_threads(),
        "cpu": _milliseconds(setup, built, queries, repeats),
    }
    if setup.device != "cuda":
        return facts
    free = torch.cuda.mem_get_info()[0]
    facts |= _on_gpu(setup, built, queries, [ids[row] for row in right])
    gc.collect()
    return {**facts, "gpu_bytes_not_given_back": free - torch.cuda.mem_get_info()[0]}


def _milliseconds(setup: Setup, searched: VideoIndex, queries: Vectors, repeats: int) -> dict[str, float]:
    """Milliseconds of a search with each number of queries."""
    some = {count: queries[:count] for count in NUM_QUERIES}
    return {
        f"ms_of_{count}": 1000 * timed(setup, partial(searched.search, part, K), repeats)[0]
        for count, part in some.items()
    }


def _on_gpu(setup: Setup, built: VideoIndex, queries: Vectors, right_ids: list[str]) -> dict[str, Any]:
    free, started = torch.cuda.mem_get_info()[0], setup.clock()
    with mock.patch.object(index_module, "MIN_ON_GPU", 1):
        moved = on_gpu_where_it_pays(built)
    move_s = setup.clock() - started
    if not is_on_gpu(moved.faiss_index):
        raise RuntimeError(f"the index stayed on the CPU, with {free:,} bytes of the GPU free")
    most = min(MAX_GPU_RESULTS, len(built.ids))
    return {
        "gpu_index": type(moved.faiss_index).__name__,
        "move_s": move_s,
        "gpu": _milliseconds(setup, moved, queries, repeats=5),
        f"gpu_ms_of_{len(queries)}_with_{most}_results": 1000
        * timed(setup, partial(moved.faiss_index.search, queries, most))[0],
        "gpu_bytes": free - torch.cuda.mem_get_info()[0],
        **_equality(setup, moved, built, queries, right_ids),
    }


def _equality(
    setup: Setup, moved: VideoIndex, built: VideoIndex, queries: Vectors, right_ids: list[str]
) -> dict[str, Any]:
    """How many queries find the same on both, how many where scores that are equal but for rounding may change places,
    and how many have the same rank. The seconds are those of a search of all queries that ranks as well."""
    found, wanted = (list(zip(*each.search(queries, K), strict=True)) for each in (moved, built))
    alone = [moved.search(query[None], K)[0][0] for query in queries[:32]]
    ranked_s, (_, _, ranks) = timed(setup, partial(moved.search_and_rank, queries, K, right_ids), repeats=1)
    right = built.ranks(queries, right_ids)
    true = [
        built.vectors[[built.row_of[v] for v in ids]] @ query for query, (ids, _) in zip(queries, found, strict=True)
    ]
    differences = [_largest_difference(scores, theirs) for scores, (_, theirs) in zip(true, wanted, strict=True)]
    pairs = list(zip(found, wanted, strict=True))
    return {
        "queries": len(queries),
        "with_equal_top": sum(ours[0] == theirs[0] for ours, theirs in pairs),
        "with_equal_top_but_for_ties": sum(difference <= TIE for difference in differences),
        "largest_score_difference": max(_largest_difference(ours[1], theirs[1]) for ours, theirs in pairs),
        "first_32_with_equal_top_alone": sum(ids == theirs[0] for ids, theirs in zip(alone, wanted, strict=False)),
        "with_equal_rank": sum(ours == theirs for ours, theirs in zip(ranks, right, strict=True)),
        "median_rank": float(np.median([rank for rank in right if rank])),
        "ranked_ms": 1000 * ranked_s,
    }


def _largest_difference(ours: Any, theirs: Any) -> float:
    return float(np.abs(np.subtract(ours, theirs)).max()) if len(ours) == len(theirs) else 2.0
