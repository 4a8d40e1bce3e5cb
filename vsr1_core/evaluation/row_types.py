"""The columns of the tables that are scored and shown, as types: a type checker reports a column that was renamed.

The tables themselves are the stages'. A row that was read from one is `typed_rows(frame, MomentRow)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypedDict, TypeVar, cast

import polars as pl


class SpanRow(TypedDict):
    """A span of a video, in seconds from its first frame."""

    video_id: str
    start_s: float
    end_s: float


class MomentRow(SpanRow):
    """An annotated query and its moment: a row of `moments`. Here the right video is `video_id`."""

    query_id: str
    split: str
    query: str
    plain_query: str
    duration_s: float
    """Length of the video in seconds."""
    clamped: bool


class TurnRow(TypedDict):
    """One turn of an episode: which video was shown, and what the policy wrote about it."""

    turn: int
    """Counted from 1."""
    video_id: str
    score: float
    rank: int | None
    """Of the right video in this turn's ranking; None where it is in none."""
    decision: str
    matched_probability: float | None
    reasoning: str | None
    start_s: float | None
    end_s: float | None
    num_text_tokens: int
    num_latent_tokens: int
    num_query_tokens: int
    new_query: str | None
    text: str


class PredictionRow(TypedDict):
    """What a method answered to one query: a row of `predictions.<method>`."""

    query_id: str
    split: str
    query: str
    gt_video_id: str
    gt_start_s: float
    gt_end_s: float
    video_id: str | None
    rank: int | None
    first_rank: int | None
    decision: str
    start_s: float | None
    end_s: float | None
    iou: float
    num_turns: int
    num_text_tokens: int
    num_latent_tokens: int
    num_query_tokens: int
    matched_probability: float | None
    checkpoint: str
    best_video_id: str | None
    best_turn: int | None
    best_start_s: float | None
    best_end_s: float | None
    best_iou: float
    num_best_tokens: int
    prefix_ranks: list[int] | None
    turns: list[TurnRow]


class AskedRow(TypedDict):
    """What was asked, and the right answer."""

    query_id: str
    query: str
    gt_video_id: str
    gt_start_s: float
    gt_end_s: float


class AnswerRow(AskedRow):
    """A prediction beside its query's truth: what the report shows of one query."""

    first_rank: int | None
    rank: int | None
    num_turns: int
    turns: list[TurnRow] | None


class ProbeRow(TypedDict):
    """The verdict on one right or wrong video: a row of `verification_probe.<method>`."""

    probe_id: str
    query_id: str
    split: str
    label: str
    """`matched` for the right video, `not_matched` for the wrong one."""
    shown_video_id: str
    decision: str
    matched_probability: float | None
    start_s: float | None
    end_s: float | None
    iou: float
    num_text_tokens: int


class MetricRow(TypedDict):
    """One metric of one method, with its 95 % interval: what a row of `metrics` says."""

    method: str
    metric: str
    value: float | None
    low: float | None
    high: float | None


class CurveRow(MetricRow):
    """One point of a refinement curve: what a row of `refinement_curves` says."""

    curve: str
    x: int


class DifferenceRow(TypedDict):
    """One metric of a method minus that of another one, with its paired 95 % interval."""

    metric: str
    difference: float | None
    low: float | None
    high: float | None


class ResultRow(TypedDict):
    """One metric of one method over several seeds, with the 95 % interval of its mean."""

    method: str
    metric: str
    mean: float | None
    low: float | None
    high: float | None


RowType = TypeVar("RowType")


def typed_rows(frame: pl.DataFrame, row_type: type[RowType]) -> Iterator[RowType]:
    """The rows of a frame as `row_type`, which is one of the types above; other columns are left out.

    Raises:
        polars.exceptions.ColumnNotFoundError: Where the frame lacks a column of the type.
    """
    columns = list(row_type.__annotations__)
    return (cast("RowType", row) for row in frame.select(columns).iter_rows(named=True))
