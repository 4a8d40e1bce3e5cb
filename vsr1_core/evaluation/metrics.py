"""Metrics of METHOD 8 in plain numpy: spans, ranks, verdicts, and bootstrap intervals over queries.

What is scored: every annotated query. One without a usable prediction (its video is missing, its row failed) has no
rank and no answer: it scores 0 in recall, MRR, VCMR and mIoU, counts as one wrong verification, and its rank is
infinite in the median (`median_rank` is infinite when more than half of the queries have no rank).
Three kinds of metrics are conditional and leave such queries out, because there is nothing to judge: `grounding_*`,
`matched_*`, and those of verification probes (`PROBE_METRICS`); token counts are means over the queries that ran, so
that failing never looks cheap.
Shares are in [0, 1]. No tables are read or written here, no plots are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]

RECALL_KS = (1, 5, 10, 100)
IOU_THRESHOLDS = (0.3, 0.5, 0.7)
MIN_SPAN_S = 1e-9
"""A span shorter than this has IoU 0 with everything."""

OUTCOMES = {
    "found": "right video accepted, IoU at least 0.5",
    "wrong_span": "right video accepted, IoU below 0.5",
    "right_video_rejected": "never matched, although the right video was shown",
    "wrong_video_accepted": "a wrong video was accepted",
    "never_shown": "never matched, and the right video was never shown",
    "no_prediction": "failed or without a prediction",
}
"""Where a query ends: each query has exactly one of these."""

PROBE_METRICS = (
    "balanced_verification_accuracy",
    "balanced_grounding_0.5",
    "grounding_given_matched_0.5",
    "constant_span_grounding_0.5",
)
"""What is scored on one right and one wrong video a query, and not on the episodes; see `score`."""

TOKEN_COUNTS = ("num_text_tokens", "num_latent_tokens", "num_query_tokens")
"""Means a query. The tokens of rewritten queries are among the text tokens."""

_CHUNK_CELLS = 2_000_000


def temporal_iou(start_s: ArrayLike, end_s: ArrayLike, gt_start_s: ArrayLike, gt_end_s: ArrayLike) -> FloatArray:
    """Intersection over union of spans in seconds, elementwise with broadcasting; scalars give a 0-d array.

    0 where a bound is missing (None or NaN) or infinite, and where either span is shorter than 1e-9 s or reversed.
    """
    a0, a1, b0, b1 = (np.asarray(bound, dtype=np.float64) for bound in (start_s, end_s, gt_start_s, gt_end_s))
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        length_a, length_b = a1 - a0, b1 - b0
        intersection = np.maximum(np.minimum(a1, b1) - np.maximum(a0, b0), 0.0)
        iou = intersection / (length_a + length_b - intersection)
        usable = (length_a >= MIN_SPAN_S) & (length_b >= MIN_SPAN_S) & np.isfinite(length_a) & np.isfinite(length_b)
    return np.asarray(np.where(usable, np.nan_to_num(iou), 0.0), dtype=np.float64)


def as_ranks(ranks: ArrayLike) -> FloatArray:
    """Ranks as floats, the missing ones (None or NaN) infinite. Shape (Q,)."""
    values = np.atleast_1d(np.asarray(ranks, dtype=np.float64))
    return np.where(np.isnan(values), np.inf, values)


def recall_at_k(ranks: ArrayLike, k: int) -> float:
    """Share of queries whose rank is at most k; a missing rank is a miss. NaN for no queries."""
    return _mean(as_ranks(ranks) <= k)


def mrr(ranks: ArrayLike) -> float:
    """Mean of 1 / rank; a missing rank counts 0. NaN for no queries."""
    return _mean(1.0 / as_ranks(ranks))


def median_rank(ranks: ArrayLike) -> float:
    """The median rank, missing ones infinite. NaN for no queries."""
    ordered = np.sort(as_ranks(ranks))
    if not ordered.size:
        return float("nan")
    return float((ordered[(ordered.size - 1) // 2] + ordered[ordered.size // 2]) / 2)


def vcmr(is_right_video: ArrayLike, is_matched: ArrayLike, iou: ArrayLike, threshold: float) -> float:
    """Share of queries whose answer is the right video, accepted, with IoU at least `threshold`."""
    return _mean(_answer_iou(is_right_video, is_matched, iou) >= threshold)


def miou(is_right_video: ArrayLike, is_matched: ArrayLike, iou: ArrayLike) -> float:
    """Mean IoU of the answers; 0 for a wrong video and for no answer."""
    return _mean(_answer_iou(is_right_video, is_matched, iou))


def _answer_iou(is_right_video: ArrayLike, is_matched: ArrayLike, iou: ArrayLike) -> FloatArray:
    counts = np.asarray(is_right_video, dtype=bool) & np.asarray(is_matched, dtype=bool)
    return np.where(counts, np.asarray(iou, dtype=np.float64), 0.0)


def _mean(values: NDArray[np.generic]) -> float:
    return float(np.mean(values.astype(np.float64))) if values.size else float("nan")


# ---- episodes as arrays ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verifications:
    """All verdicts of a method, one element each, shape (V,), in the order of query and turn.

    query: position of the query in `Episodes.query_ids`. rank: of the right video in this turn's ranking, inf if
    missing. iou: 0 unless the shown video is the right one. probability: of a match, NaN if not known.
    """

    query: IntArray
    turn: IntArray
    rank: FloatArray
    is_right_video: BoolArray
    is_matched: BoolArray
    is_correct: BoolArray
    iou: FloatArray
    probability: FloatArray
    num_text_tokens: FloatArray
    num_latent_tokens: FloatArray


@dataclass(frozen=True)
class Episodes:
    """One method's results for all annotated queries, each array of shape (Q,). `iou` is the strict answer's: 0 unless
    the right video was accepted. `best_iou` is that of the answer policy `best`: 0 unless it names the right video."""

    query_ids: tuple[str, ...]
    has_prediction: BoolArray
    first_rank: FloatArray
    rank: FloatArray
    is_matched: BoolArray
    is_right_video: BoolArray
    iou: FloatArray
    best_iou: FloatArray
    num_text_tokens: FloatArray
    num_latent_tokens: FloatArray
    num_query_tokens: FloatArray
    verifications: Verifications


def load_episodes(moments: pl.DataFrame, predictions: pl.DataFrame) -> Episodes:
    """Align a method's predictions with the annotated queries.

    moments: query_id, video_id, start_s, end_s (the truth, one row a query). predictions: the columns of a
    `predictions.<method>` table; rows that are not ok and rows of other queries are left out.
    Raises ValueError when a query has two rows.
    """
    truth = moments.select("query_id", gt_video="video_id", gt_start="start_s", gt_end="end_s").sort("query_id")
    truth = truth.with_row_index("query")
    rows = predictions.filter(pl.col("status") == "ok") if "status" in predictions.columns else predictions
    if truth["query_id"].n_unique() != truth.height or rows["query_id"].n_unique() != rows.height:
        raise ValueError("a query_id occurs twice: metrics need one moment and at most one prediction a query")
    columns = ["query_id", "video_id", "first_rank", "rank", "decision", "start_s", "end_s"]
    columns += ["best_video_id", "best_start_s", "best_end_s", "turns"]
    rows = rows.select(*columns, *TOKEN_COUNTS, has_prediction=pl.lit(True))
    frame = truth.join(rows, on="query_id", how="left").sort("query")
    is_right, is_matched = _is_right(frame), _equals(frame["decision"], "matched")
    best = frame.select("gt_video", "gt_start", "gt_end", pl.col("^best_.*$").name.map(lambda n: n[len("best_") :]))
    return Episodes(
        query_ids=tuple(frame["query_id"].to_list()),
        has_prediction=frame["has_prediction"].fill_null(False).to_numpy(),
        first_rank=as_ranks(_floats(frame["first_rank"])),
        rank=as_ranks(_floats(frame["rank"])),
        is_matched=is_matched,
        is_right_video=is_right,
        iou=_answer_iou(is_right, is_matched, _span_iou(frame)),
        best_iou=np.where(_is_right(best), _span_iou(best), 0.0),
        **{name: np.nan_to_num(_floats(frame[name])) for name in TOKEN_COUNTS},
        verifications=_verifications(frame),
    )


def _verifications(frame: pl.DataFrame) -> Verifications:
    truth = frame.select("query", "gt_video", "gt_start", "gt_end", "turns")
    turns = truth.explode("turns").drop_nulls("turns").unnest("turns").sort("query", "turn")
    is_right, is_matched = _is_right(turns), _equals(turns["decision"], "matched")
    is_decided = is_matched | _equals(turns["decision"], "not_matched")
    return Verifications(
        query=turns["query"].cast(pl.Int64).to_numpy(),
        turn=turns["turn"].cast(pl.Int64).to_numpy(),
        rank=as_ranks(_floats(turns["rank"])),
        is_right_video=is_right,
        is_matched=is_matched,
        is_correct=is_decided & (is_matched == is_right),
        iou=np.where(is_right, _span_iou(turns), 0.0),
        probability=_floats(turns["matched_probability"]),
        num_text_tokens=np.nan_to_num(_floats(turns["num_text_tokens"])),
        num_latent_tokens=np.nan_to_num(_floats(turns["num_latent_tokens"])),
    )


def _is_right(frame: pl.DataFrame) -> BoolArray:
    return (frame["video_id"] == frame["gt_video"]).fill_null(False).to_numpy()


def _equals(values: pl.Series, text: str) -> BoolArray:
    return (values == text).fill_null(False).to_numpy()


def _span_iou(frame: pl.DataFrame) -> FloatArray:
    return temporal_iou(*(_floats(frame[name]) for name in ("start_s", "end_s", "gt_start", "gt_end")))


def _floats(values: pl.Series) -> FloatArray:
    """Null becomes NaN."""
    return values.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def outcomes(episodes: Episodes) -> pl.DataFrame:
    """(query_id, outcome): where each query ended, a key of `OUTCOMES`."""
    shown = _per_query(episodes, episodes.verifications.is_right_video) > 0
    accepted = episodes.is_matched & episodes.is_right_video
    labels = np.select(
        [~episodes.has_prediction, accepted & (episodes.iou >= 0.5), accepted, episodes.is_matched, shown],
        ["no_prediction", "found", "wrong_span", "wrong_video_accepted", "right_video_rejected"],
        "never_shown",
    )
    return pl.DataFrame(
        {"query_id": list(episodes.query_ids), "outcome": labels.tolist()},
        schema={"query_id": pl.String, "outcome": pl.String},
    )


def best_constant_span(moments: pl.DataFrame, threshold: float = 0.5, steps: int = 20) -> tuple[float, float, float]:
    """(start, end, share): the one span, in shares of each video's length, that hits most moments at this IoU.

    The share is with hindsight, on the very moments the span is chosen on: grounding without looking at its best.
    moments: start_s, end_s, duration_s. (0, 1, 0) for no moments.
    """
    start, end, duration = (_floats(moments[name]) for name in ("start_s", "end_s", "duration_s"))
    best = (0.0, 1.0, 0.0)
    for first in range(steps):
        for last in range(first + 1, steps + 1):
            iou = temporal_iou(first / steps * duration, last / steps * duration, start, end)
            share = float((iou >= threshold).mean()) if iou.size else 0.0
            best = max(best, (first / steps, last / steps, share), key=lambda span: span[2])
    return best


# ---- probes as arrays --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probes:
    """Verdicts on one right and one wrong video a query, shapes (Q,), in the order of `Episodes.query_ids`.

    has_right, has_wrong: which were asked. accepts_right: matched. rejects_wrong: not_matched. iou: 0 unless the right
    video was matched. constant_iou: of the span fitted on the train moments, NaN where there are none.
    """

    has_right: BoolArray
    has_wrong: BoolArray
    accepts_right: BoolArray
    rejects_wrong: BoolArray
    iou: FloatArray
    constant_iou: FloatArray


def load_probes(moments: pl.DataFrame, probes: pl.DataFrame, train_moments: pl.DataFrame) -> Probes:
    """Align a method's `verification_probe.<method>` rows with the annotated queries.

    moments: query_id, start_s, end_s, duration_s of the scored queries. train_moments: start_s, end_s, duration_s of
    the train split, which alone decides the constant span. Raises polars' ComputeError where a query has two rows of
    one label.
    """
    columns = {"gt_start": "start_s", "gt_end": "end_s", "duration": "duration_s"}
    truth = moments.select("query_id", **columns).sort("query_id")
    rows = probes.filter(pl.col("status") == "ok") if "status" in probes.columns else probes
    rows = rows.select("query_id", "label", "decision", "start_s", "end_s", is_shown=pl.lit(True))
    right, wrong = (
        truth.join(rows.filter(pl.col("label") == label), on="query_id", how="left", validate="1:1").sort("query_id")
        for label in ("matched", "not_matched")
    )
    accepts_right = _equals(right["decision"], "matched")
    return Probes(
        has_right=right["is_shown"].fill_null(False).to_numpy(),
        has_wrong=wrong["is_shown"].fill_null(False).to_numpy(),
        accepts_right=accepts_right,
        rejects_wrong=_equals(wrong["decision"], "not_matched"),
        iou=np.where(accepts_right, _span_iou(right), 0.0),
        constant_iou=_constant_iou(truth, train_moments),
    )


def _constant_iou(truth: pl.DataFrame, train_moments: pl.DataFrame) -> FloatArray:
    if train_moments.is_empty():
        return np.full(truth.height, np.nan)
    start, end, _ = best_constant_span(train_moments)
    duration = _floats(truth["duration"])
    return temporal_iou(start * duration, end * duration, _floats(truth["gt_start"]), _floats(truth["gt_end"]))


# ---- scores: every metric as a ratio of sums over queries ---------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """Each metric's parts per query: value = sum(numerators) / sum(denominators) over the queries, M metrics.

    numerators, denominators: (Q, M) in the order of `names`. ranks: (Q,), for the median, which is no ratio; None where
    no median is asked for.
    """

    query_ids: tuple[str, ...]
    names: tuple[str, ...]
    numerators: FloatArray
    denominators: FloatArray
    ranks: FloatArray | None = None

    @classmethod
    def of(
        cls, query_ids: tuple[str, ...], parts: Mapping[str, tuple[FloatArray, FloatArray]], ranks: FloatArray | None
    ) -> Scores:
        """From each metric's (numerators, denominators), (Q,) each."""
        numerators, denominators = (np.stack([pair[side] for pair in parts.values()], axis=1) for side in (0, 1))
        return cls(query_ids, tuple(parts), numerators, denominators, ranks)

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """Several scores of the same queries as one; the ranks are the first one's."""
        first = parts[0]
        names = tuple(name for part in parts for name in part.names)
        sides = (np.concatenate([getattr(p, s) for p in parts], axis=1) for s in ("numerators", "denominators"))
        numerators, denominators = sides
        return cls(first.query_ids, names, numerators, denominators, first.ranks)


