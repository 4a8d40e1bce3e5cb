"""Plots of the report and the notebooks: each function takes frames and returns a matplotlib Figure.

Nothing is computed here beyond what is drawn, and nothing is read from disk. Figures are made without pyplot, so there
is no global state and no window.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from vsr1_core.evaluation.metrics import IOU_THRESHOLDS, RECALL_KS, Metric, metrics_shown
from vsr1_core.evaluation.plot_parts import (
    INK,
    INTERVAL,
    dumbbell,
    interval_of,
    legend_note,
    line_handle,
    method_label,
    new_figure,
    row_of_axes,
    smoothed_curve,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vsr1_core.evaluation.method_style import MethodStyles
    from vsr1_core.evaluation.published import PublishedRow


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG file."""
    path.write_bytes(png(figure))


def recall_before_after(metrics: pl.DataFrame, styles: MethodStyles, title: str = "") -> Figure:
    """Video R@k by method: hollow for the query's own text, filled for the last ranking.

    Args:
        metrics: Rows of the table `metrics`.
        styles: How the methods are ordered, coloured and labelled.
        title: The title of the figure; if it is empty, a question that the figure answers.
    """
    methods = styles.ordered(metrics["method"].to_list())
    figure, axes = row_of_axes(
        len(RECALL_KS), methods, styles, title or "Is the right video found? R@k before and after refinement"
    )
    colours = styles.colours(methods)
    for axis, k in zip(axes, RECALL_KS, strict=True):
        for row, method in enumerate(methods):
            before, after = (
                interval_of(metrics, method, f"first_recall_at_{k}"),
                interval_of(metrics, method, f"recall_at_{k}"),
            )
            dumbbell(axis, row, before, after, colours[method])
        axis.set_title(f"R@{k}", fontsize=11, color=INK)
    legend_note(figure, "hollow: first ranking    filled: last ranking    whiskers: 95 % interval")
    return figure


def vcmr_by_method(
    metrics: pl.DataFrame, styles: MethodStyles, published: Sequence[PublishedRow] = (), title: str = ""
) -> Figure:
    """VCMR R@1 by IoU threshold: filled for strict answers, hollow for the best candidate.

    Args:
        metrics: Rows of the table `metrics`.
        styles: How the methods are ordered, coloured and labelled.
        published: Rows of the published table; a row that corresponds to one of the methods is drawn as a diamond.
        title: The title of the figure; if it is empty, a question that the figure answers.
    """
    methods = styles.ordered(metrics["method"].to_list())
    figure, axes = row_of_axes(
        len(IOU_THRESHOLDS), methods, styles, title or "Is the moment found? Right video, accepted, and span IoU"
    )
    reference = {name: row.vcmr for row in published if (name := styles.counterpart(row.method))}
    for i, (axis, threshold) in enumerate(zip(axes, IOU_THRESHOLDS, strict=True)):
        for row, method in enumerate(methods):
            best, strict = (interval_of(metrics, method, f"vcmr_{kind}{threshold}") for kind in ("best_", ""))
            dumbbell(axis, row, best, strict, styles.colours(methods)[method])
            paper = reference.get(method, (None, None, None))[i]
            if paper is not None:
                axis.plot(paper, row, "D", color=INK, markersize=5, markerfacecolor="none", zorder=5)
        axis.set_title(f"IoU ≥ {threshold}", fontsize=11, color=INK)
    note = "filled: strict answers    hollow: best answers    whiskers: 95 % interval"
    legend_note(figure, note + ("    diamond: published" if reference else ""))
    return figure


def turns(curves: pl.DataFrame, styles: MethodStyles, title: str = "") -> Figure:
    """Metrics against the number of turns allowed, with 95 % bands, for the metrics with the place `turns plot`.

    Args:
        curves: Rows of the table `refinement_curves`.
        styles: How the methods are ordered, coloured and labelled.
        title: The title of the figure; if it is empty, a question that the figure answers.
    """
    drawn = metrics_shown("turns plot")
    return _curve_panels(curves, styles, "turns", drawn, "turns allowed", title or "What do more turns bring?")


