"""Compare two builds of one corpus: how their recipes, their metrics and their answers to each query differ.

A side is one dataset, or all seeds that an experiment trained, and its numbers are then means over the seeds.
Differences are the second side minus the first, over the queries that both sides have, with paired 95 % bootstrap
intervals over these queries. This module builds and writes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from vsr1_core.datasets.registry import DatasetEntry, configuration_of, load_entries, seed_name
from vsr1_core.evaluation.bootstrap import bootstrap, interval
from vsr1_core.evaluation.episodes import load_episodes, outcomes
from vsr1_core.evaluation.scores import Scores, values
from vsr1_core.evaluation.spans import FloatArray
from vsr1_core.recipes import Configuration
from vsr1_core.settings import differences
from vsr1_core.stages.base import View
from vsr1_core.stages.graph import open_view
from vsr1_core.stages.reporting import annotated_queries, scores_of

Change = Literal["won", "lost", "rank up", "rank down"]
CHANGES: tuple[Change, ...] = ("won", "lost", "rank up", "rank down")
"""won, lost: one side alone found the moment. rank up, rank down: both or none did, with another rank."""
METRIC_SCHEMA: dict[str, Any] = {
    **dict.fromkeys(("method", "metric"), pl.String),
    **dict.fromkeys(("a", "b", "difference", "low", "high"), pl.Float64),
}


@dataclass(frozen=True)
class Side:
    """One or more datasets whose numbers are averaged.

    moments: the annotated queries with the right answers. scores: per dataset, method -> scores.
    """

    name: str
    views: Sequence[View]
    split: str
    moments: pl.DataFrame
    scores: Sequence[Mapping[str, Scores]]

    @property
    def config(self) -> Configuration:
        return self.views[0].config

    @property
    def methods(self) -> list[str]:
        """The methods that every dataset of this side has evaluated, in the order of the configuration."""
        return [name for name in self.scores[0] if all(name in scores for scores in self.scores)]


@dataclass(frozen=True)
class QueryChange:
    """One query that the two sides answer differently.

    found_a, found_b: share of the side's datasets that found the moment. rank_a, rank_b: rank of the right video after
    the last turn, the median over the side's datasets; None where it has no rank.
    """

    method: str
    change: Change
    query_id: str
    query: str
    found_a: float
    found_b: float
    rank_a: float | None
    rank_b: float | None


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    recipes: dotted key of each setting that differs -> both values. metrics: a table with `METRIC_SCHEMA`. queries: the
    queries that changed.
    """

    a: str
    b: str
    num_queries: int
    recipes: Mapping[str, tuple[Any, Any]]
    metrics: pl.DataFrame
    queries: Sequence[QueryChange]

    def counts(self) -> dict[str, dict[Change, int]]:
        """Method -> kind of change -> number of queries."""
        methods = dict.fromkeys(self.metrics["method"].to_list())
        return {m: {c: sum(q.method == m and q.change == c for q in self.queries) for c in CHANGES} for m in methods}

    def record(self) -> dict[str, Any]:
        """The whole comparison in JSON types."""
        return {
            "a": self.a,
            "b": self.b,
            "num_queries": self.num_queries,
            "recipes": {key: list(pair) for key, pair in self.recipes.items()},
            "metrics": self.metrics.to_dicts(),
            "queries": [dataclasses.asdict(query) for query in self.queries],
        }


def compare(home: Path, a: str, b: str, methods: Sequence[str] = (), metrics: Sequence[str] = ()) -> Comparison:
    """Compare two datasets of a home, or two configurations by the seeds that were trained with them.

    Args:
        home: The home folder.
        a: Name of a dataset, or of a configuration whose seeds are datasets (`<configuration>-seed-<number>`).
        b: Name of the other side; differences are `b` minus `a`.
        methods: The methods to compare; where empty, all that both sides have evaluated.
        metrics: The metrics to compare; where empty, all that both sides have.

    Raises:
        LookupError: There is no such side, method or metric.
        ValueError: A side is not evaluated, or the two sides have no query or no method in common.
    """
    first, second = open_side(home, a), open_side(home, b)
    shared = _shared_queries(first, second)
    chosen = _chosen("method", methods, [m for m in first.methods if m in second.methods], f"both {a} and {b}")
    frame = _metric_table(first, second, chosen, shared)
    names = _chosen("metric", metrics, list(dict.fromkeys(frame["metric"].to_list())), f"both {a} and {b}")
    return Comparison(
        a,
        b,
        len(shared),
        differences(first.config, second.config),
        frame.filter(pl.col("metric").is_in(names)),
        [change for method in chosen for change in _query_changes(first, second, method, shared)],
    )


