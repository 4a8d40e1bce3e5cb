"""What an approximate index finds of what an exact search finds, on a sample of its own vectors. No tables here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vsr1_core.search.index import TIE, VideoIndex

NUM_SAMPLED = 256
"""With recalls of about 0.9 of ten neighbours each, the mean over so many is off by less than 0.02."""


def recall_at(index: VideoIndex, counts: Sequence[int]) -> list[float]:
    """For each k of `counts`, the share of the k nearest other vectors that the index finds, in [0, 1]. It is the mean
    over at most `NUM_SAMPLED` of its vectors.

    Vectors with equal scores stand for one another. Where fewer than k others are there, they are the k nearest.

    Text queries lie farther from videos than videos from one another, so an index may find less for them.
    """
    rng, num_others = np.random.default_rng(0), len(index.ids) - 1
    rows = np.sort(rng.choice(len(index.ids), min(NUM_SAMPLED, len(index.ids)), replace=False))
    counts = [min(k, num_others) for k in counts]
    if not num_others:
        return [1.0] * len(counts)
    queries, most = index.vectors[rows], max(counts) + 1  # each vector finds itself as well
    scores, found = index.faiss_index.search(queries, most)
    exact = index.nearest(queries, most)[0]
    is_other = (found >= 0) & (found != rows[:, None])
    hits = [(is_other & (scores >= exact[:, [k]] - TIE)).sum(axis=1).clip(max=k) for k in counts]
    return [float(np.mean(hit / k)) for hit, k in zip(hits, counts, strict=True)]