def metric_names() -> tuple[str, ...]:
    """All metrics in the order of the tables. How they change with turns and soft tokens is in `evaluation.curves`."""
    thresholds = [f"{threshold}" for threshold in IOU_THRESHOLDS]
    return (
        *(f"first_recall_at_{k}" for k in RECALL_KS),
        *(f"recall_at_{k}" for k in RECALL_KS),
        "mrr",
        "median_rank",
        *(f"vcmr_{threshold}" for threshold in thresholds),
        "miou",
        *(f"vcmr_best_{threshold}" for threshold in thresholds),
        "verification_accuracy",
        "verification_accuracy_turn_1",
        "matched_precision",
        "matched_recall",
        "grounding_0.5",
        "grounding_0.7",
        *PROBE_METRICS,
        *TOKEN_COUNTS,
    )


def score(episodes: Episodes, probes: Probes | None = None) -> Scores:
    """Every metric of `metric_names`, per query.

    `vcmr_*`: the strict policy. `vcmr_best_*`: the policy `best`, which also answers where nothing was matched.
    `grounding_*`: over the verdicts `matched` on the right video, the share with IoU at least the threshold.
    `balanced_verification_accuracy`: over the probes of queries that were shown both a right and a wrong video.
    `balanced_grounding_0.5`: share of right-video probes that were matched with IoU at least 0.5;
    `grounding_given_matched_0.5`: the same over the matched ones only; `constant_span_grounding_0.5`: of the best
    constant span of the train split, on all right-video probes. Nothing is judged without `probes`.
    """
    parts: dict[str, tuple[FloatArray, FloatArray]] = {}
    every = np.ones(len(episodes.query_ids))
    for k in RECALL_KS:
        parts[f"first_recall_at_{k}"] = (episodes.first_rank <= k).astype(float), every
        parts[f"recall_at_{k}"] = (episodes.rank <= k).astype(float), every
    parts["mrr"] = 1.0 / episodes.rank, every
    parts["miou"] = episodes.iou, every
    for threshold in IOU_THRESHOLDS:
        parts[f"vcmr_{threshold}"] = (episodes.iou >= threshold).astype(float), every
        parts[f"vcmr_best_{threshold}"] = (episodes.best_iou >= threshold).astype(float), every
    ran = episodes.has_prediction.astype(float)
    parts |= {name: (getattr(episodes, name) * ran, ran) for name in TOKEN_COUNTS}
    parts |= _verification_parts(episodes)
    parts |= _probe_parts(probes) if probes else dict.fromkeys(PROBE_METRICS, (0.0 * every, 0.0 * every))
    ordered = {name: parts[name] for name in metric_names() if name != "median_rank"}
    return Scores.of(episodes.query_ids, ordered, episodes.rank)


