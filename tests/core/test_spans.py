"""Intersection over union of spans: known cases and properties."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsr1_core.evaluation.columns import best_constant_span
from vsr1_core.evaluation.spans import temporal_iou


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ((0, 10), 1.0),
        ((0, 5), 0.5),
        ((5, 15), 1 / 3),
        ((10, 20), 0.0),
        ((5, 5), 0.0),
        ((5, 5 + 1e-10), 0.0),
        ((8, 2), 0.0),
        ((None, 5), 0.0),
        ((float("nan"), 5), 0.0),
        ((0, float("inf")), 0.0),
        ((-1e308, 1e308), 0.0),
    ],
)
def test_iou_of_known_spans(span: tuple[float, float], expected: float) -> None:
    assert float(temporal_iou(*span, 0, 10)) == pytest.approx(expected)


def test_a_truth_without_length_has_iou_zero_even_with_itself() -> None:
    assert float(temporal_iou(3, 3, 3, 3)) == 0.0


seconds = st.floats(-1e4, 1e4, allow_nan=False)


@settings(deadline=None)
@given(seconds, seconds, seconds, seconds)
def test_iou_is_symmetric_and_in_the_unit_interval(a: float, b: float, c: float, d: float) -> None:
    forward, backward = float(temporal_iou(a, b, c, d)), float(temporal_iou(c, d, a, b))
    assert forward == pytest.approx(backward)
    assert 0.0 <= forward <= 1.0 + 1e-12


@settings(deadline=None)
@given(seconds, st.floats(0.01, 1e3), seconds)
def test_iou_is_one_with_itself_and_does_not_move_with_the_clock(start: float, length: float, shift: float) -> None:
    assert float(temporal_iou(start, start + length, start, start + length)) == pytest.approx(1.0)
    half = float(temporal_iou(start, start + length / 2, start, start + length))
    moved = float(temporal_iou(start + shift, start + shift + length / 2, start + shift, start + shift + length))
    assert half == pytest.approx(moved, abs=1e-6)


def test_the_best_constant_span_is_found() -> None:
    moments = pl.DataFrame({"start_s": [2.0, 4.0, 0.0], "end_s": [5.0, 10.0, 1.0], "duration_s": [10.0, 20.0, 10.0]})
    start, end, share = best_constant_span(moments)
    assert share == pytest.approx(2 / 3)
    assert temporal_iou(10 * start, 10 * end, 2.0, 5.0) >= 0.5
