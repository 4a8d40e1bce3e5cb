"""Ids of segments, the windows of a video, and which of them is right for a moment."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsr1_core import segments
from vsr1_core.datasets.verified import video_id_of

SECONDS = st.integers(1, 200_000).map(lambda ms: ms / 1000)
OVERLAPS = st.sampled_from((0.0, 0.1, 0.25, 1 / 3, 0.5))


def test_a_video_up_to_the_length_of_a_window_has_none() -> None:
    assert segments.windows_of(120.0, 120.0, 0.25) == []
    assert segments.windows_of(7200.0, 0.0, 0.25) == []
    assert segments.windows_of(120.5, 120.0, 0.25) == [(0.0, 120.0), (90.0, 120.5)]
    assert segments.windows_of(250.0, 120.0, 0.25) == [(0.0, 120.0), (90.0, 210.0), (180.0, 250.0)]


def test_a_video_of_impossible_length_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 10,000 windows of 120 s"):
        segments.windows_of(1e9, 120.0, 0.25)


@settings(deadline=None)
@given(SECONDS, st.integers(1, 60).map(float), OVERLAPS)
def test_windows_cover_the_video_in_order_and_overlap_as_asked(
    duration_s: float, window_s: float, overlap: float
) -> None:
    windows = segments.windows_of(duration_s, window_s, overlap)
    if duration_s <= window_s:
        assert windows == []
        return
    assert windows[0] == (0.0, window_s)
    assert duration_s <= windows[-1][1] < duration_s + 0.0011
    for (start_s, end_s), (next_s, _) in itertools.pairwise(windows):
        assert abs(end_s - start_s - window_s) < 0.002
        assert abs(end_s - next_s - window_s * overlap) < 0.002


@settings(deadline=None)
@given(SECONDS, st.integers(1, 60).map(float), OVERLAPS, st.data())
def test_each_moment_has_a_right_window(
    duration_s: float, window_s: float, overlap: float, data: st.DataObject
) -> None:
    """Also one of no length, one across a border, and one that is longer than a window."""
    start_s = data.draw(st.floats(0, duration_s))
    end_s = data.draw(st.floats(start_s, duration_s))
    windows = segments.windows_of(duration_s, window_s, overlap)
    ids = [segments.window_id("film", *window) for window in windows] or ["film"]
    best = segments.best_right(ids, "film", start_s, end_s)
    assert best is not None
    assert segments.touches(best, "film", start_s, end_s)
    assert segments.best_right(ids, "another", start_s, end_s) is None


@settings(deadline=None)
@given(
    st.text(st.characters(codec="utf-8"), min_size=1).map(video_id_of).filter(bool),
    st.integers(0, 10**9),
    st.integers(1, 10**6),
)
def test_the_id_of_a_window_says_its_video_and_span_and_no_video_has_it(video: str, start_ms: int, length: int) -> None:
    window = (start_ms / 1000, (start_ms + length) / 1000)
    segment_id = segments.window_id(video, *window)
    assert segments.video_of(segment_id) == video
    assert segments.window_of(segment_id) == window
    assert segments.window_of(video) is None
    assert segments.video_of(video) == video


@pytest.mark.parametrize("video", ["film@90-210", "58792004@N06_8544469262", "a/90-210", "90-210", "//90-210"])
def test_ids_of_videos_that_look_like_windows_are_whole_videos(video: str) -> None:
    assert segments.window_of(video) is None
    assert segments.video_of(segments.window_id(video, 0, 1.5)) == video


def test_what_a_window_shows() -> None:
    assert segments.window_id("film", 90.0, 210.25) == "film//90-210.25"
    assert segments.shown_span("film//90-210.25", 120.25) == (90.0, 210.25)
    assert segments.shown_span("film", 120.25) == (0.0, 120.25)
    assert segments.clipped("film//90-210", 80.0, 100.0) == (90.0, 100.0)
    assert segments.clipped("film", 80.0, 100.0) == (80.0, 100.0)
    assert segments.is_right("film//90-210", "film", 80.0, 100.0)
    assert not segments.is_right("film//90-210", "film", 75.0, 100.0)
    assert segments.touches("film//90-210", "film", 75.0, 100.0)
    assert segments.is_right("film//90-210", "film", 0.0, 150.0)
    assert not segments.is_right("film//90-210", "film", 0.0, 149.0)


def test_near_duplicates_are_dropped_from_a_ranking() -> None:
    ranked = ["film//90-210", "short", "film//0-120", "film//180-300", "film//270-390"]
    assert list(segments.best_of_each(ranked)) == [0, 1]
    assert list(segments.best_of_each(ranked, per_video=False)) == [0, 1, 4]
