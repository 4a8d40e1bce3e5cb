"""Segments, the unit of a corpus: a whole video, or one of the overlapping windows of a long one.

Indexed, ranked and shown are segments; found and annotated are videos. The id of a segment says everything about it: a
whole video has the video's own id, and a window is `VIDEO//START-END`, in seconds of the source (`films/one//90-210`).
No video id has that form, because paths hold no empty folder name. All times here count from the video's first frame.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from vsr1_core.limits import Range, Weight

_WINDOW = re.compile(r"(.+)//(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)", re.DOTALL)
_MARK = "//"
WINDOW_PATTERN = r"^(.+)//([0-9.]+)-([0-9.]+)$"
"""The form of a window's id as a regular expression for SQL: video, start, end."""
MAX_WINDOWS = 10_000
"""A video with more windows is refused: with the defaults it lasts ten days, or its time stamps are wrong."""
LEAST_SHARE = 0.5
"""A window is right for a moment if it holds this share of the shorter one of both. With at most a half, each moment
has a right window, because the windows overlap or touch: of two neighbours, one holds half of what lies across their
border."""


@dataclass(frozen=True)
class SegmentRecipe:
    """What is embedded, ranked and shown: whole videos, or overlapping windows of those that are longer than a window.
    A video whose frames were imported is never divided."""

    window_s: Weight = 0.0
    """Length of a window in seconds, and of the longest video that is one segment; 0 divides no video."""
    overlap: Annotated[float, Range(0, 0.5)] = 0.25
    """Share of a window that the next one shows as well."""


def windows_of(duration_s: float, window_s: float, overlap: float) -> list[tuple[float, float]]:
    """The (start, end) of each window of a video, in seconds; none where the whole video is one segment.

    Args:
        duration_s: Length of the video.
        window_s: Length of a window, and of the longest video that has none; 0 for no windows.
        overlap: Share of a window that the next one shows as well; below 1.

    Returns:
        Windows in order, in whole milliseconds; the last one ends with the video and may be shorter.

    Raises:
        ValueError: There would be more than MAX_WINDOWS.
    """
    if not window_s or duration_s <= window_s:
        return []
    step_s = window_s * (1 - overlap)
    if duration_s / step_s > MAX_WINDOWS:
        raise ValueError(
            f"it lasts {duration_s / 3600:,.1f} hours, which are more than {MAX_WINDOWS:,} windows of {window_s:g} s: "
            "cut it into pieces, or set segments.window_s to a greater length"
        )
    last_s = math.ceil(duration_s * 1000) / 1000
    windows: list[tuple[float, float]] = []
    while not windows or windows[-1][1] < last_s:
        start_s = len(windows) * step_s
        windows.append((round(start_s, 3), round(min(start_s + window_s, last_s), 3)))
    return windows


def window_id(video_id: str, start_s: float, end_s: float) -> str:
    """The id of a window."""
    start, end = (f"{seconds:.3f}".rstrip("0").rstrip(".") for seconds in (start_s, end_s))
    return f"{video_id}{_MARK}{start}-{end}"


def video_of(segment_id: str) -> str:
    """The id of the video that a segment belongs to: the segment's own id where that is a whole video."""
    found = _WINDOW.fullmatch(segment_id) if _MARK in segment_id else None
    return found[1] if found else segment_id


def window_of(segment_id: str) -> tuple[float, float] | None:
    """(start, end) of a window in seconds; None for a whole video."""
    found = _WINDOW.fullmatch(segment_id) if _MARK in segment_id else None
    return (float(found[2]), float(found[3])) if found else None


def shown_span(segment_id: str, length_s: float) -> tuple[float, float]:
    """The seconds of the source that a segment of `length_s` seconds shows: (start, end)."""
    return window_of(segment_id) or (0.0, length_s)


def clipped(segment_id: str, start_s: float, end_s: float) -> tuple[float, float]:
    """The part of a span that lies in the segment; the whole span where the segment is a whole video. A span outside
    becomes a point at the nearer end."""
    window = window_of(segment_id)
    if window is None:
        return start_s, end_s
    return min(max(start_s, window[0]), window[1]), max(min(end_s, window[1]), window[0])


def touches(segment_id: str, video_id: str, start_s: float, end_s: float) -> bool:
    """Whether a segment shows any part of this span of the video."""
    if video_of(segment_id) != video_id:
        return False
    first, last = window_of(segment_id) or (start_s, end_s)
    return first <= end_s and start_s <= last


def is_right(segment_id: str, video_id: str, start_s: float, end_s: float) -> bool:
    """Whether a segment is right for a moment: it is the moment's whole video, or a window that holds at least
    LEAST_SHARE of the moment, or of itself where the moment is longer."""
    window = window_of(segment_id)
    if window is None:
        return segment_id == video_id
    held_s = min(end_s, window[1]) - max(start_s, window[0])
    shorter_s = min(end_s - start_s, window[1] - window[0])
    return video_of(segment_id) == video_id and held_s >= max(0.0, LEAST_SHARE * shorter_s)


def best_right(segment_ids: Sequence[str], video_id: str, start_s: float, end_s: float) -> str | None:
    """Of these segments, the right one that holds most of the moment, the earlier one where two hold as much; None
    where none is right."""
    right = [segment for segment in segment_ids if is_right(segment, video_id, start_s, end_s)]
    return max(right, key=lambda segment: _held(segment, start_s, end_s), default=None)


def _held(segment_id: str, start_s: float, end_s: float) -> tuple[float, float]:
    """Seconds of a span that a segment holds; then how early the segment is."""
    first, last = clipped(segment_id, start_s, end_s)
    return round(last - first, 3), -(window_of(segment_id) or (0.0, 0.0))[0]


def overlap(one: str, other: str) -> bool:
    """Whether two segments show a common part of one video: then they are near-duplicates of each other."""
    window = window_of(other)
    if window is None or window_of(one) is None:
        return video_of(one) == video_of(other)
    start_s, end_s = window_of(one) or window
    return video_of(one) == video_of(other) and window[0] < end_s and start_s < window[1]


def best_of_each(segment_ids: Sequence[str], per_video: bool = True) -> Iterator[int]:
    """The places, in a ranking of segments, that are left when its near-duplicates are dropped.

    per_video: keep the best segment of each video; otherwise keep each segment that overlaps no better one.
    """
    kept: dict[str, list[str]] = {}
    for place, segment_id in enumerate(segment_ids):
        better = kept.setdefault(video_of(segment_id), [])
        if better and (per_video or any(overlap(segment_id, one) for one in better)):
            continue
        better.append(segment_id)
        yield place
