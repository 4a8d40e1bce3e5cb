"""The metrics. Each is one decorated function of a method's episodes or probes; all lists of metrics follow from these.

To add a metric, write one more function with `@episode_metric` or `@probe_metric` at the end of this file. It then has
rows with intervals in the table `metrics`, a column in the report, and is shown wherever its `places` say.

Every annotated query is scored. A query without a usable prediction (its video is missing, or its row failed) has no
rank and no answer: it scores 0 in recall, MRR, VCMR and mIoU, counts as one wrong verification, and its rank is
infinite in the median. Three kinds of metrics are conditional and leave such queries out, because there is nothing to
judge: grounding, `matched_*`, and the metrics of probes. Token counts are means over the queries that ran, so that
failed queries do not make a method look cheap. Shares are in [0, 1]. `docs/method.md` says which metrics the paper
reports.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import numpy as np

from vsr1_core.evaluation.episodes import Episodes
from vsr1_core.evaluation.metric_registry import REGISTERED, Metric, Place, Section, episode_metric, probe_metric
from vsr1_core.evaluation.probes import Probes
from vsr1_core.evaluation.scores import Median, Parts, Ratio, Scores
from vsr1_core.evaluation.spans import BoolArray, FloatArray

RECALL_KS = (1, 5, 10, 100)
IOU_THRESHOLDS = (0.3, 0.5, 0.7)


def all_metrics() -> dict[str, Metric]:
    """Every metric by its name, in the order of the tables."""
    return dict(REGISTERED)


def metrics_shown(place: Place) -> list[Metric]:
    """The metrics that are shown in a place, in the order of the tables."""
    return [metric for metric in REGISTERED.values() if place in metric.places]


def metrics_in(section: Section) -> list[Metric]:
    """The metrics of one table of the report, in its order."""
    return [metric for metric in REGISTERED.values() if metric.section == section]


def metrics_of(source: Literal["episodes", "probes"]) -> list[Metric]:
    """The metrics that are measured on episodes, or those that are measured on probes."""
    return [metric for metric in REGISTERED.values() if metric.source == source]


def score(episodes: Episodes, probes: Probes | None = None) -> Scores:
    """Measure every metric.

    Args:
        episodes: One method's episodes over Q queries.
        probes: Its probes over the same queries. If there are none (None), the metrics of probes judge nothing.

    Returns:
        What each query adds to each metric, in the order of the tables.

    Raises:
        ValueError: A metric does not give one number per query.
    """
    return Scores(episodes.query_ids, {name: metric.measure(episodes, probes) for name, metric in REGISTERED.items()})


# ---- retrieval ---------------------------------------------------------------------------------------------------


def over_all(per_query: FloatArray | BoolArray) -> Ratio:
    """The mean over all queries of `per_query`, which has shape (Q,) and holds numbers or hits."""
    return Ratio(per_query.astype(np.float64), np.ones(len(per_query)))


@episode_metric(
    "first_recall_at_{k}",
    label="R@{k}, first ranking",
    short="R@{k}, first",
    says="Share of queries whose right video has rank {k} or better by the query's own text, before any refinement.",
    section="first ranking",
    places={"overview": (1,), "experiment": (1,), "warning": (1,)},
    k=RECALL_KS,
)
def first_recall(episodes: Episodes, k: int) -> Parts:
    return over_all(episodes.first_rank <= k)


@episode_metric(
    "recall_at_{k}",
    label="R@{k}, last ranking",
    short="R@{k}",
    says="Share of queries whose right video has rank {k} or better in the last ranking.",
    section="last ranking",
    places={
        **dict.fromkeys(("overview", "differences", "turns", "turns plot", "history"), (1,)),
        **dict.fromkeys(("experiment", "warning", "soft tokens plot"), (1, 10)),
        "soft tokens": (1, 5, 10),
        "card": RECALL_KS,
    },
    k=RECALL_KS,
)
def recall(episodes: Episodes, k: int) -> Parts:
    return over_all(episodes.rank <= k)


@episode_metric(
    "segment_recall_at_{k}",
    label="R@{k} of windows",
    short="R@{k}, windows",
    says="Share of queries with a right one among the first {k} windows and whole videos of the last ranking.",
    section="windows",
    k=(1, 5, 10),
)
def segment_recall(episodes: Episodes, k: int) -> Parts:
    if episodes.segment_rank is None:
        return Ratio(np.zeros(len(episodes.query_ids)), np.zeros(len(episodes.query_ids)))
    return over_all(episodes.segment_rank <= k)


@episode_metric(
    "mrr",
    label="MRR",
    says="Mean of 1 / rank of the right video in the last ranking; 0 if it has no rank.",
    section="last ranking",
)
def mean_reciprocal_rank(episodes: Episodes) -> Parts:
    return over_all(1.0 / episodes.rank)


@episode_metric(
    "median_rank",
    label="median rank",
    says="Median rank of the right video in the last ranking; undefined if more than half of the queries have no rank.",
    better="lower",
    unit="rank",
    section="last ranking",
)
def median_rank(episodes: Episodes) -> Parts:
    return Median(episodes.rank)


# ---- moment retrieval --------------------------------------------------------------------------------------------


@episode_metric(
    "vcmr_{iou}",
    label="VCMR, IoU ≥ {iou}",
    short="VCMR {iou}",
    says="Share of queries answered with the right video, accepted, and a span of IoU at least {iou}.",
    section="moments",
    places={
        **dict.fromkeys(("turns", "card", "experiment"), IOU_THRESHOLDS),
        **dict.fromkeys(("overview", "differences", "turns plot", "history", "warning"), (0.5,)),
    },
    iou=IOU_THRESHOLDS,
)
def vcmr(episodes: Episodes, iou: float) -> Parts:
    return over_all(episodes.iou >= iou)


@episode_metric(
    "miou", label="mIoU", says="Mean IoU of the answers; 0 for a wrong video and for no answer.", section="moments"
)
def mean_iou(episodes: Episodes) -> Parts:
    return over_all(episodes.iou)


@episode_metric(
    "vcmr_best_{iou}",
    label="VCMR of the best answer, IoU ≥ {iou}",
    short="VCMR {iou}, best",
    says="As `vcmr_{iou}`, but a query without an accepted video answers with the shown one most likely to match.",
    section="best answers",
    places={"experiment": (0.5,)},
    iou=IOU_THRESHOLDS,
)
def vcmr_of_best_answers(episodes: Episodes, iou: float) -> Parts:
    return over_all(episodes.best_iou >= iou)


# ---- verification ------------------------------------------------------------------------------------------------


def over_verdicts(episodes: Episodes, hits: BoolArray, judged: BoolArray) -> Ratio:
    """The share of hits among the judged verdicts; `hits` and `judged` have shape (V,)."""
    return Ratio(episodes.per_query(hits & judged), episodes.per_query(judged))


def counting_failures(ratio: Ratio) -> Ratio:
    """The same ratio, except that a query with nothing to judge counts as one miss."""
    return Ratio(ratio.numerators, np.maximum(ratio.denominators, 1.0))


@episode_metric(
    "verification_accuracy",
    label="verification accuracy",
    short="verification",
    says="Share of right decisions about the shown videos; any decision but matched or not_matched is wrong.",
    section="verification",
    places=("overview", "differences", "experiment", "card", "warning"),
)
def verification_accuracy(episodes: Episodes) -> Parts:
    correct = episodes.verifications.is_correct
    return counting_failures(over_verdicts(episodes, correct, np.ones_like(correct)))


@episode_metric(
    "verification_accuracy_turn_1",
    label="verification accuracy, turn 1",
    short="verification, turn 1",
    says="Share of right decisions about the first video that was shown.",
    section="verification",
)
def first_verification_accuracy(episodes: Episodes) -> Parts:
    v = episodes.verifications
    return counting_failures(over_verdicts(episodes, v.is_correct, v.turn == 1))


@episode_metric(
    "matched_precision",
    label="precision of matched",
    says="Share of the accepted videos that are the right one.",
    section="verification",
)
def matched_precision(episodes: Episodes) -> Parts:
    v = episodes.verifications
    return over_verdicts(episodes, v.is_right_video, v.is_matched)


@episode_metric(
    "matched_recall",
    label="recall of matched",
    says="Share of the shown right videos that were accepted.",
    section="verification",
)
def matched_recall(episodes: Episodes) -> Parts:
    v = episodes.verifications
    return over_verdicts(episodes, v.is_matched, v.is_right_video)


@episode_metric(
    "grounding_{iou}",
    label="grounding, IoU ≥ {iou}",
    says="Share of the accepted right videos whose span has IoU at least {iou}.",
    section="verification",
    places={"overview": (0.5,), "experiment": (0.5,)},
    iou=(0.5, 0.7),
)
def grounding(episodes: Episodes, iou: float) -> Parts:
    v = episodes.verifications
    return over_verdicts(episodes, v.iou >= iou, v.is_matched & v.is_right_video)


# ---- probes: one right and one wrong video per query --------------------------------------------------------------


@probe_metric(
    "balanced_verification_accuracy",
    label="verification accuracy, balanced set",
    short="accuracy",
    says="Share of right decisions where each query is shown one right and one wrong video; guessing reaches one half.",
    section="balanced set",
    places=("experiment",),
)
def balanced_verification_accuracy(probes: Probes) -> Parts:
    both = (probes.has_right & probes.has_wrong).astype(np.float64)
    return Ratio((probes.accepts_right.astype(np.float64) + probes.rejects_wrong) * both, 2 * both)


@probe_metric(
    "balanced_grounding_{iou}",
    label="grounding of right videos, IoU ≥ {iou}",
    short="grounding, IoU ≥ {iou}",
    says="Share of right videos that were accepted with a span of IoU at least {iou}, without search.",
    section="balanced set",
    iou=(0.5,),
)
def balanced_grounding(probes: Probes, iou: float) -> Parts:
    accepted = probes.accepts_right.astype(np.float64)
    return Ratio(accepted * (probes.iou >= iou), probes.has_right.astype(np.float64))


@probe_metric(
    "grounding_given_matched_{iou}",
    label="grounding of accepted right videos, IoU ≥ {iou}",
    short="of the matched",
    says="Share of the right videos accepted without search whose span has IoU at least {iou}.",
    section="balanced set",
    iou=(0.5,),
)
def grounding_given_matched(probes: Probes, iou: float) -> Parts:
    accepted = probes.accepts_right.astype(np.float64)
    return Ratio(accepted * (probes.iou >= iou), accepted)


@probe_metric(
    "constant_span_grounding_{iou}",
    label="grounding of a constant span, IoU ≥ {iou}",
    short="constant span",
    says="Share of the same right videos on which the best constant span of the train split has IoU at least {iou}.",
    section="balanced set",
    iou=(0.5,),
)
def constant_span_grounding(probes: Probes, iou: float) -> Parts:
    is_fitted = probes.has_right.astype(np.float64) * ~np.isnan(probes.constant_iou)
    return Ratio(is_fitted * (probes.constant_iou >= iou), is_fitted)


# ---- tokens ------------------------------------------------------------------------------------------------------

_tokens = partial(episode_metric, better="lower", unit="tokens", section="tokens")


def over_those_that_ran(episodes: Episodes, per_query: FloatArray) -> Ratio:
    """The mean of `per_query`, of shape (Q,), over the queries that have a prediction."""
    ran = episodes.has_prediction.astype(np.float64)
    return Ratio(per_query * ran, ran)


@_tokens(
    "num_text_tokens",
    label="text tokens per query",
    short="text tokens",
    says="Mean number of text tokens that the policy wrote per query, over the queries that ran.",
    places=("differences", "experiment", "turns"),
)
def num_text_tokens(episodes: Episodes) -> Parts:
    return over_those_that_ran(episodes, episodes.num_text_tokens)


@_tokens(
    "num_latent_tokens",
    label="latent tokens per query",
    short="latent tokens",
    says="Mean number of soft query tokens that the policy made per query, over the queries that ran.",
    places=("experiment", "turns"),
)
def num_latent_tokens(episodes: Episodes) -> Parts:
    return over_those_that_ran(episodes, episodes.num_latent_tokens)


@_tokens(
    "num_query_tokens",
    label="of the text tokens, in new queries",
    says="Mean number of text tokens that belong to queries that the policy rewrote, over the queries that ran.",
    places=("experiment",),
)
def num_query_tokens(episodes: Episodes) -> Parts:
    return over_those_that_ran(episodes, episodes.num_query_tokens)