def _chosen(what: str, wanted: Sequence[str], there: Sequence[str], where: str) -> list[str]:
    unknown = [name for name in wanted if name not in there]
    if unknown:
        raise LookupError(f"no {what} {unknown[0]!r} in {where}; there are: {', '.join(there) or 'none'}")
    if not there:
        raise ValueError(f"no {what} is in {where}: they evaluate different {what}s (vsr1 config diff shows which)")
    return list(wanted) or list(there)


def open_side(home: Path, name: str) -> Side:
    """The side `name`: a dataset, or the seeds of a configuration, on the first split that its configuration evaluates.

    Raises:
        LookupError: There is no such dataset, and no seeds of such a configuration.
        ValueError: The side is not evaluated, or its seeds are built with different configurations.
    """
    entries = _entries(home, name)
    views = [open_view(home, entry.name) for entry in entries]
    split = views[0].config.evaluation.splits[0]
    for view in views:
        names = [f"predictions.{method}" for method in view.config.evaluation.methods]
        if not any(view.table(name).exists() for name in names if name in view.stages):
            raise ValueError(f"{view.entry.name} is not evaluated yet; run: vsr1 build --dataset {view.entry.name}")
    scores = [scores_of(view, split) for view in views]
    side = Side(name, views, split, annotated_queries(views[0], split), scores)
    if not side.methods:
        raise ValueError(
            f"{name} has no evaluated query in the split {split}; to see what is built: "
            f"vsr1 status --dataset {entries[0].name}"
        )
    return side


def _entries(home: Path, name: str) -> list[DatasetEntry]:
    """The dataset of this name, or the datasets of the experiment's seeds."""
    entries = load_entries(home)
    if name in entries:
        return [entries[name]]
    seeds = [e for e in entries.values() if e.seed is not None and e.name == seed_name(name, e.seed, e.noise)]
    if not seeds:
        raise LookupError(
            f"{name!r} is not a dataset, and no experiment has trained seeds of it; datasets: {', '.join(entries)}. To "
            f"train seeds of a configuration: vsr1 experiment --config {name}"
        )
    if len({configuration_of(home, dataclasses.replace(entry, seed=0, noise=0)) for entry in seeds}) > 1:
        raise ValueError(f"the seeds of {name} are built with different configurations; name one of them")
    return sorted(seeds, key=lambda entry: (entry.seed or 0, entry.noise))


def _shared_queries(a: Side, b: Side) -> list[str]:
    """Ids of the queries that all datasets of both sides have, with the same text."""
    texts = [dict(side.moments.select("query_id", "query").iter_rows()) for side in (a, b)]
    scored = [set(next(iter(scores.values())).query_ids) for side in (a, b) for scores in side.scores]
    shared = set.intersection(*scored)
    same = sorted(query_id for query_id in shared if texts[0].get(query_id) == texts[1].get(query_id))
    if not same:
        raise ValueError(
            f"{a.name} ({len(texts[0]):,} queries of {a.split}) and {b.name} ({len(texts[1]):,} of {b.split}) have no "
            "query in common: compare two builds of the same videos and annotations"
        )
    return same


# ---- metrics -----------------------------------------------------------------------------------------------------


