"""What is read of one video file for its rows: its facts, and its frames. Each function is called with a task, mostly
in a process of its own, which starts in half of the time without the tables that the stages import."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vsr1_core.media.frame_store import most_bytes, write_frames
from vsr1_core.media.sampling import RULES
from vsr1_core.media.video_limits import VideoLimits
from vsr1_core.recipes import FrameRecipe
from vsr1_core.rows.files import FileStamp
from vsr1_core.segments import window_of

if TYPE_CHECKING:
    from vsr1_core.media.container import VideoError
    from vsr1_core.media.decode import Frames

HALF_HOUR_S = 1800.0


def probe_video(task: tuple[str, Mapping[str, Any], VideoLimits, bool]) -> dict[str, Any]:
    """The facts of one video, as columns of its row."""
    from vsr1_core.media.probe import probe_caged

    _, known, limits, is_own_process = task
    found = dataclasses.asdict(probe_caged(Path(known["path"]), limits, is_own_process))
    FileStamp(known["path"], known["bytes"], known["mtime_ns"]).check()
    return found


def half_hours(targets: Mapping[str, str]) -> int:
    """How many half hours of a video are sampled in windows; 1 for a whole video, of which few frames are decoded."""
    last_s = max((window_of(segment_id) or (0.0, 0.0))[1] for segment_id in targets)
    return max(1, math.ceil(last_s / HALF_HOUR_S))


def sample_video(
    task: tuple[str, FileStamp, dict[str, str], FrameRecipe, VideoLimits, bool],
) -> dict[str, dict[str, Any]]:
    """Sample the segments of one video. Segment id -> columns of its row, or `error`."""
    from vsr1_core.media.cage import caged

    _, source, targets, recipe, limits, is_own_process = task
    if not is_own_process:
        return _sampled(source, targets, recipe, limits)
    limits = dataclasses.replace(limits, cpu_s=limits.cpu_s * half_hours(targets))
    with caged(Path(source.path).name, limits, _most_bytes(recipe)):
        return _sampled(source, targets, recipe, limits)


def _most_bytes(recipe: FrameRecipe) -> int:
    """The size of the largest file of frames that a recipe can give."""
    pixels = max(recipe.max_pixels, recipe.size_multiple**2, *(rule.max_pixels for rule in RULES.values()))
    return most_bytes(recipe, pixels)


def _sampled(
    source: FileStamp, targets: Mapping[str, str], recipe: FrameRecipe, limits: VideoLimits
) -> dict[str, dict[str, Any]]:
    from vsr1_core.media.decode import sample_frames, sample_windows

    path, made = Path(source.path), {}
    windows = {segment_id: window for segment_id in targets if (window := window_of(segment_id)) is not None}
    for segment_id in targets.keys() - windows:
        made[segment_id] = _stored(sample_frames(path, recipe, limits), recipe, Path(targets[segment_id]), source)
    if windows:
        ordered = sorted(windows, key=windows.__getitem__)
        sampled = sample_windows(path, recipe, [windows[segment_id] for segment_id in ordered], limits)
        for segment_id, frames in zip(ordered, sampled, strict=True):
            made[segment_id] = _stored(frames, recipe, Path(targets[segment_id]), source)
        source.check()
    return made


def _stored(frames: Frames | VideoError, recipe: FrameRecipe, target: Path, source: FileStamp) -> dict[str, Any]:
    """Write the frames of a segment, and return the columns of its row."""
    if isinstance(frames, ValueError):
        return {"error": str(frames)}
    source.check()
    write_frames(target, frames.pixels, recipe.jpeg_quality)
    return {
        "num_frames": len(frames.pixels),
        "height": frames.pixels.shape[1],
        "width": frames.pixels.shape[2],
        "timestamps_s": frames.timestamps_s.tolist(),
        "duration_s": frames.duration_s,
        "start_s": frames.start_s,
        "bytes": target.stat().st_size,
    }
