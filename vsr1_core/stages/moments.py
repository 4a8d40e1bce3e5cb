"""What several stages read of the moments: the train rows, and the videos that are right for a query text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from vsr1_core.rows.versions import fingerprint
from vsr1_core.stages.base import View

IS_TRAIN = pl.col("split") == "train"
COMPARED_TEXT = pl.col("query").str.strip_chars().str.to_lowercase()
"""The text of a query as it is compared with the texts of other queries."""
MOMENT_COLUMNS = {
    "query": "query",
    "video_id": "gt_video_id",
    "start_s": "start_s",
    "end_s": "end_s",
    "duration_s": "duration_s",
}
"""Column of a moment that training rows of both stages copy -> its name in the training rows."""


def train_moments(view: View) -> dict[str, dict[str, Any]]:
    """Train query id -> what training rows of both stages copy from its moment, under the names of MOMENT_COLUMNS."""
    frame = view.rows("moments", ["query_id", "split", *MOMENT_COLUMNS]).filter(IS_TRAIN).drop("split")
    rows = frame.rename(MOMENT_COLUMNS).to_dicts()
    return {row.pop("query_id"): row for row in rows}


def moment_version(moment: Mapping[str, Any]) -> str:
    """The version of what a training row copies from its moment (a value of `train_moments`)."""
    return fingerprint({name: moment[column] for name, column in MOMENT_COLUMNS.items()})


def asked_version(query: str, video_id: str) -> str:
    """The version of a query's text and right video: the basis of what was imported for the query."""
    return fingerprint([query, video_id])


def asked_versions(view: View) -> dict[str, str]:
    """Train query id -> its `asked_version`."""
    moments = view.rows("moments", ["query_id", "split", "query", "video_id"]).filter(IS_TRAIN)
    return {query_id: asked_version(query, video_id) for query_id, _, query, video_id in moments.iter_rows()}


def same_text_videos(view: View, split: str = "train") -> dict[str, frozenset[str]]:
    """Query id -> ids of the videos of all moments in the split with the same query text, including its own video."""
    moments = view.rows("moments", ["query_id", "split", "query", "video_id"]).filter(pl.col("split") == split)
    texts = moments.with_columns(text=COMPARED_TEXT)
    shared = texts.group_by("text").agg(pl.col("video_id").unique().alias("videos"))
    pairs = texts.join(shared, on="text").select("query_id", "videos").iter_rows()
    return {query_id: frozenset(videos) for query_id, videos in pairs}
