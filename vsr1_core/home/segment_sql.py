"""SQL text about segments for the views of `vsr1.duckdb`: which are right for a moment, and what their ids say."""

from __future__ import annotations

from vsr1_core.segments import LEAST_SHARE, WINDOW_PATTERN


def is_right(segment: str, of: str) -> str:
    """SQL of `segments.is_right` for the id `segment` and the moment in the columns `<of>gt_video_id`, ..."""
    video, first, last = (f"regexp_extract({segment}, '{WINDOW_PATTERN}', {group})" for group in (1, 2, 3))
    first, last = (f"try_cast({bound} AS DOUBLE)" for bound in (first, last))
    start, end = f"{of}gt_start_s", f"{of}gt_end_s"
    held = f"least({end}, {last}) - greatest({start}, {first})"
    enough = f"greatest(0, {LEAST_SHARE} * least({end} - {start}, {last} - {first}))"
    is_window = f"({video} = {of}gt_video_id AND {held} >= {enough})"
    return f"(coalesce({segment} = {of}gt_video_id, false) OR coalesce({is_window}, false))"


def segments_of(frames: str) -> str:
    """SQL of one row per segment, with its video and seconds. frames: SQL of the rows of `frame_tensors`."""
    video, first, last = (f"regexp_extract(video_id, '{WINDOW_PATTERN}', {group})" for group in (1, 2, 3))
    return f"""
        SELECT dataset, video_id AS segment_id, coalesce(nullif({video}, ''), video_id) AS video_id,
               coalesce(try_cast({first} AS DOUBLE), 0) AS start_s,
               coalesce(try_cast({last} AS DOUBLE), duration_s) AS end_s, splits, num_frames
        FROM {frames} WHERE status = 'ok'
    """