def _per_query(episodes: Episodes, counted: BoolArray) -> FloatArray:
    """How many of each query's verifications are counted, shape (Q,). counted: shape (V,)."""
    return np.bincount(episodes.verifications.query[counted], minlength=len(episodes.query_ids)).astype(np.float64)


def _verification_parts(episodes: Episodes) -> dict[str, tuple[FloatArray, FloatArray]]:
    v = episodes.verifications

    def ratio(numerator: BoolArray, denominator: BoolArray) -> tuple[FloatArray, FloatArray]:
        return _per_query(episodes, numerator & denominator), _per_query(episodes, denominator)

    def with_failures(parts: tuple[FloatArray, FloatArray]) -> tuple[FloatArray, FloatArray]:
        return parts[0], np.maximum(parts[1], 1.0)

    accepted = v.is_matched & v.is_right_video
    return {
        "verification_accuracy": with_failures(ratio(v.is_correct, np.ones_like(v.is_correct))),
        "verification_accuracy_turn_1": with_failures(ratio(v.is_correct, v.turn == 1)),
        "matched_precision": ratio(v.is_right_video, v.is_matched),
        "matched_recall": ratio(v.is_matched, v.is_right_video),
        "grounding_0.5": ratio(v.iou >= 0.5, accepted),
        "grounding_0.7": ratio(v.iou >= 0.7, accepted),
    }


