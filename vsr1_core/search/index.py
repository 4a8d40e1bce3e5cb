"""The search engine: a FAISS index over unit vectors of segments, its files, and exact ranks. No model, no tables here.

A segment is a whole video or a window of a long one (`vsr1_core.segments`); an index may hold both.

Scores are inner products of unit vectors, which are cosines. On disk an index is two files: `index.faiss`, and
`id_map.json`, a JSON list whose n-th entry is the id of the n-th vector. Load FAISS files only from people you trust.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vsr1_core.rows.files import atomic_folder, read_json, write_json
from vsr1_core.rows.whole_folders import read_whole
from vsr1_core.search.faiss_kinds import MAX_GPU_RESULTS, has_gpu, is_on_gpu, on_cpu, on_gpu, untrained
from vsr1_core.search.products import Rows, Vectors, best_and_higher, best_of, products
from vsr1_core.segments import best_of_each, video_of

Value = TypeVar("Value")
Exclude = Sequence[Collection[str]]
"""For each query, the ids of the segments that a search must not return."""

TIE = 1e-6
"""Scores that differ by less count as equal: float32 sums of one product differ by about 1e-7 between kernels."""
ROUNDING = 2.0**-22
"""Per dimension, no less than any two float32 products of the same unit vectors differ by, however their terms are
added: each is off by at most 2**-24 per term."""
UNIT_TOLERANCE = 1e-3
MIN_ON_GPU = 100_000
"""Vectors below which a search takes less than 30 ms of one core, and memory of a GPU is better spent on models."""
QUERIES_AT_ONCE = 1024
MEASURED_AT_ONCE = 1024
"""Vectors whose lengths are computed at a time, as numpy copies vectors twice for that."""
RANKED_AT_ONCE = 64
"""Queries whose scores of all segments are held at a time; at a million segments they take 256 MB."""


@dataclass(frozen=True, eq=False)
class VideoIndex:
    """An index of V segments. `vectors` float32 [V, D] are their unit vectors, `ids` their names, and `faiss_index`
    holds the same vectors. Where no video is divided, segments are videos."""

    ids: tuple[str, ...]
    vectors: Vectors
    faiss_index: Any

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Segment id -> its row in `vectors`."""
        return {segment_id: row for row, segment_id in enumerate(self.ids)}

    @cached_property
    def rows_of(self) -> dict[str, list[int]]:
        """Video id -> the rows of its segments in `vectors`."""
        found: dict[str, list[int]] = {}
        for row, segment_id in enumerate(self.ids):
            found.setdefault(video_of(segment_id), []).append(row)
        return found

    @cached_property
    def has_windows(self) -> bool:
        """Whether any video is there as several segments, or as a part of it."""
        return self.rows_of.keys() != self.row_of.keys()

    def search(
        self, queries: NDArray[Any], k: int, exclude: Exclude | None = None
    ) -> tuple[list[list[str]], list[list[float]]]:
        """Find the k best segments for each query.

        Args:
            queries: Unit vectors [Q, D].
            k: How many segments to find, at least 1.
            exclude: For each query, ids of segments that must not be found.

        Returns:
            For each query a list of ids, best first, and a list of their cosines. A list is shorter than k if fewer
            segments are left, and empty if all are excluded.

        Raises:
            ValueError: k is below 1, a vector is not a unit vector, or its size is not that of the index.
        """
        ids, scores, _ = self.search_and_rank(queries, k, [None] * len(queries), exclude)
        return ids, scores

    def search_distinct(
        self, queries: NDArray[Any], k: int, exclude: Exclude | None = None, per_video: bool = True
    ) -> tuple[list[list[str]], list[list[float]]]:
        """Like `search`, without near-duplicates: the best segment of each of the k best videos.

        per_video: False keeps every window that overlaps no better one, so that a video may be found several times.
        """
        wanted = k
        while True:
            ids, scores = self.search(queries, wanted, exclude)
            places = [list(best_of_each(found, per_video))[:k] for found in ids]
            is_done = all(len(kept) == k or len(found) < wanted for kept, found in zip(places, ids, strict=True))
            if is_done or wanted >= len(self.ids) or not self.has_windows:
                return [_at(*row) for row in zip(ids, places, strict=True)], [
                    _at(*row) for row in zip(scores, places, strict=True)
                ]
            wanted = min(4 * wanted, len(self.ids))

    def ranks(
        self, queries: NDArray[Any], right_ids: Sequence[str | None], exclude: Exclude | None = None
    ) -> list[int | None]:
        """The exact rank of each query's right video: 1 + the number of videos with a strictly higher score. The score
        of a video is that of its best segment.

        All segments but the excluded ones are compared, whatever the kind of the FAISS index. The rank is None if the
        right video is None, or has no segment in the index that is not excluded.
        """
        return self._found(self._checked(queries), 0, right_ids, exclude)[2]

    def ranks_of(
        self, query: NDArray[Any], video_ids: Sequence[str], exclude: Collection[str] = ()
    ) -> list[int | None]:
        """The exact rank, as in `ranks`, of each of these videos for one query [1, D]. All are compared at once."""
        best = self._best_of_videos(products(self._checked(query), self.vectors), [exclude])[0]
        ordered, number_of = np.sort(best), self._by_video[2]
        found: list[int | None] = []
        for video_id in video_ids:
            own = best[number_of[video_id]] if video_id in number_of else -np.inf
            higher = len(ordered) - np.searchsorted(ordered, own + TIE, side="right")
            found.append(1 + int(higher) if np.isfinite(own) else None)
        return found

    def search_and_rank(
        self, queries: NDArray[Any], k: int, right_ids: Sequence[str | None], exclude: Exclude | None = None
    ) -> tuple[list[list[str]], list[list[float]], list[int | None]]:
        """The results of `search` and of `ranks`. A flat index is read once for both."""
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        return self._found(self._checked(queries), k, right_ids, exclude)

    def _found(
        self, queries: Vectors, k: int, right_ids: Sequence[str | None], exclude: Exclude | None
    ) -> tuple[list[list[str]], list[list[float]], list[int | None]]:
        if len(right_ids) != len(queries):
            raise ValueError(f"{len(queries)} queries but {len(right_ids)} right videos")
        banned = [set(e) for e in exclude] if exclude is not None else [set[str]()] * len(queries)
        is_of_windows = self.has_windows and any(right is not None for right in right_ids)
        compared, at_once = (
            (self._of_windows, RANKED_AT_ONCE) if is_of_windows else (self._of_segments, QUERIES_AT_ONCE)
        )
        ids: list[list[str]] = []
        scores: list[list[float]] = []
        ranks: list[int | None] = []
        for start in range(0, len(queries), at_once):
            part = slice(start, start + at_once)
            more = k and min(k + max(map(len, banned[part])), len(self.ids))
            best, rows, of_right = compared(queries[part], more, right_ids[part], banned[part])
            ranks += of_right
            for own_rows, own_scores, out in zip(rows.tolist(), best.tolist(), banned[part], strict=True):
                # IVF and HNSW fill the result with -1 if they find fewer videos than asked for.
                found = [(self.ids[row], score) for row, score in zip(own_rows, own_scores, strict=True) if row >= 0]
                hits = [(segment_id, score) for segment_id, score in found if segment_id not in out][:k]
                ids.append([segment_id for segment_id, _ in hits])
                scores.append([score for _, score in hits])
        return ids, scores, ranks

    def _of_segments(
        self, queries: Vectors, k: int, right_ids: Sequence[str | None], banned: Sequence[set[str]]
    ) -> tuple[Vectors, Rows, list[int | None]]:
        """The scores [Q, k] and rows [Q, k] of the k best segments, and the ranks of the right ones, where these are
        whole videos or where no right video is known."""
        limits = self._limits(queries, right_ids, banned)
        best, rows, higher = self._compared(queries, k, limits)
        found = zip(queries, limits.tolist(), higher.tolist(), banned, strict=True)
        ranks = [
            1 + count - self._num_higher_among(out, query, limit) if limit < np.inf else None
            for query, limit, count, out in found
        ]
        return best, rows, ranks

    def _of_windows(
        self, queries: Vectors, k: int, right_ids: Sequence[str | None], banned: Sequence[set[str]]
    ) -> tuple[Vectors, Rows, list[int | None]]:
        """`_of_segments` where a video may have several segments. All scores are held, for its rank follows from all
        of them."""
        scores = products(queries, self.vectors)
        best, rows = (
            self.faiss_index.search(queries, k)
            if k and self._is_searched_by_faiss(k, is_ranked=True)
            else best_of(scores, k)
        )
        of_videos, number_of = self._best_of_videos(scores, banned), self._by_video[2]
        ranks: list[int | None] = []
        for of_query, right in zip(of_videos, right_ids, strict=True):
            own = of_query[number_of[right]] if right is not None and right in number_of else -np.inf
            ranks.append(1 + int((of_query > own + TIE).sum()) if np.isfinite(own) else None)
        return best, rows, ranks

    def _best_of_videos(self, scores: Vectors, banned: Sequence[Collection[str]]) -> Vectors:
        """The score of each video, that of its best segment, from the `scores` [Q, V] of all segments: [Q, videos], in
        the order of `_by_video`. -inf where all segments are banned, and in `scores` for each of these."""
        grouped, begins, _ = self._by_video
        for row, out in enumerate(banned):
            scores[row, [self.row_of[segment_id] for segment_id in out if segment_id in self.row_of]] = -np.inf
        best: Vectors = np.maximum.reduceat(scores[:, grouped], begins, axis=1)
        return best

    @cached_property
    def _by_video(self) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[str, int]]:
        """The rows [V] of all segments, those of one video together; where each video begins in them; and video id ->
        which of these it is."""
        rows = [row for rows in self.rows_of.values() for row in rows]
        begins = np.cumsum([0, *map(len, self.rows_of.values())])[:-1]
        return np.array(rows), begins, {video_id: number for number, video_id in enumerate(self.rows_of)}

    def _limits(self, queries: Vectors, right_ids: Sequence[str | None], banned: Sequence[set[str]]) -> Vectors:
        """For each query, the score above which a video ranks higher than the right one: [Q]. Infinite where the right
        video is unknown or banned."""
        limits = np.full(len(queries), np.inf, np.float32)
        known = [i for i, right in enumerate(right_ids) if right in self.row_of and right not in banned[i]]
        right = self.vectors[[self.row_of[str(right_ids[i])] for i in known]]
        limits[known] = np.einsum("qd,qd->q", queries[known], right) + TIE
        return limits

    def nearest(self, queries: Vectors, k: int) -> tuple[Vectors, Rows]:
        """The scores [Q, k] and rows [Q, k] of the k best vectors for each of these unit vectors, best first. They are
        exact, whatever the kind of the FAISS index."""
        return best_and_higher(queries, self.vectors, k, np.full(len(queries), np.inf, np.float32))[:2]

    def _compared(self, queries: Vectors, k: int, limits: Vectors) -> tuple[Vectors, Rows, Rows]:
        """The scores [Q, k] and rows [Q, k] of the k best vectors for each query, and how many vectors score above its
        limit [Q]. The vectors of a flat index are multiplied once for all three."""
        if self._is_ranked_by_gpu(k, limits):
            return self._ranked_by_gpu(queries, k, limits)
        if k and self._is_searched_by_faiss(k, is_ranked=bool(np.isfinite(limits).any())):
            return *self.faiss_index.search(queries, k), best_and_higher(queries, self.vectors, 0, limits)[2]
        return best_and_higher(queries, self.vectors, k, limits)

    def _is_ranked_by_gpu(self, k: int, limits: Vectors) -> bool:
        is_possible = is_on_gpu(self.faiss_index) and self._is_flat and k <= MAX_GPU_RESULTS
        return is_possible and bool(np.isfinite(limits).any())

    def _ranked_by_gpu(self, queries: Vectors, k: int, limits: Vectors) -> tuple[Vectors, Rows, Rows]:
        """`_compared` by as many of the best vectors as a GPU finds. It rounds otherwise than the CPU, so that vectors
        near the limit are multiplied again there, and all of them where even the last that the GPU found is not below
        the limit for sure."""
        best, rows = self.faiss_index.search(queries, min(MAX_GPU_RESULTS, len(self.ids)))
        error, above = ROUNDING * queries.shape[1], best - limits[:, None]
        higher = np.count_nonzero(above > error, axis=1)
        is_near = np.abs(above) <= error
        is_sure = np.isinf(limits) | (above[:, -1] < -error)
        for query in np.flatnonzero(is_sure & is_near.any(axis=1)):
            near = self.vectors[rows[query, is_near[query]]]
            higher[query] += np.count_nonzero(products(queries[query : query + 1], near) > limits[query])
        higher[~is_sure] = best_and_higher(queries[~is_sure], self.vectors, 0, limits[~is_sure])[2]
        return best[:, :k], rows[:, :k], higher

    @property
    def _is_flat(self) -> bool:
        return "IndexFlat" in type(self.faiss_index).__name__

    def _is_searched_by_faiss(self, k: int, is_ranked: bool) -> bool:
        """Whether FAISS finds the k best, and not a product with all vectors, which is exact and gives the ranks, too.

        On the CPU that is faster than FAISS's own search of a flat index (`tests/benchmarks/test_search.py`).
        """
        if not is_on_gpu(self.faiss_index):
            return not self._is_flat
        return k <= MAX_GPU_RESULTS and not (self._is_flat and is_ranked)

    def _num_higher_among(self, video_ids: Collection[str], query: Vectors, above: float) -> int:
        rows = [self.row_of[v] for v in video_ids if v in self.row_of]
        return int((self.vectors[rows] @ query > above).sum()) if rows else 0

    def _checked(self, queries: NDArray[Any]) -> Vectors:
        queries = unit_vectors(queries, "query")
        if queries.shape[1] != self.vectors.shape[1]:
            raise ValueError(
                f"queries have {queries.shape[1]} dimensions, but the index has {self.vectors.shape[1]}, so they come "
                "from different embedders; build query_embeddings and video_embeddings with the same embedder"
            )
        return queries


