"""The parts of the plots: figures, rows of axes with one line per method, marks, and a common look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vsr1_core.evaluation.method_style import MethodStyles

INK, FAINT = "#2b2f36", "#d9dde3"


def new_figure(
    width: float, height: float, title: str, layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    """An empty figure of `width` x `height` inches with its title at the top left."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    y = None if layout else 1 - 0.1 / height
    figure.suptitle(title, fontsize=12, color=INK, x=0.01, y=y, ha="left", va="top")
    return figure


def method_label(styles: MethodStyles, method: str) -> str:
    """The label of a method; the part that its option adds is on a line of its own."""
    info = styles.get(method)
    base = styles.get(info.base).label
    return info.label if info.label == base else info.label.replace(base, f"{base}\n", 1).replace("\n, ", "\n")


def row_of_axes(count: int, methods: Sequence[str], styles: MethodStyles, title: str) -> tuple[Figure, list[Axes]]:
    """`count` panels side by side with one line per method, labelled on the left."""
    figure = new_figure(2.5 * count + 1.6, 1.7 + 0.45 * len(methods), title)
    axes = list(np.atleast_1d(figure.subplots(1, count, sharey=True)))
    axes[0].set_yticks(range(len(methods)), [method_label(styles, method) for method in methods])
    axes[0].set_ylim(len(methods) - 0.5, -0.5)
    for axis in axes:
        axis.set_xlim(-3, 103)
        axis.set_xticks([0, 25, 50, 75, 100])
        axis.set_xlabel("%", fontsize=9)
        tidy(axis, grid="both")
    return figure, axes


INTERVAL = ("value", "low", "high")
Interval = tuple[float | None, float | None, float | None]


def interval_of(metrics: pl.DataFrame, method: str, metric: str) -> Interval:
    """(value, low, high) of a row of the table; all None if the row is missing."""
    rows = metrics.filter((pl.col("method") == method) & (pl.col("metric") == metric))
    return rows.select(INTERVAL).row(0) if rows.height else (None, None, None)


def dumbbell(axis: Axes, row: int, hollow: Interval, filled: Interval, colour: str) -> None:
    """Draw two shares on one line, in percent; the whiskers show the interval of the filled one."""
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


def smoothed_curve(axis: Axes, steps: Any, values: Any, colour: str) -> None:
    """Draw the raw values faintly, and their running mean on top."""
    window = max(1, len(values) // 25)
    if window == 1:
        axis.plot(steps, values, color=colour, linewidth=1.4, marker="o" if len(values) < 3 else None, markersize=3)
        return
    axis.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3)
    smooth = np.convolve(values, np.ones(window) / window, mode="valid")
    axis.plot(steps[window - 1 :], smooth, color=colour, linewidth=1.5)


def line_handle(colour: str, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, label=label)


def legend_note(figure: Figure, text: str) -> None:
    figure.supxlabel(text, fontsize=8, color=INK)


def tidy(axis: Axes, grid: Literal["both", "x", "y"] = "y") -> None:
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(FAINT)
    axis.grid(axis=grid, color=FAINT, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(which="both", colors=INK, labelsize=8.5, length=0)
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set(fontsize=9, color=INK)
