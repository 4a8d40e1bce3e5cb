"""The sections of the report that show scores. Each function returns the lines of one section."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import polars as pl

from vsr1_core.evaluation.bootstrap import paired_differences
from vsr1_core.evaluation.columns import best_constant_span
from vsr1_core.evaluation.curves import SOFT_TOKENS, TURNS
from vsr1_core.evaluation.markdown import counted, markdown_table, signed_with_interval, with_interval
from vsr1_core.evaluation.metrics import (
    IOU_THRESHOLDS,
    RECALL_KS,
    Metric,
    all_metrics,
    metrics_in,
    metrics_shown,
    score,
)
from vsr1_core.evaluation.published import PUBLISHED, SOURCE, PublishedRow
from vsr1_core.evaluation.report_data import (
    Analysis,
    ReportInputs,
    has_values,
    metric_cell,
    metric_rows,
    metric_table,
    plot_lines,
)
from vsr1_core.evaluation.row_types import CurveRow, DifferenceRow, typed_rows


def overview(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    metrics = metrics_shown("overview")
    header = ["method", *(metric.label for metric in metrics)]
    return ["## At a glance", "", *markdown_table(header, metric_rows(inputs, metrics))]


def retrieval(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    last = "In the last ranking (the ranking of the matched turn, or the one after the last refinement):"
    lines = ["## Video retrieval", "", last, "", *metric_table(inputs, metrics_in("last ranking"))]
    lines += ["", "By the query's own text, before any refinement:", ""]
    lines += metric_table(inputs, metrics_in("first ranking"))
    if inputs.num_videos:
        chance = ", ".join(f"R@{k} {100 * min(1, k / inputs.num_videos):.1f}" for k in RECALL_KS)
        lines += ["", f"Chance among {inputs.num_videos:,} videos: {chance}."]
    if methods := has_values(inputs, metrics_in("windows")):
        counted_by = "Counted by windows: a right one holds at least half of the moment, or of itself if that is less."
        lines += ["", counted_by, "", *metric_table(inputs, metrics_in("windows"), methods)]
    return [*lines, *plot_lines(analysis, "recall"), *plot_lines(analysis, "ranks")]


def moment_retrieval(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    strict = "Strict answers, the main numbers: a query for which no video was matched counts as a miss."
    best = (
        "Best answers: if no video was matched, the query is answered with the shown video of the highest match "
        "probability, in which the policy is made to ground a span."
    )
    lines = ["## Moment retrieval (VCMR, R@1)", "", strict, "", *metric_table(inputs, metrics_in("moments"))]
    lines += ["", best, "", *metric_table(inputs, metrics_in("best answers"))]
    return [*lines, *plot_lines(analysis, "vcmr")]


def verification(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    lines = ["## Verification and grounding", "", *metric_table(inputs, metrics_in("verification"))]
    if "duration_s" in inputs.moments.columns:
        start, end, share = best_constant_span(inputs.moments)
        lines += [
            "",
            f"For comparison: the best constant span, chosen with hindsight on these queries, is {100 * start:.0f} % "
            f"to {100 * end:.0f} % of the right video; it reaches IoU ≥ 0.5 on {100 * share:.1f} % of the queries.",
        ]
    return [*lines, *plot_lines(analysis, "iou")]


def balanced_set(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    """Verification of as many right as wrong videos, without search; no lines if no method was probed."""
    metrics = metrics_in("balanced set")
    methods = has_values(inputs, metrics)
    if not methods:
        return []
    note = (
        "For each query the policy was shown the right video once, and once the wrong video that ranks first, without "
        "any search; guessing reaches an accuracy of 50 %. Grounding is the share of the right videos that were "
        "matched with a span of this IoU. Constant span is what the best constant span of the train split reaches on "
        "the same videos, without looking at them."
    )
    return ["## Verification on a balanced set", "", note, "", *metric_table(inputs, metrics, methods)]


def further_metrics(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    """Metrics that belong to no other table; no lines if there are none."""
    metrics = metrics_in("further")
    meanings = [f"* {metric.label}: {metric.says}" for metric in metrics]
    return ["## Further metrics", "", *metric_table(inputs, metrics), "", *meanings] if metrics else []


def by_turns(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    table = _curve_table(inputs, TURNS, metrics_shown("turns plot"), lambda x: counted(x, "turn", "turns"))
    note = (
        "Recall is by the ranking from which the last shown video came. A search that ends without a match ranks once "
        "more, after its last refinement: in the tables of the last ranking, recall is by that ranking."
    )
    if not table:
        return []
    return ["## By the number of turns allowed", "", note, "", *table, *plot_lines(analysis, "turns")]


def by_soft_tokens(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    """A table of the first plotted metric only: a table of all of them would be too wide to read."""
    shown = metrics_shown("soft tokens plot")[:1]
    table = _curve_table(inputs, SOFT_TOKENS, shown, str)
    note = (
        f"{', '.join(metric.short for metric in shown)} of the last ranking if every turn had used only its first "
        "soft tokens; 0 is the plain query. The videos that were shown are those of the search with all tokens."
    )
    if not table:
        return []
    return ["## By the number of soft tokens", "", note, "", *table, *plot_lines(analysis, "soft_tokens")]


def _curve_table(
    inputs: ReportInputs, curve: str, metrics: Sequence[Metric], name_of: Callable[[int], str]
) -> list[str]:
    """A table with one row per method and one column per metric and x; no lines if no method has this curve."""
    points = inputs.refinement.filter(pl.col("curve") == curve, pl.col("metric").is_in([m.name for m in metrics]))
    cells = {(row["method"], row["metric"], row["x"]): row for row in typed_rows(points, CurveRow)}
    columns = [(metric, x) for metric in metrics for x in points["x"].unique().sort()]
    header = ["method", *(f"{metric.short}, {name_of(x)}" for metric, x in columns)]
    methods = [method for method in inputs.methods if method in set(points["method"])]
    rows = [
        [method, *(metric_cell(cells.get((method, metric.name, x)), metric) for metric, x in columns)]
        for method in methods
    ]
    return markdown_table(header, rows)


def differences(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    """Each method compared with the method before it."""
    table = _paired_table(inputs, analysis, inputs.styles.successive(inputs.methods))
    return ["## Differences between methods", "", *table] if table else []


def ablations(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    """Each method with an option compared with the same method without."""
    table = _paired_table(inputs, analysis, inputs.styles.ablations(inputs.methods))
    return ["## Ablations", "", *table] if table else []


def _paired_table(inputs: ReportInputs, analysis: Analysis, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Differences (before, after) on the same queries, with paired intervals."""
    metrics = metrics_shown("differences")
    rows = []
    for before, after in pairs:
        ours, theirs = (score(analysis.episodes[name]) for name in (after, before))
        table = paired_differences(ours, theirs, inputs.num_resamples, inputs.seed)
        found = {row["metric"]: row for row in typed_rows(table, DifferenceRow)}
        rows.append([f"{after} − {before}", *(_difference_cell(found[metric.name], metric) for metric in metrics)])
    if not rows:
        return []
    note = "Differences with paired 95 % intervals over the same queries; bold if the interval does not contain zero."
    return [note, "", *markdown_table(["", *(metric.short for metric in metrics)], rows)]


