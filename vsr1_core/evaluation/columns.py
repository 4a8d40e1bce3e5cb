"""Spans and ranks, read as numpy arrays from the columns of a frame. No score is defined here."""

from __future__ import annotations

import polars as pl

from vsr1_core.evaluation.spans import BoolArray, FloatArray, temporal_iou
from vsr1_core.segments import clipped, is_right


def floats(values: pl.Series) -> FloatArray:
    """A column of numbers; null becomes NaN."""
    return values.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def equals(values: pl.Series, text: str) -> BoolArray:
    """Where a column holds `text`; null is False."""
    return (values == text).fill_null(False).to_numpy()


def is_right_video(frame: pl.DataFrame) -> BoolArray:
    """Where video_id is the row's gt_video_id, or a window that is right for its moment; False where it is null."""
    found = (frame["video_id"] == frame["gt_video_id"]).fill_null(False).to_numpy()
    windows = _are_windows(frame["video_id"])
    if windows.any():
        rows = frame.select("video_id", "gt_video_id", "gt_start_s", "gt_end_s").filter(windows).iter_rows()
        found = found.copy()
        found[windows] = [is_right(*row) for row in rows]
    return found


def _are_windows(segment_ids: pl.Series) -> BoolArray:
    """Which ids may be those of windows; null is not."""
    return segment_ids.str.contains("//", literal=True).fill_null(False).to_numpy()


def cut_to_shown(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with each right span (gt_start_s, gt_end_s) cut to what shown_video_id shows, where it is a window."""
    windows = _are_windows(frame["shown_video_id"])
    if not windows.any():
        return frame
    shown = frame.select("shown_video_id", "gt_start_s", "gt_end_s").iter_rows()
    spans = [clipped(*row) if is_window else row[1:] for row, is_window in zip(shown, windows, strict=True)]
    starts, ends = zip(*spans, strict=True)
    return frame.with_columns(gt_start_s=pl.Series(starts), gt_end_s=pl.Series(ends))


def span_iou(frame: pl.DataFrame) -> FloatArray:
    """IoU of each row's span (start_s, end_s) with its right one (gt_start_s, gt_end_s)."""
    return temporal_iou(*(floats(frame[name]) for name in ("start_s", "end_s", "gt_start_s", "gt_end_s")))


def ok_rows(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows whose status is ok; all of them where the frame has no status."""
    return rows.filter(pl.col("status") == "ok") if "status" in rows.columns else rows


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
