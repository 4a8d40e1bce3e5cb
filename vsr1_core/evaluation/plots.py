"""Plots of the report and the notebooks: each takes frames and gives a matplotlib Figure. Nothing is computed here
beyond what is drawn, and nothing is read from disk. Figures are made without pyplot, so no global state and no window.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vsr1_core.evaluation.published import PublishedRow

COLOURS = ("#7f8c9a", "#e69f00", "#b5651d", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
"""Told apart by colour-blind readers too (Okabe and Ito, the first two darkened)."""
METHOD_ORDER = ("zero_shot", "fine_tuned", "hard_refine", "sqr_sft", "videosearch_r1")
INK, FAINT = "#2b2f36", "#d9dde3"


def method_label(method: str) -> str:
    """`sqr_sft+exclude_rejected` as people say it."""
    base, _, option = method.partition("+")
    names = {
        "zero_shot": "zero-shot",
        "fine_tuned": "fine-tuned",
        "hard_refine": "hard refinement",
        "sqr_sft": "SQR, stage 1",
        "videosearch_r1": "SQR, stage 2",
    }
    return names.get(base, base) + (f"\n+ {option.replace('_', ' ')}" if option else "")


def in_method_order(methods: Sequence[str]) -> list[str]:
    """Weakest design first, as the methods are listed everywhere; unknown ones last."""
    known = {name: i for i, name in enumerate(METHOD_ORDER)}
    return sorted(set(methods), key=lambda m: (known.get(m.partition("+")[0], len(known)), m))


def method_colours(methods: Sequence[str]) -> dict[str, str]:
    """A method keeps its colour from plot to plot."""
    known = {name: COLOURS[i] for i, name in enumerate(METHOD_ORDER)}
    spare = iter(COLOURS[len(METHOD_ORDER) :] * (1 + len(methods)))
    return {method: known.get(method) or next(spare) for method in in_method_order(methods)}


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    path.write_bytes(png(figure))


def recall_before_after(metrics: pl.DataFrame, title: str = "") -> Figure:
    """Video R@k by method: hollow = the query's own text, filled = the last ranking. metrics: the table's rows."""
    ks = (1, 5, 10, 100)
    methods = in_method_order(metrics["method"].to_list())
    figure, axes = _row_of_axes(len(ks), methods, title or "Is the right video found? R@k before and after refinement")
    for axis, k in zip(axes, ks, strict=True):
        for row, method in enumerate(methods):
            colour = method_colours(methods)[method]
            before, after = _value(metrics, method, f"first_recall_at_{k}"), _value(metrics, method, f"recall_at_{k}")
            _dumbbell(axis, row, before, after, colour)
        axis.set_title(f"R@{k}", fontsize=11, color=INK)
    _legend_note(figure, "hollow: initial query    filled: last ranking    whiskers: 95 % interval")
    return figure


def vcmr_by_method(metrics: pl.DataFrame, published: Sequence[PublishedRow] = (), title: str = "") -> Figure:
    """VCMR R@1 at three IoU thresholds: filled = strict answers, hollow = best candidate, diamond = published."""
    methods = in_method_order(metrics["method"].to_list())
    figure, axes = _row_of_axes(3, methods, title or "Is the moment found? Right video, accepted, and span IoU")
    reference = {row.counterpart: row.vcmr for row in published if row.counterpart}
    for i, (axis, threshold) in enumerate(zip(axes, (0.3, 0.5, 0.7), strict=True)):
        for row, method in enumerate(methods):
            best, strict = (_value(metrics, method, f"vcmr_{kind}{threshold}") for kind in ("best_", ""))
            _dumbbell(axis, row, best, strict, method_colours(methods)[method])
            paper = reference.get(method, (None, None, None))[i]
            if paper is not None:
                axis.plot(paper, row, "D", color=INK, markersize=5, markerfacecolor="none", zorder=5)
        axis.set_title(f"IoU ≥ {threshold}", fontsize=11, color=INK)
    note = "filled: strict    hollow: best candidate when none was accepted    whiskers: 95 % interval"
    _legend_note(figure, note + ("    diamond: published" if reference else ""))
    return figure


def turns(curves: pl.DataFrame, title: str = "") -> Figure:
    """Video R@1 and VCMR at IoU 0.5 against the number of turns allowed, with 95 % bands. curves: rows of
    `refinement_curves`."""
    drawn = {"recall_at_1": "video R@1", "vcmr_0.5": "VCMR, IoU ≥ 0.5"}
    return _curve_panels(curves, "turns", drawn, "turns allowed", title or "What do more turns bring?")


def soft_tokens(curves: pl.DataFrame, title: str = "") -> Figure:
    """Video R@1 and R@10 in the last ranking against the number of soft tokens a turn; at 0 the plain query's."""
    drawn = {"recall_at_1": "video R@1", "recall_at_10": "video R@10"}
    title = title or "What do more soft tokens bring?"
    return _curve_panels(curves, "soft_tokens", drawn, "soft tokens of each turn that are used", title)


