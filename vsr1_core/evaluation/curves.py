"""Refinement curves: metrics against the number of turns, and against the number of soft tokens, that are allowed.

Both curves are computed from episodes that were searched once: what a search of t turns shows and answers is the first
t turns of a longer search (`cut_after` says which ranking counts), and the ranks that fewer soft tokens would have
given were stored during the search. The `places` of a metric
say whether it has a curve. This module reads no tables and draws no plots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from vsr1_core.evaluation.episodes import Episodes, cut_after
from vsr1_core.evaluation.metrics import all_metrics, metrics_shown
from vsr1_core.evaluation.scores import Scores
from vsr1_core.evaluation.spans import FloatArray, as_ranks

TURNS, SOFT_TOKENS = "turns", "soft_tokens"


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
    """The points of the curve over turns, from one turn to `num_turns`."""
    shown = metrics_shown("turns")
    return [Point(TURNS, turn, metric.name) for turn in range(1, num_turns + 1) for metric in shown]


def soft_token_points(num_soft_tokens: int) -> list[Point]:
    """The points of the curve over soft tokens, from the plain query (x = 0) to all of them."""
    shown = metrics_shown("soft tokens")
    return [Point(SOFT_TOKENS, x, metric.name) for x in range(num_soft_tokens + 1) for metric in shown]


def score_turns(episodes: Episodes, num_turns: int) -> Scores:
    """Measure `turn_points`: each metric on the episodes as they stood after each number of turns.

    Args:
        episodes: One method's episodes over Q queries.
        num_turns: The largest number of turns.

    Returns:
        What each query adds to each point; a metric's name is that of its `Point`.
    """
    cut = {turn: cut_after(episodes, turn) for turn in range(1, num_turns + 1)}
    return _measured(episodes, {point: cut[point.x] for point in turn_points(num_turns)})


def score_soft_tokens(episodes: Episodes, predictions: pl.DataFrame, num_soft_tokens: int) -> Scores:
    """Measure `soft_token_points`. A query that was never refined has its one rank for every x.

    Args:
        episodes: One method's episodes over Q queries.
        predictions: query_id and prefix_ranks of the rows that `episodes` was loaded from.
        num_soft_tokens: Number of soft tokens that each turn brings (N).

    Returns:
        What each query adds to each point; a metric's name is that of its `Point`.
    """
    ranks = prefix_ranks(episodes, predictions, num_soft_tokens)
    cut = {x: replace(episodes, rank=ranks[:, x]) for x in range(num_soft_tokens + 1)}
    return _measured(episodes, {point: cut[point.x] for point in soft_token_points(num_soft_tokens)})


def _measured(episodes: Episodes, points: Mapping[Point, Episodes]) -> Scores:
    metrics = all_metrics()
    parts = {point.name: metrics[point.metric].measure(cut, None) for point, cut in points.items()}
    return Scores(episodes.query_ids, parts)


def prefix_ranks(episodes: Episodes, predictions: pl.DataFrame, num_soft_tokens: int) -> FloatArray:
    """The right video's last rank with x = 0..N soft tokens per turn, (Q, N + 1); a missing rank is infinite."""
    kept = dict(predictions.select("query_id", "prefix_ranks").iter_rows())
    ranks = np.repeat(episodes.rank[:, None], num_soft_tokens + 1, axis=1)
    for row, query_id in enumerate(episodes.query_ids):
        of_query = kept.get(query_id)
        if of_query is not None:
            ranks[row] = as_ranks(of_query)
    return ranks
