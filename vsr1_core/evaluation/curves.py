"""Refinement curves: the metrics of METHOD 8 by the number of turns and of soft tokens allowed (METHOD 9).

Both are read off episodes that were searched once: a search of t turns is the first t turns of a longer one, and what
fewer soft tokens would have found was ranked when the query was. In plain numpy, like the metrics; no tables, no plots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from vsr1_core.evaluation.metrics import IOU_THRESHOLDS, Episodes, FloatArray, Scores, as_ranks

TURNS, SOFT_TOKENS = "turns", "soft_tokens"
TURN_METRICS = (
    "recall_at_1",
    *(f"vcmr_{threshold}" for threshold in IOU_THRESHOLDS),
    "num_text_tokens",
    "num_latent_tokens",
)
RECALLS = {f"recall_at_{k}": k for k in (1, 5, 10)}


@dataclass(frozen=True, order=True)
class Point:
    """One metric of one curve at `x` turns or soft tokens."""

    curve: str
    x: int
    metric: str

    @property
    def name(self) -> str:
        return f"{self.curve}/{self.x}/{self.metric}"


def turn_points(num_turns: int) -> list[Point]:
    return [Point(TURNS, turn, metric) for turn in range(1, num_turns + 1) for metric in TURN_METRICS]


def soft_token_points(num_soft_tokens: int) -> list[Point]:
    """From the plain query, x = 0, to all soft tokens."""
    return [Point(SOFT_TOKENS, x, metric) for x in range(num_soft_tokens + 1) for metric in RECALLS]


def score_turns(episodes: Episodes, num_turns: int) -> Scores:
    """`turn_points` per query: the ranking of the last turn up to x, a match and the tokens up to x."""
    v, num_queries = episodes.verifications, len(episodes.query_ids)
    every, ran = np.ones(num_queries), episodes.has_prediction.astype(float)
    parts: dict[str, tuple[FloatArray, FloatArray]] = {}
    for turn in range(1, num_turns + 1):
        allowed = np.flatnonzero(v.turn <= turn)
        rank = np.full(num_queries, np.inf)
        rank[v.query[allowed]] = v.rank[allowed]  # in turn order, so the last assignment wins
        found = {"recall_at_1": ((rank <= 1).astype(float), every)}
        for threshold in IOU_THRESHOLDS:
            hits = allowed[(v.is_matched & v.is_right_video & (v.iou >= threshold))[allowed]]
            counts = np.bincount(v.query[hits], minlength=num_queries)
            found[f"vcmr_{threshold}"] = np.minimum(counts, 1.0), every
        for name in ("num_text_tokens", "num_latent_tokens"):
            spent = np.bincount(v.query[allowed], getattr(v, name)[allowed], minlength=num_queries)
            found[name] = spent * ran, ran
        parts |= {Point(TURNS, turn, metric).name: found[metric] for metric in TURN_METRICS}
    return Scores.of(episodes.query_ids, parts, None)


def score_soft_tokens(episodes: Episodes, predictions: pl.DataFrame, num_soft_tokens: int) -> Scores:
    """`soft_token_points` per query. A query that was never refined has its one rank for every x.

    predictions: query_id and prefix_ranks, of the rows that `episodes` was loaded from.
    """
    ranks = prefix_ranks(episodes, predictions, num_soft_tokens)
    every = np.ones(len(episodes.query_ids))
    parts = {
        p.name: ((ranks[:, p.x] <= RECALLS[p.metric]).astype(float), every) for p in soft_token_points(num_soft_tokens)
    }
    return Scores.of(episodes.query_ids, parts, None)


def prefix_ranks(episodes: Episodes, predictions: pl.DataFrame, num_soft_tokens: int) -> FloatArray:
    """The right video's last rank with x = 0..N soft tokens a turn, (Q, N + 1), missing ones infinite."""
    kept = dict(predictions.select("query_id", "prefix_ranks").iter_rows())
    ranks = np.repeat(episodes.rank[:, None], num_soft_tokens + 1, axis=1)
    for row, query_id in enumerate(episodes.query_ids):
        of_query = kept.get(query_id)
        if of_query is not None:
            ranks[row] = as_ranks(of_query)
    return ranks