def soft_tokens(curves: pl.DataFrame, styles: MethodStyles, title: str = "") -> Figure:
    """Metrics of the last ranking against the number of soft tokens per turn; 0 is the ranking of the plain query.

    Args:
        curves: Rows of the table `refinement_curves`.
        styles: How the methods are ordered, coloured and labelled.
        title: The title of the figure; if it is empty, a question that the figure answers.
    """
    drawn = metrics_shown("soft tokens plot")
    title = title or "What do more soft tokens bring?"
    return _curve_panels(curves, styles, "soft_tokens", drawn, "soft tokens used per turn", title)


def _curve_panels(
    curves: pl.DataFrame, styles: MethodStyles, curve: str, drawn: Sequence[Metric], x_label: str, title: str
) -> Figure:
    """One panel per metric, one line per method."""
    points = curves.filter(pl.col("curve") == curve).drop_nulls("value").sort("x")
    figure = new_figure(9.0, 3.9, title)
    axes = figure.subplots(1, len(drawn))
    methods = styles.ordered(points["method"].to_list())
    colours = styles.colours(methods)
    for axis, metric in zip(np.atleast_1d(axes), drawn, strict=True):
        for method in methods:
            of_method = points.filter((pl.col("method") == method) & (pl.col("metric") == metric.name))
            x, (value, low, high) = (
                of_method["x"].to_numpy(),
                (metric.scale * of_method[c].to_numpy() for c in INTERVAL),
            )
            axis.fill_between(x, low, high, color=colours[method], alpha=0.13, linewidth=0)
            axis.plot(x, value, "o-", color=colours[method], label=method_label(styles, method), markersize=4)
        axis.set_xticks(points["x"].unique().sort().to_list())
        axis.set_xlabel(x_label)
        axis.set_ylabel(f"{metric.label} (%)" if metric.unit == "share" else metric.label)
        axis.set_ylim(bottom=0)
        tidy(axis)
    if methods:
        np.atleast_1d(axes)[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def tokens_per_query(metrics: pl.DataFrame, styles: MethodStyles, title: str = "") -> Figure:
    """Mean number of generated tokens per query: text tokens, and latent tokens of the refined queries.

    Args:
        metrics: Rows of the table `metrics`.
        styles: How the methods are ordered, coloured and labelled.
        title: The title of the figure; if it is empty, a question that the figure answers.
    """
    methods = styles.ordered(metrics["method"].to_list())
    title = title or "What does a query cost? Generated tokens, mean per query"
    figure = new_figure(8.0, 1.4 + 0.45 * len(methods), title)
    axis = figure.subplots()
    text = np.array([interval_of(metrics, method, "num_text_tokens")[0] or 0.0 for method in methods])
    latent = np.array([interval_of(metrics, method, "num_latent_tokens")[0] or 0.0 for method in methods])
    rows = np.arange(len(methods))
    axis.barh(rows, text, color="#8fa8c2", height=0.6, label="text")
    axis.barh(rows, latent, left=text, color="#009e73", height=0.6, label="latent")
    widest = max(float((text + latent).max(initial=0.0)), 1.0)
    for row, (a, b) in enumerate(zip(text, latent, strict=True)):
        axis.text(a + b + 0.01 * widest, row, f"{a:.1f} + {b:.1f}", va="center", fontsize=8, color=INK)
    axis.set_xlim(0, widest * 1.18)
    axis.set_yticks(rows, [method_label(styles, method) for method in methods])
    axis.invert_yaxis()
    tidy(axis, grid="x")
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def iou_histogram(spans: pl.DataFrame, styles: MethodStyles, title: str = "") -> Figure:
    """Histograms of the span IoU in accepted right videos, one panel per method.

    Args:
        spans: (method, iou), one row per accepted right video.
        styles: How the methods are ordered, coloured and labelled.
        title: The title of the figure; if it is empty, a question that the figure answers.
    """
    methods = styles.ordered(spans["method"].to_list())
    title = title or "How exact are the spans in accepted right videos?"
    figure = new_figure(2.4 * max(2, len(methods)) + 0.8, 2.9, title)
    axes = np.atleast_1d(figure.subplots(1, max(1, len(methods)), sharey=True))
    for axis, method in zip(axes, methods, strict=False):
        iou = spans.filter(pl.col("method") == method)["iou"].to_numpy()
        weights = np.full(iou.size, 100.0 / max(1, iou.size))
        axis.hist(iou, bins=np.linspace(0, 1, 11), weights=weights, color=styles.colours(methods)[method], alpha=0.85)
        axis.axvline(0.5, color=INK, linewidth=0.8, linestyle=":")
        axis.set_title(f"{method_label(styles, method)}\n{iou.size} spans", fontsize=9, color=INK)
        axis.set_xlabel("IoU")
        axis.set_xlim(0, 1)
        tidy(axis)
    axes[0].set_ylabel("share of spans (%)")
    return figure


def outcome_bars(outcomes: pl.DataFrame, styles: MethodStyles, labels: Mapping[str, str], title: str = "") -> Figure:
    """How queries end, as one bar per method.

    Args:
        outcomes: (method, outcome, share), one row per method and outcome.
        styles: How the methods are ordered, coloured and labelled.
        labels: Outcome -> words, in the order in which they are drawn.
        title: The title of the figure; if it is empty, a question that the figure answers.
    """
    methods = styles.ordered(outcomes["method"].to_list())
    figure = new_figure(9.0, 1.9 + 0.45 * len(methods), title or "Where does each query end?")
    axis = figure.subplots()
    colours = ("#009e73", "#8fd1bc", "#f0c75e", "#d55e00", "#8fa8c2", "#3b4252")
    shares = {(m, o): s for m, o, s in outcomes.select("method", "outcome", "share").iter_rows()}
    left = np.zeros(len(methods))
    for (outcome, words), colour in zip(labels.items(), colours, strict=False):
        width = np.array([100 * shares.get((method, outcome), 0.0) for method in methods])
        axis.barh(np.arange(len(methods)), width, left=left, color=colour, height=0.62, label=words)
        for row, (start, share) in enumerate(zip(left, width, strict=True)):
            if share >= 5:
                axis.text(start + share / 2, row, f"{share:.0f}", ha="center", va="center", fontsize=8, color=INK)
        left += width
    axis.set_yticks(np.arange(len(methods)), [method_label(styles, method) for method in methods])
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("share of queries (%)")
    tidy(axis, grid="x")
    figure.legend(frameon=False, fontsize=8, ncols=2, loc="outside lower center")
    return figure


def loss_curves(curves: Mapping[str, pl.DataFrame], styles: MethodStyles, title: str = "") -> Figure:
    """Training curves: one panel per quantity, one line per checkpoint.

    Args:
        curves: Checkpoint -> (step, name, value).
        styles: A checkpoint has the colour of the method that searches with it.
        title: The figure's title.
    """
    names = list(dict.fromkeys(name for frame in curves.values() for name in frame["name"].to_list()))
    columns = min(3, max(1, len(names)))
    lines = -(-max(1, len(names)) // columns)
    width, height = 3.3 * columns + 0.6, 2.3 * lines + 0.9 + 0.2 * (len(curves) // 3)
    # No automatic layout: for 33 panels it took a sixth of the time of a whole report.
    figure = new_figure(width, height, title or "Training curves", layout=None)
    axes = np.atleast_1d(figure.subplots(lines, columns)).ravel()
    bottom = 0.6 + 0.2 * (len(curves) // 3)
    figure.subplots_adjust(0.6 / width, bottom / height, 1 - 0.15 / width, 1 - 0.65 / height, 0.25, 0.35)
    colours = styles.colours_of_checkpoints(list(curves))
    for axis, name in zip(axes, names, strict=False):
        steps: set[int] = set()
        for checkpoint, frame in curves.items():
            points = frame.filter((pl.col("name") == name) & pl.col("value").is_finite()).sort("step")
            steps |= set(points["step"].to_list())
            if points.height:
                smoothed_curve(axis, points["step"].to_numpy(), points["value"].to_numpy(), colours[checkpoint])
        axis.set_title(name, fontsize=9, color=INK)
        axis.locator_params(axis="x", integer=True)
        if len(steps) < 4:
            axis.set_xticks(sorted(steps))
        axis.ticklabel_format(axis="y", scilimits=(-3, 4))  # a panel has room for few digits
        axis.yaxis.get_offset_text().set_fontsize(7)
        tidy(axis)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    handles = [line_handle(colours[checkpoint], checkpoint) for checkpoint in curves]
    figure.legend(handles=handles, frameon=False, fontsize=8, ncols=3, loc="lower center")
    return figure


def rank_changes(predictions: pl.DataFrame, styles: MethodStyles, title: str = "") -> Figure:
    """Rank of the right video in the last ranking against the first one, one dot per query, on log scales.

    Args:
        predictions: (method, first_rank, rank), one row per method and query.
        styles: How the methods are ordered, coloured and labelled.
        title: The title of the figure; if it is empty, a question that the figure answers.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    methods = styles.ordered(predictions["method"].to_list())
    figure = new_figure(2.6 * max(2, len(methods)) + 0.6, 3.3, title or "Does refinement lift the right video?")
    axes = np.atleast_1d(figure.subplots(1, max(1, len(methods)), sharex=True, sharey=True))
    jitter = np.random.default_rng(0)
    for axis, method in zip(axes, methods, strict=False):
        frame = predictions.filter(pl.col("method") == method).drop_nulls(["first_rank", "rank"])
        noise = jitter.uniform(0.93, 1.07, (2, frame.height))
        first, last = frame["first_rank"].to_numpy() * noise[0], frame["rank"].to_numpy() * noise[1]
        colour = styles.colours(methods)[method]
        axis.loglog(first, last, "o", markersize=3, alpha=0.45, color=colour, markeredgewidth=0)
        top = max(10.0, float(max(first.max(initial=1.0), last.max(initial=1.0))))
        axis.plot([1, top], [1, top], color=INK, linewidth=0.8, linestyle=":")
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_major_locator(LogLocator(subs=(1, 2, 5)))
            scale.set_minor_locator(NullLocator())
            scale.set_major_formatter("{x:g}")
        axis.set_title(method_label(styles, method), fontsize=9, color=INK)
        axis.set_xlabel("first rank")
        tidy(axis, grid="both")
    axes[0].set_ylabel("last rank (below the line: better)")
    return figure


def moment_spans(moments: pl.DataFrame, title: str = "") -> Figure:
    """Histograms of the annotated moments: video length, and length and centre of the spans.

    Args:
        moments: start_s, end_s, and duration_s of the video, all in seconds.
        title: The title of the figure; if it is empty, the number of moments.
    """
    frame = moments.drop_nulls(["start_s", "end_s", "duration_s"])
    start, end, duration = (frame[name].to_numpy() for name in ("start_s", "end_s", "duration_s"))
    share = np.clip((end - start) / np.maximum(duration, 1e-9), 0, 1)
    middle = np.clip((start + end) / 2 / np.maximum(duration, 1e-9), 0, 1)
    figure = new_figure(9.0, 2.8, title or f"{frame.height:,} annotated moments")
    drawn = (
        ("video length (s)", duration),
        ("span length / video length", share),
        ("span centre / video length", middle),
    )
    for axis, (label, values) in zip(figure.subplots(1, 3), drawn, strict=True):
        axis.hist(values, bins=20, color="#0072b2", alpha=0.85)
        axis.set_xlabel(label)
        tidy(axis)
    return figure
