"""Verdicts on one right and one wrong video per query, made without search, as arrays for the metrics of probes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from vsr1_core.evaluation.columns import best_constant_span, cut_to_shown, equals, floats, ok_rows, span_iou
from vsr1_core.evaluation.spans import BoolArray, FloatArray, temporal_iou


@dataclass(frozen=True)
class Probes:
    """One method's verdicts, each array of shape (Q,), in the order of `Episodes.query_ids`."""

    has_right: BoolArray
    """Whether the query was shown with its right video."""
    has_wrong: BoolArray
    """Whether the query was shown with a wrong video."""
    accepts_right: BoolArray
    rejects_wrong: BoolArray
    iou: FloatArray
    """IoU of the span in the right video, or with the part of the right span that the shown window has; 0 unless the
    policy matched what it was shown."""
    constant_iou: FloatArray
    """IoU of the constant span that was fitted on the train moments; NaN if there are no train moments."""


def load_probes(moments: pl.DataFrame, probes: pl.DataFrame, train_moments: pl.DataFrame) -> Probes:
    """Align a method's probes with the annotated queries.

    Args:
        moments: The scored queries, with the columns query_id, start_s, end_s and duration_s (in seconds).
        probes: Rows of `verification_probe.<method>` (`row_types.ProbeRow`); rows that are not ok are left out.
        train_moments: start_s, end_s and duration_s (in seconds) of the train split, on which the constant span is
            fitted.

    Returns:
        The queries of `moments`, sorted by query_id.

    Raises:
        polars.exceptions.ComputeError: A query has two rows of one label.
    """
    columns = {"gt_start_s": "start_s", "gt_end_s": "end_s", "duration_s": "duration_s"}
    truth = moments.select("query_id", **columns).sort("query_id")
    shown = ("query_id", "label", "shown_video_id", "decision", "start_s", "end_s")
    rows = ok_rows(probes).select(*shown, is_shown=pl.lit(True))
    right, wrong = (
        truth.join(rows.filter(pl.col("label") == label), on="query_id", how="left", validate="1:1").sort("query_id")
        for label in ("matched", "not_matched")
    )
    accepts_right = equals(right["decision"], "matched")
    return Probes(
        has_right=right["is_shown"].fill_null(False).to_numpy(),
        has_wrong=wrong["is_shown"].fill_null(False).to_numpy(),
        accepts_right=accepts_right,
        rejects_wrong=equals(wrong["decision"], "not_matched"),
        iou=np.where(accepts_right, span_iou(cut_to_shown(right)), 0.0),
        constant_iou=_constant_iou(truth, train_moments),
    )


def _constant_iou(truth: pl.DataFrame, train_moments: pl.DataFrame) -> FloatArray:
    if train_moments.is_empty():
        return np.full(truth.height, np.nan)
    start, end, _ = best_constant_span(train_moments)
    duration = floats(truth["duration_s"])
    return temporal_iou(start * duration, end * duration, floats(truth["gt_start_s"]), floats(truth["gt_end_s"]))