def _curve_panels(curves: pl.DataFrame, curve: str, drawn: Mapping[str, str], x_label: str, title: str) -> Figure:
    """One panel a metric, one line a method."""
    points = curves.filter(pl.col("curve") == curve).drop_nulls("value").sort("x")
    figure = _figure(9.0, 3.9, title)
    axes = figure.subplots(1, len(drawn))
    methods = in_method_order(points["method"].to_list())
    colours = method_colours(methods)
    for axis, (metric, label) in zip(axes, drawn.items(), strict=True):
        for method in methods:
            of_method = points.filter((pl.col("method") == method) & (pl.col("metric") == metric))
            x, (value, low, high) = of_method["x"].to_numpy(), (100 * of_method[c].to_numpy() for c in _INTERVAL)
            axis.fill_between(x, low, high, color=colours[method], alpha=0.13, linewidth=0)
            axis.plot(x, value, "o-", color=colours[method], label=method_label(method), markersize=4)
        axis.set_xticks(points["x"].unique().sort().to_list())
        axis.set_xlabel(x_label)
        axis.set_ylabel(f"{label} (%)")
        axis.set_ylim(bottom=0)
        _tidy(axis)
    if methods:
        axes[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def tokens_per_query(metrics: pl.DataFrame, title: str = "") -> Figure:
    """Mean generated tokens a query: text to be read against latent tokens of the refined queries."""
    methods = in_method_order(metrics["method"].to_list())
    title = title or "What does a query cost? Generated tokens, mean per query"
    figure = _figure(8.0, 1.4 + 0.45 * len(methods), title)
    axis = figure.subplots()
    text = np.array([_value(metrics, method, "num_text_tokens")[0] or 0.0 for method in methods])
    latent = np.array([_value(metrics, method, "num_latent_tokens")[0] or 0.0 for method in methods])
    rows = np.arange(len(methods))
    axis.barh(rows, text, color="#8fa8c2", height=0.6, label="text")
    axis.barh(rows, latent, left=text, color="#009e73", height=0.6, label="latent")
    widest = max(float((text + latent).max(initial=0.0)), 1.0)
    for row, (a, b) in enumerate(zip(text, latent, strict=True)):
        axis.text(a + b + 0.01 * widest, row, f"{a:.1f} + {b:.1f}", va="center", fontsize=8, color=INK)
    axis.set_xlim(0, widest * 1.18)
    axis.set_yticks(rows, [method_label(method) for method in methods])
    axis.invert_yaxis()
    _tidy(axis, grid="x")
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def iou_histogram(spans: pl.DataFrame, title: str = "") -> Figure:
    """How well accepted right videos are grounded. spans: (method, iou), one row an accepted right video."""
    methods = in_method_order(spans["method"].to_list())
    title = title or "How exact are the spans in accepted right videos?"
    figure = _figure(2.4 * max(2, len(methods)) + 0.8, 2.9, title)
    axes = np.atleast_1d(figure.subplots(1, max(1, len(methods)), sharey=True))
    for axis, method in zip(axes, methods, strict=False):
        iou = spans.filter(pl.col("method") == method)["iou"].to_numpy()
        weights = np.full(iou.size, 100.0 / max(1, iou.size))
        axis.hist(iou, bins=np.linspace(0, 1, 11), weights=weights, color=method_colours(methods)[method], alpha=0.85)
        axis.axvline(0.5, color=INK, linewidth=0.8, linestyle=":")
        axis.set_title(f"{method_label(method)}\n{iou.size} spans", fontsize=9, color=INK)
        axis.set_xlabel("IoU")
        axis.set_xlim(0, 1)
        _tidy(axis)
    axes[0].set_ylabel("share of spans (%)")
    return figure


def outcome_bars(outcomes: pl.DataFrame, labels: Mapping[str, str], title: str = "") -> Figure:
    """Where queries end, by method. outcomes: (method, outcome, share); labels: outcome -> words, in drawing order."""
    methods = in_method_order(outcomes["method"].to_list())
    figure = _figure(9.0, 1.9 + 0.45 * len(methods), title or "Where does each query end?")
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
    axis.set_yticks(np.arange(len(methods)), [method_label(method) for method in methods])
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("share of queries (%)")
    _tidy(axis, grid="x")
    figure.legend(frameon=False, fontsize=8, ncols=2, loc="outside lower center")
    return figure


def loss_curves(curves: Mapping[str, pl.DataFrame], title: str = "") -> Figure:
    """Training curves: one panel a quantity, one line a checkpoint. curves: checkpoint -> (step, name, value)."""
    names = list(dict.fromkeys(name for frame in curves.values() for name in frame["name"].to_list()))
    columns = min(3, max(1, len(names)))
    lines = -(-max(1, len(names)) // columns)
    width, height = 3.3 * columns + 0.6, 2.3 * lines + 0.9 + 0.2 * (len(curves) // 3)
    # Not fitted to each other: of 33 panels that took a sixth of the time of a whole report.
    figure = _figure(width, height, title or "Training curves", layout=None)
    axes = np.atleast_1d(figure.subplots(lines, columns)).ravel()
    bottom = 0.6 + 0.2 * (len(curves) // 3)
    figure.subplots_adjust(0.6 / width, bottom / height, 1 - 0.15 / width, 1 - 0.65 / height, 0.25, 0.35)
    known = {f"{name}_checkpoint": name for name in ("fine_tuned", "hard_refine")}
    known |= {"sft_checkpoint": "sqr_sft", "grpo_checkpoint": "videosearch_r1"}
    colours = {name: method_colours([known.get(name, name)])[known.get(name, name)] for name in curves}
    for axis, name in zip(axes, names, strict=False):
        steps: set[int] = set()
        for checkpoint, frame in curves.items():
            points = frame.filter((pl.col("name") == name) & pl.col("value").is_finite()).sort("step")
            steps |= set(points["step"].to_list())
            if points.height:
                _curve(axis, points["step"].to_numpy(), points["value"].to_numpy(), colours[checkpoint])
        axis.set_title(name, fontsize=9, color=INK)
        axis.locator_params(axis="x", integer=True)
        if len(steps) < 4:
            axis.set_xticks(sorted(steps))
        axis.ticklabel_format(axis="y", scilimits=(-3, 4))  # a panel has room for few digits
        axis.yaxis.get_offset_text().set_fontsize(7)
        _tidy(axis)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    handles = [_line_handle(colours[checkpoint], checkpoint) for checkpoint in curves]
    figure.legend(handles=handles, frameon=False, fontsize=8, ncols=3, loc="lower center")
    return figure


def rank_changes(predictions: pl.DataFrame, title: str = "") -> Figure:
    """Rank of the right video, first against last ranking, one dot a query (log scales).
    predictions: (method, first_rank, rank)."""
    from matplotlib.ticker import LogLocator, NullLocator

    methods = in_method_order(predictions["method"].to_list())
    figure = _figure(2.6 * max(2, len(methods)) + 0.6, 3.3, title or "Does refinement lift the right video?")
    axes = np.atleast_1d(figure.subplots(1, max(1, len(methods)), sharex=True, sharey=True))
    jitter = np.random.default_rng(0)
    for axis, method in zip(axes, methods, strict=False):
        frame = predictions.filter(pl.col("method") == method).drop_nulls(["first_rank", "rank"])
        noise = jitter.uniform(0.93, 1.07, (2, frame.height))
        first, last = frame["first_rank"].to_numpy() * noise[0], frame["rank"].to_numpy() * noise[1]
        colour = method_colours(methods)[method]
        axis.loglog(first, last, "o", markersize=3, alpha=0.45, color=colour, markeredgewidth=0)
        top = max(10.0, float(max(first.max(initial=1.0), last.max(initial=1.0))))
        axis.plot([1, top], [1, top], color=INK, linewidth=0.8, linestyle=":")
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_major_locator(LogLocator(subs=(1, 2, 5)))
            scale.set_minor_locator(NullLocator())
            scale.set_major_formatter("{x:g}")
        axis.set_title(method_label(method), fontsize=9, color=INK)
        axis.set_xlabel("first rank")
        _tidy(axis, grid="both")
    axes[0].set_ylabel("last rank (below the line: lifted)")
    return figure


def moment_spans(moments: pl.DataFrame, title: str = "") -> Figure:
    """What the annotated moments look like. moments: start_s, end_s, duration_s (of the video)."""
    frame = moments.drop_nulls(["start_s", "end_s", "duration_s"])
    start, end, duration = (frame[name].to_numpy() for name in ("start_s", "end_s", "duration_s"))
    share = np.clip((end - start) / np.maximum(duration, 1e-9), 0, 1)
    middle = np.clip((start + end) / 2 / np.maximum(duration, 1e-9), 0, 1)
    figure = _figure(9.0, 2.8, title or f"{frame.height:,} annotated moments")
    drawn = (
        ("video length (s)", duration),
        ("span length / video length", share),
        ("span centre / video length", middle),
    )
    for axis, (label, values) in zip(figure.subplots(1, 3), drawn, strict=True):
        axis.hist(values, bins=20, color="#0072b2", alpha=0.85)
        axis.set_xlabel(label)
        _tidy(axis)
    return figure


# ---- parts -------------------------------------------------------------------------------------------------------


def _figure(width: float, height: float, title: str, layout: Literal["constrained"] | None = "constrained") -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    y = None if layout else 1 - 0.1 / height
    figure.suptitle(title, fontsize=12, color=INK, x=0.01, y=y, ha="left", va="top")
    return figure


def _row_of_axes(count: int, methods: Sequence[str], title: str) -> tuple[Figure, list[Axes]]:
    """`count` panels side by side with one line a method, labelled on the left."""
    figure = _figure(2.5 * count + 1.6, 1.7 + 0.45 * len(methods), title)
    axes = list(np.atleast_1d(figure.subplots(1, count, sharey=True)))
    axes[0].set_yticks(range(len(methods)), [method_label(method) for method in methods])
    axes[0].set_ylim(len(methods) - 0.5, -0.5)
    for axis in axes:
        axis.set_xlim(-3, 103)
        axis.set_xticks([0, 25, 50, 75, 100])
        axis.set_xlabel("%", fontsize=9)
        _tidy(axis, grid="both")
    return figure, axes


_INTERVAL = ("value", "low", "high")
Interval = tuple[float | None, float | None, float | None]


def _value(metrics: pl.DataFrame, method: str, metric: str) -> Interval:
    """(value, low, high) as in the table; all None where the row or the value is missing."""
    rows = metrics.filter((pl.col("method") == method) & (pl.col("metric") == metric))
    return rows.select(_INTERVAL).row(0) if rows.height else (None, None, None)


def _dumbbell(axis: Axes, row: int, hollow: Interval, filled: Interval, colour: str) -> None:
    """Two shares on one line, in percent; the whiskers are the filled one's."""
    if filled[0] is None:
        axis.text(50, row, "not defined", ha="center", va="center", fontsize=8, color=INK)
        return
    if hollow[0] is not None and hollow[0] != filled[0]:
        axis.plot([100 * hollow[0], 100 * filled[0]], [row, row], color=colour, linewidth=3, alpha=0.25, zorder=2)
        axis.plot(100 * hollow[0], row, "o", color=colour, markerfacecolor="white", markersize=7, zorder=3)
    if filled[1] is not None and filled[2] is not None:
        axis.plot([100 * filled[1], 100 * filled[2]], [row, row], color=colour, linewidth=1.4, zorder=3)
    axis.plot(100 * filled[0], row, "o", color=colour, markersize=6, zorder=4)
    axis.annotate(
        f"{100 * filled[0]:.1f}",
        (100 * filled[0], row),
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        fontsize=7.5,
        color=INK,
    )


def _curve(axis: Axes, steps: Any, values: Any, colour: str) -> None:
    """The raw values faintly, their running mean on top."""
    window = max(1, len(values) // 25)
    if window == 1:
        axis.plot(steps, values, color=colour, linewidth=1.4, marker="o" if len(values) < 3 else None, markersize=3)
        return
    axis.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3)
    smooth = np.convolve(values, np.ones(window) / window, mode="valid")
    axis.plot(steps[window - 1 :], smooth, color=colour, linewidth=1.5)


def _line_handle(colour: str, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, label=label)


def _legend_note(figure: Figure, text: str) -> None:
    figure.supxlabel(text, fontsize=8, color=INK)


def _tidy(axis: Axes, grid: Literal["both", "x", "y"] = "y") -> None:
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(FAINT)
    axis.grid(axis=grid, color=FAINT, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(which="both", colors=INK, labelsize=8.5, length=0)
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set(fontsize=9, color=INK)
