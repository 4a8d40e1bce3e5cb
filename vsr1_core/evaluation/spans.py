"""Spans in seconds and ranks as numpy arrays. No score is defined here; `columns` reads them from a frame."""

from __future__ import annotations

import numpy as np
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
