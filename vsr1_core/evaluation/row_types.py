"""Types for the columns of the tables that are scored and shown, so that a type checker reports a renamed column.

The stages write the tables. `typed_rows(frame, MomentRow)` reads rows of a frame with their type.
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
    """An annotated query and its moment: a row of `moments`. In this table, `video_id` is the right video."""

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
    """Rank of the right video in the ranking of this turn; None if it is not in the ranking."""
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


class RankedTurnRow(TurnRow):
    """A turn of a prediction, with the first videos of its ranking."""

    top_video_ids: list[str]
    top_scores: list[float]


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
    top_video_ids: list[str]
    top_scores: list[float]
    turns: list[RankedTurnRow]


class AskedRow(TypedDict):
    """What was asked, and the right answer."""

    query_id: str
    query: str
    gt_video_id: str
    gt_start_s: float
    gt_end_s: float


class AnswerRow(AskedRow):
    """A prediction and the truth of its query: what the report shows about one query."""

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
    """One metric of one method, with its 95 % interval: a row of `metrics`."""

    method: str
    metric: str
    value: float | None
    low: float | None
    high: float | None


class CurveRow(MetricRow):
    """One point of a refinement curve: a row of `refinement_curves`."""

    curve: str
    x: int


class DifferenceRow(TypedDict):
    """Difference of one metric between two methods, with its paired 95 % interval."""

    metric: str
    difference: float | None
    low: float | None
    high: float | None


class ResultRow(TypedDict):
    """One metric of one method: its mean over several runs, its 95 % interval over seeds, and the range of the runs."""

    method: str
    metric: str
    mean: float | None
    low: float | None
    high: float | None
    lowest: float | None
    highest: float | None


RowType = TypeVar("RowType")


def typed_rows(frame: pl.DataFrame, row_type: type[RowType]) -> Iterator[RowType]:
    """Iterate over the rows of a frame as `row_type`, which is one of the types above; other columns are left out.

    Raises:
        polars.exceptions.ColumnNotFoundError: The frame lacks a column of the type.
    """
    columns = list(row_type.__annotations__)
    return (cast("RowType", row) for row in frame.select(columns).iter_rows(named=True))