def _difference_cell(row: DifferenceRow, metric: Metric) -> str:
    return signed_with_interval(row["difference"], row["low"], row["high"], metric.scale)


def tokens(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    metrics = metrics_in("tokens")
    rows = metric_rows(inputs, metrics)
    for row, method in zip(rows, inputs.methods, strict=True):
        episodes = analysis.episodes[method]
        row.append(f"{len(episodes.verifications.turn) / max(1, int(episodes.has_prediction.sum())):.2f}")
    header = ["method", *(metric.short for metric in metrics), "turns"]
    note = (
        "Means per query, over the queries that ran. The paper counts 8 latent tokens per refinement, and 26.8 tokens "
        "if the refinement is text."
    )
    return ["## Tokens", "", *markdown_table(header, rows), "", note, *plot_lines(analysis, "tokens")]


def published(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    """Our numbers and the paper's side by side; for the toy corpus, only those of the paper, for orientation."""
    header = ["", *(f"VCMR {iou}" for iou in IOU_THRESHOLDS), "VER", *(f"R@{k}" for k in RECALL_KS)]
    if inputs.dataset in PUBLISHED:
        rows = [_published_cells(row, "published") for row in PUBLISHED[inputs.dataset]]
        rows += [[f"{method} (ours)", *cells] for method, *cells in metric_rows(inputs, _published_metrics())]
        note = f"Published numbers are from {SOURCE}. Our numbers are from the configuration `{inputs.config}`."
        return ["## Compared with the published results", "", note, "", *markdown_table(header, rows)]
    if inputs.kind != "toy":
        return []
    comparable = {info.published for info in inputs.styles.infos}
    rows = [
        _published_cells(row, dataset)
        for dataset, printed in PUBLISHED.items()
        for row in printed
        if row.method in comparable
    ]
    note = (
        f"These numbers ({SOURCE}) are for orientation only: they are from other data, other models and another corpus "
        "size. Nothing in this report is comparable with them."
    )
    return ["## Published results on the real datasets", "", note, "", *markdown_table(header, rows)]


def _published_cells(row: PublishedRow, label: str) -> list[str]:
    numbers = (*row.vcmr, row.verification_accuracy, *row.recall)
    return [f"{row.method} ({label})", *(with_interval(number, None, None, 1.0) for number in numbers)]


def _published_metrics() -> list[Metric]:
    """The metrics of the published table's columns, in their order."""
    spans, recalls = (f"vcmr_{iou}" for iou in IOU_THRESHOLDS), (f"recall_at_{k}" for k in RECALL_KS)
    metrics = all_metrics()
    return [metrics[name] for name in (*spans, "verification_accuracy", *recalls)]