def _at(values: Sequence[Value], places: Sequence[int]) -> list[Value]:
    return [values[place] for place in places]


def build_index(ids: Sequence[str], vectors: NDArray[Any], kind: str = "flat", gpu: bool = False) -> VideoIndex:
    """Build an index over vectors of segments.

    Args:
        ids: Ids of the V segments; in a corpus without windows, of the videos.
        vectors: Their unit vectors [V, D].
        kind: `flat` (exact), `ivf` or `hnsw`.
        gpu: Keep the FAISS index on the first GPU.

    Raises:
        ValueError: There are no vectors, a vector is not a finite unit vector, an id occurs twice, or the kind is
            unknown.
        RuntimeError: A GPU is asked for, and this faiss cannot use one.

    Example:
        index = build_index(["v1", "v2"], embedder.embed_videos(videos).numpy())
        ids, scores = index.search(embedder.embed_queries(["a red ring"]).numpy(), k=1)
    """
    checked = unit_vectors(vectors, "video")
    check_ids(ids, len(checked))
    index = untrained(kind, checked.shape[1], len(checked))
    index.train(checked)
    index.add(checked)
    return VideoIndex(tuple(ids), checked, on_gpu(index) if gpu else index)


def write_index(folder: Path, index: VideoIndex) -> None:
    """Write both files of the index as one folder: a reader sees either the old folder or the new one."""
    import faiss

    with atomic_folder(folder) as temporary:
        faiss.write_index(on_cpu(index.faiss_index), str(temporary / "index.faiss"))
        write_json(temporary / "id_map.json", list(index.ids))


