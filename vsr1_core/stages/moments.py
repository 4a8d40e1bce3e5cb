"""What several stages read of the moments: the train rows, and the videos and windows that are right for a query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from vsr1_core.evaluation.row_types import MomentRow
from vsr1_core.rows.versions import fingerprint
from vsr1_core.segments import best_right, touches, video_of, window_of
from vsr1_core.stages.base import View

TRAIN = ("train",)
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


def moment_rows(view: View, splits: Sequence[str]) -> pl.DataFrame:
    """The columns of a `MomentRow` of the moments in these splits."""
    return view.rows("moments", tuple(MomentRow.__annotations__), splits)


def train_moments(view: View) -> dict[str, dict[str, Any]]:
    """Train query id -> what training rows of both stages copy from its moment, under the names of MOMENT_COLUMNS."""
    rows = view.rows("moments", ["query_id", *MOMENT_COLUMNS], TRAIN).rename(MOMENT_COLUMNS).to_dicts()
    return {row.pop("query_id"): row for row in rows}


def moment_version(moment: Mapping[str, Any]) -> str:
    """The version of what a training row copies from its moment (a value of `train_moments`)."""
    return fingerprint({name: moment[column] for name, column in MOMENT_COLUMNS.items()})


def asked_version(query: str, video_id: str) -> str:
    """The version of a query's text and right video: the basis of what was imported for the query."""
    return fingerprint([query, video_id])


def asked_versions(view: View) -> dict[str, str]:
    """Train query id -> its `asked_version`."""
    moments = view.rows("moments", ["query_id", "query", "video_id"], TRAIN)
    return {query_id: asked_version(query, video_id) for query_id, query, video_id in moments.iter_rows()}


def same_text_videos(view: View, split: str = "train") -> dict[str, frozenset[str]]:
    """Query id -> ids of the videos of all moments in the split with the same query text, including its own video. A
    video that is searched in windows is named by those that show any part of such a moment: its other windows are wrong
    for the query."""
    columns = ["query_id", "query", "video_id", "start_s", "end_s"]
    texts = view.rows("moments", columns, [split]).with_columns(text=COMPARED_TEXT)
    shared = texts.group_by("text").agg(pl.col("video_id").unique().alias("videos"))
    pairs = texts.join(shared, on="text").select("query_id", "videos").iter_rows()
    never = {query_id: frozenset(videos) for query_id, videos in pairs}
    windows = windows_by_video(view)
    if not windows:
        return never
    shown: dict[str, set[str]] = {}
    for text, *moment in texts.select("text", "video_id", "start_s", "end_s").iter_rows():
        shown.setdefault(text, set()).update(s for s in windows.get(moment[0], ()) if touches(s, *moment))
    of_texts = texts.select("query_id", "text").iter_rows()
    return {query_id: never[query_id].difference(windows) | shown[text] for query_id, text in of_texts}


def right_segments(view: View) -> dict[str, str | None]:
    """Train query id -> the segment of its right video that holds most of its moment; None where no window does."""
    windows, found = windows_by_video(view), {}
    for query_id, moment in train_moments(view).items():
        video_id = moment["gt_video_id"]
        if video_id in windows:
            found[query_id] = best_right(windows[video_id], video_id, moment["start_s"], moment["end_s"])
        else:
            found[query_id] = video_id
    return found


def windows_by_video(view: View) -> dict[str, list[str]]:
    """Video id -> ids of its windows that have frames, in the order of time. Whole videos are not among them."""
    if not view.config.segments.window_s:
        return {}
    found: dict[str, list[str]] = {}
    for segment_id in view.rows("frame_tensors", ["video_id"])["video_id"]:
        if window_of(segment_id) is not None:
            found.setdefault(video_of(segment_id), []).append(segment_id)
    return {video_id: sorted(ids, key=_window) for video_id, ids in found.items()}


def _window(segment_id: str) -> tuple[float, float]:
    return window_of(segment_id) or (0.0, 0.0)