def _probe_parts(probes: Probes) -> dict[str, tuple[FloatArray, FloatArray]]:
    both = (probes.has_right & probes.has_wrong).astype(float)
    num_correct = probes.accepts_right.astype(float) + probes.rejects_wrong
    right, accepted = probes.has_right.astype(float), probes.accepts_right.astype(float)
    grounded = accepted * (probes.iou >= 0.5)
    is_fitted = right * ~np.isnan(probes.constant_iou)
    parts = (
        (num_correct * both, 2 * both),
        (grounded, right),
        (grounded, accepted),
        (is_fitted * (probes.constant_iou >= 0.5), is_fitted),
    )
    return dict(zip(PROBE_METRICS, parts, strict=True))


# ---- values and intervals ----------------------------------------------------------------------------------------


def values(scores: Scores) -> dict[str, float]:
    """Metric -> value, NaN where nothing is judged (no accepted right video, for grounding)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = scores.numerators.sum(axis=0) / scores.denominators.sum(axis=0)
    found = dict(zip(scores.names, ratios.tolist(), strict=True))
    return found if scores.ranks is None else {**found, "median_rank": median_rank(scores.ranks)}


def bootstrap(scores: Scores, num_resamples: int = 1000, seed: int = 42) -> dict[str, FloatArray]:
    """Metric -> its values on `num_resamples` resamples of the queries, shape (R,).

    The same seed draws the same queries for every method, which is what makes differences paired.
    """
    ranks = scores.ranks
    order = np.argsort(ranks, kind="stable") if ranks is not None else np.empty(0, np.int64)
    sums, medians = [], []
    parts = np.concatenate([scores.numerators, scores.denominators], axis=1)
    for counts in _resamples(len(scores.query_ids), num_resamples, seed):
        sums.append(counts @ parts)
        if ranks is not None:
            medians.append(_weighted_medians(ranks[order], counts[:, order]))
    totals = np.concatenate(sums)
    width = len(scores.names)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = totals[:, :width] / totals[:, width:]
    samples = {name: ratios[:, i] for i, name in enumerate(scores.names)}
    return {**samples, "median_rank": np.concatenate(medians)} if medians else samples


def _resamples(num_queries: int, num_resamples: int, seed: int) -> Iterator[FloatArray]:
    """How often each query is drawn, (C, Q) resamples at a time; a chunk holds at most `_CHUNK_CELLS` numbers."""
    generator = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_CELLS // max(1, num_queries))
    for start in range(0, num_resamples, chunk):
        size = min(chunk, num_resamples - start)
        draws = generator.integers(0, num_queries, size=(size, num_queries))
        flat = (draws + np.arange(size)[:, None] * num_queries).ravel()
        yield np.bincount(flat, minlength=size * num_queries).reshape(size, num_queries).astype(np.float64)


def _weighted_medians(ranks: FloatArray, counts: FloatArray) -> FloatArray:
    """Medians of sorted `ranks` (Q,) repeated `counts` (C, Q) times. Shape (C,)."""
    cumulative = np.cumsum(counts, axis=1)
    total = ranks.size
    low = (cumulative > (total - 1) // 2).argmax(axis=1)
    high = (cumulative > total // 2).argmax(axis=1)
    medians: FloatArray = (ranks[low] + ranks[high]) / 2
    return medians


def summarise(scores: Scores, num_resamples: int = 1000, seed: int = 42) -> pl.DataFrame:
    """(metric, value, low, high, num_queries, seed), one row a metric in the order of `scores.names`.

    low and high bound the 95 % percentile interval. num_queries: how many queries the metric is over. A value that
    is not finite is null: nothing to judge, or a median of mostly missing ranks. No rows for no queries.
    """
    if not scores.query_ids:
        return _summary([], seed)
    samples = bootstrap(scores, num_resamples, seed)
    counted = dict(zip(scores.names, (scores.denominators > 0).sum(axis=0).tolist(), strict=True))
    counted["median_rank"] = len(scores.query_ids)
    found = values(scores)
    order = list(scores.names)
    if "median_rank" in found:
        order.insert(order.index("mrr") + 1, "median_rank")
    return _summary([(name, found[name], *interval(samples[name]), counted[name]) for name in order], seed)


def _summary(rows: list[tuple[str, float, float, float, int]], seed: int) -> pl.DataFrame:
    schema = {"metric": pl.String, "value": pl.Float64, "low": pl.Float64, "high": pl.Float64, "num_queries": pl.Int64}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    numbers = [pl.when(pl.col(name).is_finite()).then(pl.col(name)).alias(name) for name in ("value", "low", "high")]
    return frame.with_columns(*numbers, pl.lit(seed, dtype=pl.Int64).alias("seed"))


def interval(samples: FloatArray) -> tuple[float, float]:
    """95 % percentile interval over the resamples that define the metric; never interpolates, for inf is a rank."""
    defined = np.sort(samples[~np.isnan(samples)])
    if not defined.size:
        return float("nan"), float("nan")
    last = defined.size - 1
    return float(defined[round(0.025 * last)]), float(defined[round(0.975 * last)])


def paired_differences(scores: Scores, baseline: Scores, num_resamples: int = 1000, seed: int = 42) -> pl.DataFrame:
    """(metric, difference, low, high): `scores` minus `baseline` on the same queries, with 95 % paired intervals.

    Raises ValueError when the two are not over the same queries. No rows for no queries.
    """
    if scores.query_ids != baseline.query_ids:
        raise ValueError("paired differences need the same queries on both sides")
    schema = {"metric": pl.String, "difference": pl.Float64, "low": pl.Float64, "high": pl.Float64}
    if not scores.query_ids:
        return pl.DataFrame(schema=schema)
    ours, theirs = bootstrap(scores, num_resamples, seed), bootstrap(baseline, num_resamples, seed)
    value, base = values(scores), values(baseline)
    with np.errstate(invalid="ignore"):
        rows = [(n, value[n] - base[n], *interval(ours[n] - theirs[n])) for n in ours if n in theirs]
    return pl.DataFrame(rows, schema=schema, orient="row").fill_nan(None)