def read_index(folder: Path, gpu: bool = False) -> VideoIndex:
    """Read the index that `write_index` (or a tool of the authors) wrote into `folder`.

    Raises FileNotFoundError if a file is missing, and ValueError if a file is broken or the two do not fit together.
    """
    ids, index = read_faiss_index(folder)
    vectors = unit_vectors(index.reconstruct_n(0, index.ntotal), "video")
    return VideoIndex(ids, vectors, on_gpu(index) if gpu else index)


def read_faiss_index(folder: Path) -> tuple[tuple[str, ...], Any]:
    """The ids and the FAISS index of `read_index`, which raises the same, without a matrix of the vectors."""
    return read_whole(folder, _read_both)


def _read_both(folder: Path) -> tuple[tuple[str, ...], Any]:
    import faiss

    path = folder / "index.faiss"
    if not path.exists() or not (folder / "id_map.json").exists():
        raise FileNotFoundError(f"{folder} must hold index.faiss and id_map.json; build the asset video_index again")
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise ValueError(f"{path} is not a FAISS index; build the asset video_index again") from error
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise ValueError(f"{path} does not rank by inner product; build the asset video_index again")
    listed = read_json(folder / "id_map.json")
    if not isinstance(listed, list):
        raise ValueError(f"{folder / 'id_map.json'} is not a list of ids; build the asset video_index again")
    ids = tuple(map(str, listed))
    check_ids(ids, index.ntotal)
    return ids, index


