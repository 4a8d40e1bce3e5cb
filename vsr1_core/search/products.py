"""Inner products of few or many queries with all vectors, and the best of them. Exact; no index and no ids here.

What is fastest depends on how many queries share a pass over the vectors (100,000 x 2048, one core, ms; FAISS is a
search of its flat index, numpy is `queries @ vectors.T`):

    queries                     1     2     4     8    16    32   256
    FAISS                      26    54   103   220   430   869  1054
    numpy                      38   176   179   191   221   283  1148
    FAISS's product, blocks    26    40    68   134
    numpy, blocks of 1,024     39    72    81   102   123   191  1155
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vsr1_core.search.faiss_kinds import load_faiss

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]

FEW_QUERIES = 7
"""Up to so many queries are multiplied one by one."""
ROWS_A_PRODUCT = 1024
"""Vectors of a matrix product. The library copies them before it multiplies; so few stay in the processor's cache."""
BYTES_A_PASS = 1 << 23
"""Bytes of vectors that one query is multiplied with in one call; for several it is shared, so that the vectors stay in
the processor's cache until all are done."""
BYTES_A_THREAD = 1 << 25
"""Bytes of vectors below which another thread costs more than it gains."""
ROWS_AT_ONCE = 16384
"""Scores of a query from which the best are chosen at a time."""
BYTES_OF_SCORES = 1 << 24
"""Bytes of scores that are held at a time, unless so many queries come at once that `ROWS_AT_ONCE` take more."""


def products(queries: Vectors, vectors: Vectors) -> Vectors:
    """The inner products [Q, V] of queries [Q, D] and vectors [V, D], both float32. Raises ValueError where the sizes
    differ."""
    queries, vectors = (np.ascontiguousarray(values, np.float32) for values in (queries, vectors))
    if queries.shape[1:] != vectors.shape[1:]:
        raise ValueError(f"queries {queries.shape} and vectors {vectors.shape} differ in their number of dimensions")
    found = np.empty((len(queries), len(vectors)), np.float32)
    if len(queries) <= FEW_QUERIES:
        _multiply_few(queries, vectors, found)
        return found
    for part in _slices(len(vectors), ROWS_A_PRODUCT):
        found[:, part] = (vectors[part] @ queries.T).T  # this way round it takes half of the time for few queries
    return found


def _multiply_few(queries: Vectors, vectors: Vectors, found: Vectors) -> None:
    """`products` of few queries, which wait for the memory and not for the processor. FAISS's product of one query with
    many vectors reads as fast as one core can."""
    faiss = load_faiss()
    pointers = [faiss.swig_ptr(query) for query in queries]

    def multiply(part: slice) -> None:
        rows = vectors[part]
        for query, scores in zip(pointers, found, strict=True):
            own = faiss.swig_ptr(scores[part])
            faiss.fvec_inner_products_ny(own, query, faiss.swig_ptr(rows), rows.shape[1], len(rows))

    parts = _slices(len(vectors), max(1, BYTES_A_PASS // (4 * max(1, queries.size))))
    _share(multiply, parts, min(faiss.omp_get_max_threads(), vectors.nbytes // BYTES_A_THREAD))


def _share(work: Callable[[slice], None], parts: Iterator[slice], num_threads: int) -> None:
    """Do the work for all parts in so many threads. Each takes the next part when it is done with one, so that none
    waits for a thread whose core does something else."""
    left = iter(list(parts))  # of a list, as threads may share that

    def work_on() -> None:
        for part in left:
            work(part)

    if num_threads <= 1:
        work_on()
        return
    with ThreadPoolExecutor(num_threads) as pool:
        for done in [pool.submit(work_on) for _ in range(num_threads)]:
            done.result()


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, length, size))


def best_and_higher(queries: Vectors, vectors: Vectors, k: int, limits: Vectors) -> tuple[Vectors, Rows, Rows]:
    """One pass over all vectors for the best of them and for ranks.

    Args:
        queries: [Q, D].
        vectors: [V, D].
        k: How many are wanted for each query; may be 0, or more than V.
        limits: For each query, the score above which vectors are counted: [Q]. Nothing is above infinity.

    Returns:
        The scores of the best vectors [Q, min(k, V)], best first, with equal ones by their row; their rows, in the same
        shape; and how many vectors score above the limit [Q].
    """
    higher, is_ranked = np.zeros(len(queries), np.int64), bool(np.isfinite(limits).any())
    best = _Best.nothing(len(queries))
    num_steps = max(1, BYTES_OF_SCORES // (4 * ROWS_AT_ONCE * max(1, len(queries))))
    for part in _slices(len(vectors), num_steps * ROWS_AT_ONCE) if k or is_ranked else ():
        scores = products(queries, vectors[part])
        if is_ranked:
            higher += np.count_nonzero(scores > limits[:, None], axis=1)
        best = best.with_all(scores, part.start, k)
    return *best.ordered(), higher


def best_of(scores: Vectors, k: int) -> tuple[Vectors, Rows]:
    """The k highest scores of each row of `scores` [Q, V], and their columns, as `best_and_higher` gives them."""
    return _Best.nothing(len(scores)).with_all(scores, 0, k).ordered()


class _Best(NamedTuple):
    """The best scores of some vectors, and their rows, both [Q, k] or fewer, in any order."""

    scores: Vectors
    rows: Rows

    @classmethod
    def nothing(cls, num_queries: int) -> _Best:
        return cls(np.empty((num_queries, 0), np.float32), np.empty((num_queries, 0), np.int64))

    def with_all(self, scores: Vectors, start: int, k: int) -> _Best:
        """The k best of these and of the scores [Q, V] of further vectors, which begin at row `start`."""
        best = self
        for part in _slices(scores.shape[1], ROWS_AT_ONCE) if k else ():
            best = best._with_more(scores[:, part], start + part.start, k)
        return best

    def _with_more(self, scores: Vectors, start: int, k: int) -> _Best:
        """`with_all` of so few vectors that all their scores may be compared."""
        if self.scores.shape[1] < k:
            more = _Best(scores, np.broadcast_to(np.arange(start, start + scores.shape[1]), scores.shape))
        else:
            more = _above(scores, start, self.scores.min(axis=1))
        return self._joined(more._limited(k))._limited(k)

    def _joined(self, other: _Best) -> _Best:
        return _Best(np.hstack([self.scores, other.scores]), np.hstack([self.rows, other.rows]))

    def _limited(self, k: int) -> _Best:
        if self.scores.shape[1] <= k:
            return self
        top = np.argpartition(self.scores, -k, axis=1)[:, -k:]
        return self._taken(top)

    def _taken(self, columns: Rows) -> _Best:
        return _Best(np.take_along_axis(self.scores, columns, 1), np.take_along_axis(self.rows, columns, 1))

    def ordered(self) -> _Best:
        """The same, best first, with equal scores by their row."""
        return self._taken(np.lexsort((self.rows, -self.scores)))


def _above(scores: Vectors, start: int, floors: Vectors) -> _Best:
    """The scores of each query above its floor, filled up with -inf: after the first vectors there are few of them, and
    partitioning all scores would take a quarter of a search with 256 queries."""
    queries, columns = np.divmod(np.flatnonzero(scores > floors[:, None]), scores.shape[1])
    counts = np.bincount(queries, minlength=len(scores))
    places = np.arange(len(queries)) - np.repeat(np.cumsum(counts) - counts, counts)
    shape = len(scores), int(counts.max(initial=0))
    found, rows = np.full(shape, -np.inf, np.float32), np.full(shape, -1)
    found[queries, places], rows[queries, places] = scores[queries, columns], start + columns
    return _Best(found, rows)
