"""Spans in seconds and ranks as numpy arrays, and how they are read from the columns of a frame. No score is defined
here."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]

MIN_SPAN_S = 1e-9
"""A span shorter than this has IoU 0 with everything."""


def temporal_iou(start_s: ArrayLike, end_s: ArrayLike, gt_start_s: ArrayLike, gt_end_s: ArrayLike) -> FloatArray:
    """Intersection over union of spans, elementwise with broadcasting.

    Args:
        start_s: Starts of the first spans in seconds, of any shape.
        end_s: Their ends in seconds.
        gt_start_s: Starts of the spans they are compared with, in seconds.
        gt_end_s: Their ends in seconds.

    Returns:
        IoU in [0, 1], of the broadcast shape; scalars give a 0-d array. It is 0 where a bound is missing (None or NaN)
        or infinite, and where either span is reversed or shorter than 1e-9 s.

    Example:
        >>> float(temporal_iou(0.0, 5.0, 0.0, 10.0))
        0.5
    """
    a0, a1, b0, b1 = (np.asarray(bound, dtype=np.float64) for bound in (start_s, end_s, gt_start_s, gt_end_s))
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        length_a, length_b = a1 - a0, b1 - b0
        intersection = np.maximum(np.minimum(a1, b1) - np.maximum(a0, b0), 0.0)
        iou = intersection / (length_a + length_b - intersection)
        usable = (length_a >= MIN_SPAN_S) & (length_b >= MIN_SPAN_S) & np.isfinite(length_a) & np.isfinite(length_b)
    return np.asarray(np.where(usable, np.nan_to_num(iou), 0.0), dtype=np.float64)


def as_ranks(ranks: ArrayLike) -> FloatArray:
    """Ranks as floats of shape (Q,), where a missing rank (None or NaN) is infinite."""
    values = np.atleast_1d(np.asarray(ranks, dtype=np.float64))
    return np.where(np.isnan(values), np.inf, values)


def best_constant_span(moments: pl.DataFrame, threshold: float = 0.5, steps: int = 20) -> tuple[float, float, float]:
    """Find the one span, in shares of each video's length, that hits most moments.

    Args:
        moments: A frame with the columns start_s, end_s and duration_s, all in seconds.
        threshold: A moment is hit when the IoU is at least this.
        steps: The bounds that are tried are multiples of 1 / steps.

    Returns:
        (start, end, share): the span, and the share of the moments that it hits; (0, 1, 0) if there are no moments. The
        share is measured with hindsight, on the moments on which the span is chosen: it is the best that grounding
        reaches without looking at a video.
    """
    start, end, duration = (floats(moments[name]) for name in ("start_s", "end_s", "duration_s"))
    best = (0.0, 1.0, 0.0)
    for first in range(steps):
        for last in range(first + 1, steps + 1):
            iou = temporal_iou(first / steps * duration, last / steps * duration, start, end)
            share = float((iou >= threshold).mean()) if iou.size else 0.0
            best = max(best, (first / steps, last / steps, share), key=lambda span: span[2])
    return best


# ---- columns of a frame as arrays --------------------------------------------------------------------------------


def floats(values: pl.Series) -> FloatArray:
    """A column of numbers; null becomes NaN."""
    return values.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def equals(values: pl.Series, text: str) -> BoolArray:
    """Where a column holds `text`; null is False."""
    return (values == text).fill_null(False).to_numpy()


def is_right_video(frame: pl.DataFrame) -> BoolArray:
    """Where video_id is the row's gt_video_id; False where no video is named."""
    return (frame["video_id"] == frame["gt_video_id"]).fill_null(False).to_numpy()


def span_iou(frame: pl.DataFrame) -> FloatArray:
    """IoU of each row's span (start_s, end_s) with its right one (gt_start_s, gt_end_s)."""
    return temporal_iou(*(floats(frame[name]) for name in ("start_s", "end_s", "gt_start_s", "gt_end_s")))


def ok_rows(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows whose status is ok; all of them where the frame has no status."""
    return rows.filter(pl.col("status") == "ok") if "status" in rows.columns else rows
