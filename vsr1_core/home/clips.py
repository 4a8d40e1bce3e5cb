"""Saves what a search found as files: the predicted span of each of the first videos, or the whole video."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vsr1_core.home.search_result import Found, Hit
from vsr1_core.media.video_limits import DEFAULT_LIMITS, VideoLimits
from vsr1_core.rows.files import atomic_path

MAX_NAME = 60


@dataclass(frozen=True)
class SavedClip:
    """What became of one hit.

    Attributes:
        hit: The hit.
        path: The file that was written; None where there is none.
        span: What it shows, in seconds from the video's start; None for a whole video.
        reason: Why there is no file; empty where there is one.
    """

    hit: Hit
    path: Path | None = None
    span: tuple[float, float] | None = None
    reason: str = ""


def save_clips(found: Found, folder: Path, number: int, limits: VideoLimits = DEFAULT_LIMITS) -> Iterator[SavedClip]:
    """Save the first `number` hits into `folder`, which is made where it is missing.

    A hit with a span, or a window of a long video, is cut out exactly, as an mp4; another video is copied as it is.
    A file that is there already is never written over: the new one gets a further number.

    Raises:
        WriteRefused: The disk is full, or may not be written.
    """
    for hit in found[:number]:
        source = Path(hit.path) if hit.path else None
        if source is None or not source.is_file():
            yield SavedClip(hit, reason=f"its file is not there ({source})" if source else "it has no file")
            continue
        try:
            yield _saved(hit, source, folder, limits)
        except ValueError as error:
            yield SavedClip(hit, reason=str(error))


def _saved(hit: Hit, source: Path, folder: Path, limits: VideoLimits) -> SavedClip:
    if hit.clip_s is None:
        target = _free(folder, clip_name(hit), source.suffix.lower())
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
        return SavedClip(hit, target)
    from vsr1_core.media.cut import cut_span

    target = _free(folder, clip_name(hit), ".mp4")
    return SavedClip(hit, target, cut_span(source, target, hit.clip_s, limits))


def clip_name(hit: Hit) -> str:
    """The name of a hit's file, without suffix: its rank, its video, and its span. It is never a path."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", hit.video).strip("_")[-MAX_NAME:] or "video"
    span = "" if hit.clip_s is None else f"_{hit.clip_s[0]:.1f}-{hit.clip_s[1]:.1f}s"
    return f"{hit.rank:02d}_{readable}{span}"


def _free(folder: Path, name: str, suffix: str) -> Path:
    """A path in `folder` that no file has."""
    path, number = folder / f"{name}{suffix}", 1
    while path.exists() or path.is_symlink():
        number += 1
        path = folder / f"{name}_{number}{suffix}"
    return path
