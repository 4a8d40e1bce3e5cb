"""What a column is, and the columns that mean the same in every table. Each stage declares its other columns itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl


@dataclass(frozen=True)
class Column:
    """A column of a table: its polars type, and one sentence about it that the UI and `vsr1.duckdb` show."""

    dtype: Any
    says: str


def dtypes(columns: Mapping[str, Column]) -> dict[str, Any]:
    """Column name -> polars type."""
    return {name: column.dtype for name, column in columns.items()}


def meanings(columns: Mapping[str, Column]) -> dict[str, str]:
    """Column name -> what the column holds, in one sentence."""
    return {name: column.says for name, column in columns.items()}


def text(says: str) -> Column:
    return Column(pl.String, says)


def integer(says: str) -> Column:
    return Column(pl.Int64, says)


def number(says: str) -> Column:
    return Column(pl.Float64, says)


def texts(says: str) -> Column:
    return Column(pl.List(pl.String), says)


def scores(says: str) -> Column:
    return Column(pl.List(pl.Float32), says)


BOOKKEEPING: Mapping[str, str] = {
    "dataset": "Name of the dataset, as `vsr1 dataset list` shows it.",
    "row_version": "Version of the row: a hash of the stage's version, its recipe and `row_inputs`.",
    "row_inputs": "What the row was made from: the name and version of each input, as JSON.",
    "status": "`ok`, or `failed` where the row could not be made.",
    "error": "Why the row failed: what is wrong, where, and what to do; null where it did not.",
}
"""Columns that every table has in addition to those of its stage."""

IDS: Mapping[str, str] = {
    "video_id": "The video's name in the annotations: its file name without the extension.",
    "query_id": "Id of the annotated query: `<desc_id>_fig`.",
    "split": "Split that the row belongs to: `train`, `val` or `test`.",
    "checkpoint": "Name of the checkpoint.",
}
"""Keys that several tables share."""

SEGMENT_SAYS = "Id of the video, or of a window of a long one: `VIDEO//START-END`, in seconds of the source."
"""Meaning of a `video_id` that may name a window."""

PATH = text("Path of the file or folder on disk.")
DIGEST = text("Hash of the content of the file or folder.")
BYTES = integer("Size of the file in bytes.")
MTIME_NS = integer("Modification time of the file in nanoseconds; it decides only whether the file is read again.")
CONTENT = text("Version of the pixels: it changes when the pixels may have changed, and never otherwise.")
QUERY_ID = text(IDS["query_id"])
SPLIT = text(IDS["split"])
SPLITS = texts("Splits whose corpus contains the video.")
QUERY = text("Text of the query: the fine-grained description that is searched for.")
GT_VIDEO_ID = text("Id of the right video: the one that contains the moment.")
GT_START_S = number("Start of the right span, in seconds from the video's first frame.")
GT_END_S = number("End of the right span, in seconds from the video's first frame.")
START_S = number("Start of the span, in seconds from the video's first frame.")
END_S = number("End of the span, in seconds from the video's first frame.")
CLOCK_START_S = number("Time that the file's own clock shows at the first frame, in seconds.")
DURATION_S = number("Length of the video in seconds.")
LABEL = text("Right decision about the shown video: `matched` or `not_matched`.")
SHOWN_VIDEO_ID = text("Id of the video, or window, that the policy is shown.")
NEGATIVE_IDS = texts("Ids of wrong videos or windows: training pushes the refined query away from them.")
NEGATIVE_SCORES = scores("Cosine of each negative video and the query before refinement.")
VECTOR = Column(pl.List(pl.Float32), "Embedding: a vector of length 1, float32.")
RANK = integer(
    "Rank of the right video: 1 + the number of videos with a strictly higher score; null where it is not indexed."
)
FIRST_RANK = integer("Rank of the right video by the query's own text, before any refinement.")
DECISION = text(
    "What the policy decided about the shown video: `matched`, `not_matched`, or `unknown` where it cannot be read."
)
TOP: Mapping[str, Column] = {
    "top_video_ids": texts("Ids of the first videos or windows of the ranking, best first: at most 10."),
    "top_scores": scores("Cosine of the query, as it stood then, and each video of `top_video_ids`."),
}
MATCHED_PROBABILITY = number("Probability that the policy gave to `matched` against `not_matched` where it decided.")
IOU = number("Temporal IoU of the answered span and the right span; 0 unless the right video was matched.")
NUM_TEXT_TOKENS = integer("Number of text tokens that the policy wrote.")
NUM_LATENT_TOKENS = integer("Number of soft query tokens that the policy made.")
NUM_QUERY_TOKENS = integer(
    "Number of text tokens that belong to queries which the policy rewrote; `num_text_tokens` includes them."
)
SEARCHED_BY = text("Name of the method that searched; each method is one row of the report.")
METRIC = text("Name of the metric.")
VALUE = number("Value of the metric; shares are in [0, 1]; null where the metric is undefined.")
LOW = number("Lower end of the 95 % bootstrap interval over queries.")
HIGH = number("Upper end of the 95 % bootstrap interval over queries.")
NUM_QUERIES = integer("Number of queries that the value is computed over.")
SEED = integer("Seed of the bootstrap resampling.")


def failed(error: str) -> dict[str, Any]:
    """The known columns of a row of which the plan already knows that it will fail."""
    return {"status": "failed", "error": error}
