"""The rows of `metrics` as grids of text: one line per metric, one column per method."""

from __future__ import annotations

from typing import Any

import polars as pl

from vsr1_core.evaluation.expected import ExpectedRanges, Range
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


OUTSIDE = "outside"
"""The word that stands beside a value that is not in its expected range."""


def expected_grid(frame: pl.DataFrame, expected: ExpectedRanges) -> tuple[list[str], list[list[str]]]:
    """(header, rows) with one row per expected metric and one column per method: the value, the range that is expected,
    and `OUTSIDE` where the value is not in it. Shares are in percent.

    frame: has the columns method, metric, split and value.
    """
    found = frame.filter(pl.col("split") == expected.split, pl.col("value").is_not_null())
    value = {(r["method"], r["metric"]): r["value"] for r in found.iter_rows(named=True)}
    methods = STYLES.ordered([m for m in expected.ranges if any(method == m for method, _ in value)])
    names = [n for n in all_metrics() if any((m, n) in value and n in expected.ranges[m] for m in methods)]
    rows = [[n, *(_beside_range(value.get((m, n)), n, expected.ranges[m].get(n)) for m in methods)] for n in names]
    return ["metric", *methods], rows


def _beside_range(value: float | None, metric: str, expected: Range | None) -> str:
    if value is None or expected is None:
        return ""
    shown, (low, high) = all_metrics()[metric], expected.expected
    if shown.unit == "share":
        low, high = max(low, 0.0), min(high, 1.0)
    here, low, high = (shown.scale * x for x in (value, low, high))
    return f"{here:.1f} ({low:.1f} to {high:.1f})" + ("" if value in expected else f" {OUTSIDE}")


def _with_interval(row: dict[str, Any]) -> str:
    text = _number(row["value"]) or "-"
    return text if row["low"] is None else f"{text} [{_number(row['low'])}, {_number(row['high'])}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
