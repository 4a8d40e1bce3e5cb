"""Products with all vectors and the best of them, against plain numpy."""

from __future__ import annotations

import threading

import faiss
import numpy as np
import pytest

from tests.core.test_index import unit
from vsr1_core.search import products as module
from vsr1_core.search.index import build_index
from vsr1_core.search.products import best_and_higher, best_of, products


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks so small that a few hundred vectors take several of each."""
    sizes = {"ROWS_AT_ONCE": 50, "BYTES_OF_SCORES": 900, "ROWS_A_PRODUCT": 7, "BYTES_A_PASS": 640}
    for name, size in sizes.items():
        monkeypatch.setattr(module, name, size)


@pytest.mark.parametrize("num_queries", [0, 1, 2, 7, 8, 33])
@pytest.mark.parametrize("num_vectors", [0, 1, 7, 300])
def test_products_are_those_of_plain_numpy(rng, small_blocks, num_queries, num_vectors):
    queries, vectors = (rng.standard_normal((count, 16), dtype=np.float32) for count in (num_queries, num_vectors))
    found = products(queries, vectors)
    assert (found.shape, found.dtype) == ((num_queries, num_vectors), np.float32)
    assert np.allclose(found, queries @ vectors.T, atol=1e-5)


@pytest.mark.parametrize("num_queries", [1, 3, 7])
def test_all_threads_get_a_part_and_change_no_bit(rng, small_blocks, monkeypatch, num_queries):
    queries, vectors = unit(rng, num_queries, 16), unit(rng, 301, 16)
    monkeypatch.setattr(faiss, "omp_get_max_threads", lambda: 1)
    alone = products(queries, vectors)
    product, threads, all_came = faiss.fvec_inner_products_ny, set(), threading.Barrier(5)

    def once_all_came(*args):
        if threading.get_ident() not in threads:
            threads.add(threading.get_ident())
            all_came.wait(timeout=60)
        product(*args)

    monkeypatch.setattr(module, "BYTES_A_THREAD", 1000)
    monkeypatch.setattr(faiss, "omp_get_max_threads", lambda: 5)
    monkeypatch.setattr(faiss, "fvec_inner_products_ny", once_all_came)
    assert (products(queries, vectors) == alone).all()
    assert len(threads) == 5
    assert np.allclose(alone, queries @ vectors.T, atol=1e-6)


@pytest.mark.parametrize("num_queries", [1, 4, 32, 256, 100_000])
def test_few_queries_get_large_windows_and_many_get_no_more_scores_than_allowed(monkeypatch, num_queries):
    """A thread pays for 32 MiB of vectors, so that windows of 16,384 vectors kept all cores but four waiting."""
    sizes = []
    monkeypatch.setattr(
        module, "products", lambda queries, vectors: sizes.append(len(vectors)) or np.empty((num_queries, 0))
    )
    vectors = np.empty((5_000_000, 0), np.float32)
    best_and_higher(np.empty((num_queries, 0)), vectors, 0, np.zeros(num_queries))
    assert sum(sizes) == len(vectors)
    assert {size % module.ROWS_AT_ONCE for size in sizes[:-1]} == {0}
    assert sizes[0] == max(module.ROWS_AT_ONCE, module.BYTES_OF_SCORES // (4 * num_queries))


def test_vectors_of_other_kinds_and_layouts_are_multiplied_as_well(rng):
    queries, vectors = unit(rng, 2, 16), unit(rng, 40, 16)
    exact = queries @ vectors.T
    for form in (vectors.astype(np.float64), np.asfortranarray(vectors), np.repeat(vectors, 2, axis=0)[::2]):
        for some in (queries, np.asfortranarray(queries)):
            assert np.allclose(products(some, form), exact, atol=1e-6)


@pytest.mark.parametrize("num_queries", [1, 8])
def test_sizes_have_to_agree(rng, num_queries):
    with pytest.raises(ValueError, match="differ in their number of dimensions"):
        products(unit(rng, num_queries, 16), unit(rng, 9, 8))


def naive(scores, k, limits):
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), order, (scores > limits[:, None]).sum(axis=1)


@pytest.mark.parametrize("k", [0, 1, 3, 50, 60, 299, 300, 1000])
@pytest.mark.parametrize("num_queries", [1, 8])
@pytest.mark.parametrize("order", ["random", "best last", "best first"])
def test_the_best_and_the_counts_are_those_of_a_sort(rng, small_blocks, monkeypatch, k, num_queries, order):
    queries, vectors = unit(rng, num_queries, 16), unit(rng, 300, 16)
    if order != "random":
        vectors = vectors[np.argsort(queries[0] @ vectors.T)[:: 1 if order == "best last" else -1]]
    limits = np.where(np.arange(num_queries) % 2, np.inf, 0.1).astype(np.float32)
    monkeypatch.setattr(module, "products", lambda queries, vectors: np.einsum("qd,vd->qv", queries, vectors))
    scores = np.einsum("qd,vd->qv", queries, vectors)
    for found, expected in zip(best_and_higher(queries, vectors, k, limits), naive(scores, k, limits), strict=True):
        assert found.shape == expected.shape
        assert (found == expected).all()
    best, rows = best_of(scores, k)
    assert (best == naive(scores, k, limits)[0]).all()
    assert (rows == naive(scores, k, limits)[1]).all()


def test_of_equal_scores_each_row_is_found_once(rng, small_blocks):
    vectors = np.repeat(unit(rng, 10, 16), 30, axis=0)
    best, rows, _ = best_and_higher(unit(rng, 3, 16), vectors, 45, np.full(3, np.inf, np.float32))
    assert all(len({*row}) == 45 for row in rows.tolist())
    assert all(len({*(row // 30)}) == 2 for row in rows)
    assert (np.diff(best, axis=1) <= 0).all()


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_one_pass_over_windows_finds_and_ranks_as_two_do(rng, kind):
    ids = [f"v{i // 3}//{i}-{i + 2}" if i % 4 else f"w{i}" for i in range(240)]
    index, queries = build_index(ids, unit(rng, 240, 16), kind), unit(rng, 150, 16)
    right = [[None, "v3", "w8", "elsewhere", ids[1]][i % 5] for i in range(150)]
    exclude = [{ids[i], "elsewhere"} if i % 3 else set() for i in range(150)]
    found, scores, ranks = index.search_and_rank(queries, 7, right, exclude)
    assert (found, ranks) == (index.search(queries, 7, exclude)[0], index.ranks(queries, right, exclude))
    assert np.allclose(scores, index.search(queries, 7, exclude)[1], atol=1e-6)
    assert {type(rank) for rank in ranks[1::5]} == {int}
    assert {*ranks[0::5], *ranks[3::5], *ranks[4::5]} == {None}