def _metric_table(a: Side, b: Side, methods: Sequence[str], shared: Sequence[str]) -> pl.DataFrame:
    rows = []
    recipe = b.config.evaluation
    for method in methods:
        ours, theirs = [_mean(side, method, shared, recipe.num_resamples, recipe.seed) for side in (a, b)]
        for metric in (name for name in ours if name in theirs):
            (value_a, samples_a), (value_b, samples_b) = ours[metric], theirs[metric]
            with np.errstate(invalid="ignore"):
                gap = interval(samples_b - samples_a)
            rows.append((method, metric, value_a, value_b, value_b - value_a, *gap))
    frame = pl.DataFrame(rows, schema=METRIC_SCHEMA, orient="row")
    numbers = [name for name, kind in METRIC_SCHEMA.items() if kind == pl.Float64]
    return frame.with_columns(pl.when(pl.col(name).is_finite()).then(pl.col(name)).alias(name) for name in numbers)


def _mean(
    side: Side, method: str, shared: Sequence[str], num_resamples: int, seed: int
) -> dict[str, tuple[float, FloatArray]]:
    """Metric -> (its mean over the side's datasets on the shared queries, the same on each of (R,) resamples of them).
    The seed draws the same queries for both sides, which makes the differences paired."""
    found = [_only(scores[method], shared) for scores in side.scores]
    drawn = [bootstrap(scores, num_resamples, seed) for scores in found]
    each = [values(scores) for scores in found]
    names = [name for name in each[0] if all(name in other for other in each)]
    return {n: (float(np.mean([v[n] for v in each])), np.mean([s[n] for s in drawn], axis=0)) for n in names}


def _only(scores: Scores, query_ids: Sequence[str]) -> Scores:
    """The scores of these queries, in the order of `query_ids`."""
    place = {query_id: i for i, query_id in enumerate(scores.query_ids)}
    rows = np.array([place[query_id] for query_id in query_ids], dtype=np.int64)
    parts = {
        name: dataclasses.replace(part, **{field: array[rows] for field, array in vars(part).items()})
        for name, part in scores.parts.items()
    }
    return Scores(tuple(query_ids), parts)


# ---- queries -----------------------------------------------------------------------------------------------------


def _query_changes(a: Side, b: Side, method: str, shared: Sequence[str]) -> Iterator[QueryChange]:
    """The queries that the sides answer differently, those that were won or lost first."""
    texts = dict(a.moments.select("query_id", "query").iter_rows())
    ours, theirs = _answers(a, method), _answers(b, method)
    changes = []
    for query_id in shared:
        (found_a, rank_a), (found_b, rank_b) = ours[query_id], theirs[query_id]
        if (change := _change(found_b - found_a, rank_a, rank_b)) is not None:
            ranks = [rank if np.isfinite(rank) else None for rank in (rank_a, rank_b)]
            changes.append(QueryChange(method, change, query_id, texts[query_id], found_a, found_b, *ranks))
    yield from sorted(changes, key=lambda change: CHANGES.index(change.change))


def _change(gain: float, rank_a: float, rank_b: float) -> Change | None:
    if gain:
        return "won" if gain > 0 else "lost"
    return None if rank_a == rank_b else "rank up" if rank_b < rank_a else "rank down"


def _answers(side: Side, method: str) -> dict[str, tuple[float, float]]:
    """query_id -> (share of the side's datasets that found the moment, median rank of the right video)."""
    found: dict[str, list[tuple[bool, float]]] = {}
    for view in side.views:
        episodes = load_episodes(side.moments, view.rows(f"predictions.{method}"))
        ended = dict(outcomes(episodes).iter_rows())
        for query_id, rank in zip(episodes.query_ids, episodes.rank.tolist(), strict=True):
            found.setdefault(query_id, []).append((ended[query_id] == "found", rank))
    return {
        query_id: (float(np.mean([is_found for is_found, _ in each])), _median([rank for _, rank in each]))
        for query_id, each in found.items()
    }


def _median(ranks: Sequence[float]) -> float:
    """The median; of an even number the upper one of the two in the middle, because a mean with a missing rank
    (infinite) would be missing as well."""
    return sorted(ranks)[len(ranks) // 2]
