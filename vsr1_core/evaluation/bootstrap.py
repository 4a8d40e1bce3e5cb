"""Bootstrap intervals over queries, and paired differences between methods, in plain numpy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from vsr1_core.evaluation.scores import Scores, values
from vsr1_core.evaluation.spans import FloatArray

_CHUNK_CELLS = 2_000_000


def bootstrap(scores: Scores, num_resamples: int = 1000, seed: int = 42) -> dict[str, FloatArray]:
    """Compute every metric on resamples of the queries, which are drawn with replacement.

    Args:
        scores: What each query adds to each metric.
        num_resamples: How many resamples are drawn (R).
        seed: The same seed draws the same queries for every method, which is what makes differences paired.

    Returns:
        Metric -> its values on the resamples, shape (R,), in the order of `scores.names`; NaN where nothing is judged.
    """
    orders = {name: np.argsort(part.per_query, kind="stable") for name, part in scores.medians.items()}
    sums: list[FloatArray] = []
    medians: dict[str, list[FloatArray]] = {name: [] for name in orders}
    parts = np.concatenate([scores.numerators, scores.denominators], axis=1)
    for counts in _resamples(len(scores.query_ids), num_resamples, seed):
        sums.append(counts @ parts)
        for name, order in orders.items():
            medians[name].append(_weighted_medians(scores.medians[name].per_query[order], counts[:, order]))
    totals, width = np.concatenate(sums), len(scores.ratios)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = totals[:, :width] / totals[:, width:]
    samples = {name: ratios[:, i] for i, name in enumerate(scores.ratios)}
    samples |= {name: np.concatenate(chunks) for name, chunks in medians.items()}
    return {name: samples[name] for name in scores.names}


def _resamples(num_queries: int, num_resamples: int, seed: int) -> Iterator[FloatArray]:
    """How often each query is drawn, (C, Q) resamples at a time; a chunk holds at most `_CHUNK_CELLS` numbers."""
    generator = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_CELLS // max(1, num_queries))
    for start in range(0, num_resamples, chunk):
        size = min(chunk, num_resamples - start)
        draws = generator.integers(0, num_queries, size=(size, num_queries))
        flat = (draws + np.arange(size)[:, None] * num_queries).ravel()
        yield np.bincount(flat, minlength=size * num_queries).reshape(size, num_queries).astype(np.float64)


def _weighted_medians(ordered: FloatArray, counts: FloatArray) -> FloatArray:
    """Medians of sorted numbers (Q,) that are repeated `counts` (C, Q) times. Shape (C,)."""
    cumulative = np.cumsum(counts, axis=1)
    total = ordered.size
    low = (cumulative > (total - 1) // 2).argmax(axis=1)
    high = (cumulative > total // 2).argmax(axis=1)
    medians: FloatArray = (ordered[low] + ordered[high]) / 2
    return medians


def interval(samples: FloatArray) -> tuple[float, float]:
    """The 95 % percentile interval over the resamples in which the metric is defined. It does not interpolate, because
    a rank may be infinite."""
    defined = np.sort(samples[~np.isnan(samples)])
    if not defined.size:
        return float("nan"), float("nan")
    last = defined.size - 1
    return float(defined[round(0.025 * last)]), float(defined[round(0.975 * last)])


def summarise(scores: Scores, num_resamples: int = 1000, seed: int = 42) -> pl.DataFrame:
    """Every metric with its 95 % percentile interval over queries.

    Args:
        scores: What each query adds to each metric.
        num_resamples: How many resamples of the queries the interval is taken from.
        seed: Seed of the resampling.

    Returns:
        (metric, value, low, high, num_queries, seed), one row per metric in the order of `scores.names`; there are no
        rows if there are no queries. num_queries says how many queries the metric judges. A number that is not
        finite is null: nothing to judge, or a median of mostly missing ranks.
    """
    schema = {"metric": pl.String, "value": pl.Float64, "low": pl.Float64, "high": pl.Float64, "num_queries": pl.Int64}
    rows = []
    if scores.query_ids:
        found, samples = values(scores), bootstrap(scores, num_resamples, seed)
        rows = [(name, found[name], *interval(samples[name]), scores.num_judged(name)) for name in scores.names]
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    numbers = [pl.when(pl.col(name).is_finite()).then(pl.col(name)).alias(name) for name in ("value", "low", "high")]
    return frame.with_columns(*numbers, pl.lit(seed, dtype=pl.Int64).alias("seed"))


def paired_differences(scores: Scores, baseline: Scores, num_resamples: int = 1000, seed: int = 42) -> pl.DataFrame:
    """How much better or worse one method is than another on the same queries.

    Args:
        scores: Of the method in question.
        baseline: Of the method it is compared with, over the same queries.
        num_resamples: How many resamples of the queries the interval is taken from.
        seed: Seed of the resampling.

    Returns:
        (metric, difference, low, high): `scores` minus `baseline` with a paired 95 % interval, one row per metric that
        both have; no rows if there are no queries.

    Raises:
        ValueError: The two are not over the same queries.
    """
    if scores.query_ids != baseline.query_ids:
        raise ValueError(
            f"paired differences need the same queries on both sides, but these are over {len(scores.query_ids)} and "
            f"{len(baseline.query_ids)} queries or in another order"
        )
    schema = {"metric": pl.String, "difference": pl.Float64, "low": pl.Float64, "high": pl.Float64}
    if not scores.query_ids:
        return pl.DataFrame(schema=schema)
    ours, theirs = bootstrap(scores, num_resamples, seed), bootstrap(baseline, num_resamples, seed)
    value, base = values(scores), values(baseline)
    with np.errstate(invalid="ignore"):
        rows = [(n, value[n] - base[n], *interval(ours[n] - theirs[n])) for n in ours if n in theirs]
    return pl.DataFrame(rows, schema=schema, orient="row").fill_nan(None)
