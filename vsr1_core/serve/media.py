"""Pictures and playable files of a dataset's videos. Videos are asked for by id; paths come from the tables alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from vsr1_core.media.convert import convert_for_browsers, plays_in_browsers
from vsr1_core.rows.files import file_stem
from vsr1_core.rows.versions import fingerprint
from vsr1_core.rows.workers import map_in_processes
from vsr1_core.segments import video_of
from vsr1_core.stages.base import View

MEDIA_TYPES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".webm": "video/webm", ".mov": "video/quicktime"}
THUMBNAIL_HEIGHT = 90


@dataclass(frozen=True)
class VideoFacts:
    """What the player has to know of a video.

    duration_s, start_s: from the tables, never from a header that the probe refused. start_s: what the file's own clock
    shows at the first frame, from which all our times count. frames_s: times of the stored frames, which thumbnails
    show. plays: whether browsers play the file as it is; otherwise it is converted when it is asked for.
    """

    video_id: str
    duration_s: float | None
    start_s: float
    width: int | None
    height: int | None
    codec: str | None
    has_file: bool
    plays: bool
    frames_s: list[float]


@dataclass(frozen=True)
class Playable:
    """A file that a browser plays, and its media type."""

    path: Path
    media_type: str


@dataclass(frozen=True)
class Conversion:
    """A video's file, and where its converted copy is or is to be."""

    source: Path
    target: Path


def facts_of(view: View, video_id: str) -> VideoFacts:
    """LookupError: the dataset has no such video."""
    video, frames = _row(view, "videos", video_id), _frames(view, video_id)
    if video is None and not frames:
        raise LookupError(f"dataset {view.entry.name!r} has no usable video {video_id!r}")
    known = {
        **(frames[0].row if frames else {}),
        **{name: value for name, value in (video or {}).items() if value is not None},
    }
    path = Path(str((video or {}).get("path") or ""))
    return VideoFacts(
        video_id=video_id,
        duration_s=known.get("duration_s"),
        start_s=known.get("start_s") or 0.0,
        width=known.get("width"),
        height=known.get("height"),
        codec=(video or {}).get("codec"),
        has_file=path.is_file(),
        plays=plays_in_browsers(path, (video or {}).get("codec")),
        frames_s=[frame.time_s for frame in frames],
    )


def thumbnail(view: View, video_id: str, number: int) -> bytes:
    """A stored frame as a small JPEG. LookupError: there is no such video or frame."""
    from vsr1_core.media.encode import jpeg_bytes
    from vsr1_core.media.frame_store import read_frames, resized

    frames = _frames(view, video_id)
    if not frames:
        raise LookupError(f"dataset {view.entry.name!r} has no frames of the video {video_id!r}")
    if not 0 <= number < len(frames):
        raise LookupError(
            f"the video {video_id!r} has {len(frames)} frames, counted from 0; there is no frame {number}"
        )
    row, place = frames[number].row, frames[number].place
    width = max(1, round(row["width"] * THUMBNAIL_HEIGHT / row["height"]))
    return jpeg_bytes(resized(read_frames(row["path"], [place]), THUMBNAIL_HEIGHT, width)[0])


@dataclass(frozen=True)
class _Frame:
    """A stored frame: its time in the video, the row of `frame_tensors` that has it, and its place there."""

    time_s: float
    row: dict[str, Any]
    place: int


def _frames(view: View, video_id: str) -> list[_Frame]:
    """The stored frames of a video in the order of time; those that several of its windows share, once."""
    segments = view.rows("frame_tensors").filter(pl.col("video_id").str.starts_with(video_id))
    rows = (row for row in segments.iter_rows(named=True) if video_of(row["video_id"]) == video_id)
    frames = (_Frame(time_s, row, place) for row in rows for place, time_s in enumerate(row["timestamps_s"] or ()))
    if video_id in segments["video_id"]:  # a whole video: its frames are numbered as they are stored
        return list(frames)
    return list({frame.time_s: frame for frame in sorted(frames, key=lambda frame: frame.time_s)}.values())


def original(view: View, video_id: str) -> Playable:
    """The video's own file. LookupError: there is none."""
    row = _row(view, "videos", video_id)
    path = Path(str((row or {}).get("path") or ""))
    if not path.is_file():
        raise LookupError(f"the file of the video {video_id!r} is not there")
    return Playable(path, MEDIA_TYPES.get(path.suffix.lower(), "application/octet-stream"))


def _row(view: View, asset: str, video_id: str) -> dict[str, Any] | None:
    rows = view.rows(asset).filter(pl.col("video_id") == video_id)
    return rows.row(0, named=True) if rows.height else None


class Conversions:
    """Converted videos in a folder of bounded size; what was used longest ago goes first.

    One video is converted at a time, in a process of its own that is killed after `deadline_s`: decoders crash and hang
    on bad files.
    """

    def __init__(
        self, folder: Path, max_bytes: int, deadline_s: float, convert: Callable[[Path, Path], None] | None = None
    ) -> None:
        self.folder, self.max_bytes, self.deadline_s = folder, max_bytes, deadline_s
        self._convert = convert or partial(_in_a_process, deadline_s=deadline_s)
        self._one_at_a_time = threading.Lock()

    def wanted(self, view: View, video_id: str) -> Conversion:
        """What has to be there for the video to be played. LookupError: the video has no file."""
        source = original(view, video_id).path
        stamp = source.stat()
        version = fingerprint([str(source), stamp.st_size, stamp.st_mtime_ns])
        return Conversion(source, self.folder / f"{file_stem(video_id)}-{version}.mp4")

    def made(self, wanted: Conversion) -> Playable | None:
        """The converted video, made now where it is not there. None while another one is being converted: a request
        that waited here would hold one of the server's threads. ValueError: it cannot be converted."""
        if not _is_used(wanted.target):  # what is there does not wait for another video's conversion
            if not self._one_at_a_time.acquire(blocking=False):
                return None
            try:
                if not _is_used(wanted.target):
                    self.folder.mkdir(parents=True, exist_ok=True)
                    self._convert(wanted.source, wanted.target)
                    self._keep_bound(wanted.target)
            finally:
                self._one_at_a_time.release()
        return Playable(wanted.target, "video/mp4")

    def _keep_bound(self, newest: Path) -> None:
        others = [path for path in self.folder.glob("*.mp4") if path != newest]  # its time may be that of another one
        used = newest.stat().st_size
        for path in sorted(others, key=lambda path: path.stat().st_mtime_ns, reverse=True):
            used += path.stat().st_size
            if used > self.max_bytes:
                path.unlink(missing_ok=True)


def _is_used(path: Path) -> bool:
    """Whether the file is there; its time then says that it was used now."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _in_a_process(source: Path, target: Path, deadline_s: float) -> None:
    result = next(iter(map_in_processes(_converted, [(source, target)], 1, deadline_s)))
    if result.error is not None:
        raise ValueError(f"the video cannot be converted: {result.error.replace(str(source.parent), '').lstrip('/')}")


def _converted(item: tuple[Path, Path]) -> bool:
    convert_for_browsers(*item)
    return True
