"""What several stages read of the moments: the train rows, and the videos and windows that are right for a query."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import polars as pl

from vsr1_core.evaluation.row_types import MomentRow
from vsr1_core.rows.columnar import LazyRows
from vsr1_core.rows.versions import fingerprint
from vsr1_core.segments import best_right, touches, video_of, window_of
from vsr1_core.stages.base import View
from vsr1_core.stages.readings import Reading

TRAIN = ("train",)
Value = TypeVar("Value")
IS_TRAIN = pl.col("split") == "train"
COMPARED_TEXT = pl.col("query").str.strip_chars().str.to_lowercase()
"""The text of a query as it is compared with the texts of other queries."""
TEXT_HASH = COMPARED_TEXT.hash().alias("hash")
"""8 bytes of it: other texts may have the same ones."""
MOMENT_COLUMNS = {
    "query": "query",
    "video_id": "gt_video_id",
    "start_s": "start_s",
    "end_s": "end_s",
    "duration_s": "duration_s",
}
"""Column of a moment that training rows of both stages copy -> its name in the training rows."""
_COPIED = tuple(MOMENT_COLUMNS.values())


def moment_rows(view: View, splits: Sequence[str]) -> pl.DataFrame:
    """The columns of a `MomentRow` of the moments in these splits."""
    return view.rows("moments", tuple(MomentRow.__annotations__), splits)


def moments_by(moments: pl.DataFrame, key: str, made: Callable[[dict[str, Any]], Value]) -> Mapping[str, Value]:
    """Value of the column `key` -> what is made of the row: column -> value."""
    names = [key, *(name for name in moments.columns if name != key)]
    return LazyRows(moments.select(names), lambda *values: made(dict(zip(names, values, strict=True))))


def as_moment(fields: dict[str, Any]) -> MomentRow:
    """The row of `moments` with these values of its columns."""
    return cast(MomentRow, fields)


def train_moments(view: View) -> Mapping[str, dict[str, Any]]:
    """Train query id -> what training rows of both stages copy from its moment."""
    rows = view.rows("moments", ["query_id", *MOMENT_COLUMNS], TRAIN)
    return LazyRows(rows, lambda _, *values: moment_copy(values))


def moment_copy(values: Sequence[Any]) -> dict[str, Any]:
    """What training rows of both stages copy from a moment, of whose columns MOMENT_COLUMNS these are the values."""
    return dict(zip(_COPIED, values, strict=True))


def moment_version(moment: Mapping[str, Any]) -> str:
    """The version of what a training row copies from its moment (a value of `train_moments`)."""
    return fingerprint({name: moment[column] for name, column in MOMENT_COLUMNS.items()})


def asked_version(query: str, video_id: str) -> str:
    """The version of a query's text and right video: the basis of what was imported for the query."""
    return fingerprint([query, video_id])


def asked_versions(view: View) -> Mapping[str, str]:
    """Train query id -> its `asked_version`."""
    moments = view.rows("moments", ["query_id", "query", "video_id"], TRAIN)
    return LazyRows(moments, lambda _, query, video_id: asked_version(query, video_id))


def same_text_videos(view: View, split: str = "train") -> Mapping[str, frozenset[str]]:
    """Query id -> ids of the videos of all moments in the split with the same query text, including its own video. A
    video that is searched in windows is named by those that show any part of such a moment: its other windows are wrong
    for the query."""
    never, windows = _same_text_whole_videos(view, split), windows_by_video(view)
    if not windows:
        return never
    texts = view.rows("moments", _TEXT_COLUMNS, [split]).with_columns(text=COMPARED_TEXT)
    shown: dict[str, set[str]] = {}
    for text, *moment in texts.select("text", "video_id", "start_s", "end_s").iter_rows():
        shown.setdefault(text, set()).update(s for s in windows.get(moment[0], ()) if touches(s, *moment))
    of_texts = texts.select("query_id", "text").iter_rows()
    return {query_id: never[query_id].difference(windows) | shown[text] for query_id, text in of_texts}


_TEXT_COLUMNS = ("query_id", "query", "video_id", "start_s", "end_s")


def _same_text_whole_videos(view: View, split: str) -> LazyRows[frozenset[str]]:
    """`same_text_videos` before windows. Texts are told apart by 8 bytes of hash, and compared where two have the same:
    those of 800,000 queries took 200 MB, and their groups as much again."""
    read = Reading.of("moments", "ok", _TEXT_COLUMNS, [split])
    own = pl.concat(rows.select("query_id", "video_id", TEXT_HASH) for rows in view.read_batches(read))
    common = own.filter(pl.col("hash").is_duplicated())["hash"].unique()
    own = own.drop("hash")
    if common.is_empty():
        return LazyRows(own, lambda _, video_id: frozenset([video_id]))
    texts = pl.concat(
        rows.filter(TEXT_HASH.is_in(common.implode())).select("query_id", "video_id", text=COMPARED_TEXT)
        for rows in view.read_batches(read)
    )
    shared = texts.group_by("text").agg(pl.col("video_id").unique().alias("videos"))
    videos = texts.join(shared, on="text").select("query_id", "videos")
    both = own.join(videos, on="query_id", how="left", maintain_order="left")
    return LazyRows(both, lambda _, video_id, videos: frozenset(videos or [video_id]))


def right_segments(view: View) -> Mapping[str, str | None]:
    """Train query id -> the segment of its right video that holds most of its moment; None where no window does."""
    windows = windows_by_video(view)

    def right(_: str, video_id: str, start_s: float, end_s: float) -> str | None:
        return best_right(windows[video_id], video_id, start_s, end_s) if video_id in windows else video_id

    return LazyRows(view.rows("moments", ["query_id", "video_id", "start_s", "end_s"], TRAIN), right)


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