def on_gpu_where_it_pays(index: VideoIndex, device: str = "cuda") -> VideoIndex:
    """The index on the GPU `device`, where it is one that faiss finds, the index is large, and the GPU has room for
    it."""
    kind, _, number = device.partition(":")
    if kind != "cuda" or len(index.ids) < MIN_ON_GPU or not has_gpu():
        return index
    try:
        return replace(index, faiss_index=on_gpu(index.faiss_index, int(number or 0)))
    except RuntimeError:  # of FAISS, when memory of the GPU runs out
        return index


def unit_vectors(vectors: NDArray[Any], what: str) -> Vectors:
    """`vectors` as contiguous float32 [N, D]. Raises ValueError, which names a row that is not finite or not of length
    1."""
    checked = np.ascontiguousarray(vectors, dtype=np.float32)
    if checked.ndim != 2 or not checked.shape[1] or (what == "video" and not len(checked)):
        raise ValueError(f"{what} vectors must be a matrix with rows and columns, but the shape is {checked.shape}")
    lengths = np.empty(len(checked), np.float32)
    for start in range(0, len(checked), MEASURED_AT_ONCE):
        part = slice(start, start + MEASURED_AT_ONCE)
        lengths[part] = np.linalg.norm(checked[part], axis=1)
    bad = np.flatnonzero(~(np.abs(lengths - 1) <= UNIT_TOLERANCE))  # NaN is bad, too
    if bad.size:
        raise ValueError(
            f"{bad.size} of {len(checked)} {what} vectors are not unit vectors, e.g. row {bad[0]} of length "
            f"{lengths[bad[0]]:.4g}; L2-normalise them before they are indexed or searched"
        )
    return checked


def check_ids(ids: Sequence[str], num_vectors: int) -> None:
    """Raise ValueError unless there is one id for each vector, and no id twice."""
    if len(ids) != num_vectors:
        raise ValueError(f"there are {len(ids)} video ids for {num_vectors} vectors; each vector needs one id")
    if len(set(ids)) != len(ids):
        twice = sorted(i for i, count in Counter(ids).items() if count > 1)[:3]
        raise ValueError(f"some video ids occur twice, e.g. {', '.join(twice)}; ids must be unique")
