"""The rows of `metrics` as a grid of text: one line per metric, one column per method."""

from __future__ import annotations

from typing import Any

import polars as pl

from vsr1_core.evaluation.metrics import all_metrics
from vsr1_core.stages.method_styles import STYLES


def metrics_grid(frame: pl.DataFrame) -> tuple[list[str], list[list[str]]]:
    """(header, rows) with one row per metric and one column per method.

    frame: has the columns method, metric, value, low and high.
    """
    methods = STYLES.ordered(frame["method"].to_list())
    order = {name: place for place, name in enumerate(all_metrics())}
    names = sorted(frame["metric"].unique().to_list(), key=lambda name: (order.get(name, len(order)), name))
    cells = {(r["method"], r["metric"]): _with_interval(r) for r in frame.iter_rows(named=True)}
    return ["metric", *methods], [[n, *(cells.get((m, n), "") for m in methods)] for n in names]


def _with_interval(row: dict[str, Any]) -> str:
    text = _number(row["value"]) or "-"
    return text if row["low"] is None else f"{text} [{_number(row['low'])}, {_number(row['high'])}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
