"""What a column is, and the columns that mean the same in every table. A stage declares all others where it stands."""

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
    """Name -> polars type."""
    return {name: column.dtype for name, column in columns.items()}


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
    "dataset": "Name of the dataset, from `vsr1 dataset list`.",
    "row_version": "Hash of the stage's version, its recipe and `row_inputs`.",
    "row_inputs": "What the row was made from: name and version of each input, JSON.",
    "status": "`ok` or `failed`.",
    "error": "Of a failed row: what is wrong, where, and what to do.",
}
"""Columns that every table has beside those of its stage."""

IDS: Mapping[str, str] = {
    "video_id": "The video's name in the annotations: its file name without the extension.",
    "query_id": "The query: `<desc_id>_fig`.",
    "split": "`train`, `val` or `test`.",
    "checkpoint": "The checkpoint.",
}
"""Keys that several tables share."""

PATH = text("Where the file or folder lies.")
DIGEST = text("Digest of the content.")
BYTES = integer("Size of the file.")
MTIME_NS = integer("Modification time of the file, in nanoseconds; decides only whether it is read again.")
CONTENT = text("Changes when, and only when, the pixels may.")
QUERY_ID = text(IDS["query_id"])
SPLIT = text(IDS["split"])
SPLITS = texts("The splits whose corpus the video belongs to.")
QUERY = text("The fine-grained description that is searched for.")
GT_VIDEO_ID = text("The right video: the one that the moment is in.")
GT_START_S = number("Start of the right span in seconds.")
GT_END_S = number("End of the right span in seconds.")
START_S = number("Start in seconds from the video's first frame.")
END_S = number("End in seconds from the video's first frame.")
CLOCK_START_S = number("What the file's own clock shows at the first frame, in seconds.")
DURATION_S = number("Length of the video in seconds.")
LABEL = text("What is right to say of the shown video: `matched` or `not_matched`.")
SHOWN_VIDEO_ID = text("The video that the policy is shown.")
NEGATIVE_IDS = texts("Videos that the refined query should be far from.")
NEGATIVE_SCORES = scores("Their cosines with the plain query.")
VECTOR = Column(pl.List(pl.Float32), "Unit vector, float32.")
RANK = integer(
    "1 + the number of videos with a strictly higher score than the right one; null where that one is not indexed."
)
FIRST_RANK = integer("Rank of the right video by the query's own text.")
DECISION = text("`matched`, `not_matched` or `unknown`.")
MATCHED_PROBABILITY = number("Probability of `matched` against `not_matched` at the answer.")
IOU = number("Temporal IoU of the answered and the right span; 0 unless the right video was matched.")
NUM_TEXT_TOKENS = integer("Text tokens that the policy wrote.")
NUM_LATENT_TOKENS = integer("Soft query tokens that the policy made.")
NUM_QUERY_TOKENS = integer("Tokens of the queries that the policy wrote anew; a part of its text tokens.")
SEARCHED_BY = text("How it was searched: a row of the report.")
METRIC = text("Name of the metric; shares are in [0, 1].")
VALUE = number("The metric; null where it is undefined.")
LOW = number("Lower end of the 95 % bootstrap interval over queries.")
HIGH = number("Upper end of the 95 % bootstrap interval over queries.")
NUM_QUERIES = integer("Queries that it is a mean of.")
SEED = integer("Seed of the resampling.")
