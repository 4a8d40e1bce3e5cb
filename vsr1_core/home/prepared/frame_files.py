"""The arrays of frames of a prepared split, each with its line of meta.jsonl."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vsr1_core.datasets.verified import seconds
from vsr1_core.home.prepared.arrays import ArrayError, open_array
from vsr1_core.home.prepared.documents import Line, Problems, json_lines, some
from vsr1_core.rows.files import digest_file
from vsr1_core.rows.workers import map_rows


@dataclass(frozen=True)
class ImportedFrames:
    """The array of one video, and its line in meta.jsonl.

    shape: [T, H, W, 3]. times_s: true source time of each frame, in seconds.
    """

    video_id: str
    path: Path
    shape: tuple[int, ...]
    digest: str
    times_s: tuple[float, ...]
    duration_s: float
    fps: float
    num_source_frames: int | None


@dataclass(frozen=True)
class FrameFiles:
    """The frames of a split: video id -> array; the lines of meta.jsonl; video id -> why a video has no frames."""

    found: Mapping[str, ImportedFrames] = field(default_factory=dict)
    lines: Sequence[Line] = ()
    missing: Mapping[str, str] = field(default_factory=dict)


def read_frames_of(
    folder: Path, video_ids: Sequence[str], annotated: Collection[str], problems: Problems, workers: int
) -> FrameFiles:
    """Read the arrays in `folder` of the videos that have vectors, and of further annotated ones.

    A video without an array, or without a line in meta.jsonl, has no frames; that is no problem. A line of a second
    extraction stands in place of the first one.
    """
    path = folder / "meta.jsonl"
    metas, lines = _metas(path, problems)
    arrays = {p.stem for p in folder.glob("*.npy")} if folder.is_dir() else set()
    strange = sorted(arrays - set(video_ids) - set(annotated)) if video_ids else []
    if strange:
        problems.note(folder, f"{len(strange):,} arrays are of no known video, and are left out: {some(strange)}")
    wanted = [*video_ids, *sorted((arrays & set(annotated)) - set(video_ids))]
    missing = {}
    for video_id in wanted:
        if video_id not in arrays:
            missing[video_id] = f"the imported data have no frames of it: {folder / video_id}.npy is not there"
        elif video_id not in metas:
            missing[video_id] = f"the times of its imported frames are not known: {path} has no line for it"
    if wanted and len(missing) == len(wanted):
        problems.add(path, "has a line, and the folder an array, of none of the videos")
    elif missing:
        reason = "lack an array or a line in meta.jsonl; each is a failed row, unless its file is on disk"
        problems.note(folder, f"{len(missing):,} videos {reason}: {some(sorted(missing))}")
    tasks = [folder / f"{video_id}.npy" for video_id in wanted if video_id not in missing]
    return FrameFiles(_examined(tasks, metas, problems, workers), lines, missing)


def _metas(path: Path, problems: Problems) -> tuple[dict[str, dict[str, Any]], list[Line]]:
    """(video id -> its last line that says what was sampled, all lines)."""
    lines: list[Line] = []
    metas: dict[str, dict[str, Any]] = {}
    last: dict[str, int] = {}
    for _, fields in json_lines(path, problems):
        video_id = str(fields.get("video_id"))
        is_skip = str(fields.get("status", "")).startswith("skip")  # the line of a second run that changed nothing
        if not is_skip:
            metas[video_id], last[video_id] = fields, len(lines)
        lines.append(Line(video_id, json.dumps(fields, ensure_ascii=False), False))
    held = set(last.values())
    return metas, [Line(line.row_id, line.record, number in held) for number, line in enumerate(lines)]


def _examined(
    tasks: Sequence[Path], metas: Mapping[str, Mapping[str, Any]], problems: Problems, workers: int
) -> dict[str, ImportedFrames]:
    found = {}
    for result in map_rows(examine_frames, tasks, workers):
        try:
            if result.value is None:
                raise ArrayError(str(result.error))
            found[result.item.stem] = _with_meta(result.item, *result.value, metas[result.item.stem])
        except ValueError as error:
            problems.add(result.item, str(error))
    return found


def examine_frames(path: Path) -> tuple[tuple[int, ...], str]:
    """(shape, digest) of one array of frames. ArrayError where the file is no such array."""
    shape = open_array(path, np.uint8, 4).shape
    if shape[-1] != 3:
        raise ArrayError(f"must have shape [T, H, W, 3], has {list(shape)}")
    return shape, digest_file(path)


def _with_meta(path: Path, shape: tuple[int, ...], digest: str, meta: Mapping[str, Any]) -> ImportedFrames:
    """The array with its line of meta.jsonl. ValueError where the two disagree, or a value is unusable."""
    said = tuple(meta.get(f"output_{name}") for name in ("num_frames", "height", "width"))
    if said != shape[:3]:
        raise ValueError(f"has shape {list(shape)}, meta.jsonl says {list(said)} for frames, height and width")
    times = meta.get("sampled_timestamps_sec")
    if not isinstance(times, list) or len(times) != shape[0]:
        raise ValueError(f"has {shape[0]} frames, meta.jsonl gives {_count(times)} times (sampled_timestamps_sec)")
    times_s = tuple(seconds(t, "sampled_timestamps_sec") for t in times)
    if times_s[0] < 0 or any(a > b for a, b in itertools.pairwise(times_s)):
        raise ValueError("its times in meta.jsonl (sampled_timestamps_sec) are negative or not in order")
    duration_s, fps = (
        seconds(meta.get("source_duration_sec"), "source_duration_sec"),
        seconds(meta.get("raw_fps"), "raw_fps"),
    )
    if duration_s <= 0 or fps <= 0:
        raise ValueError(f"meta.jsonl says {duration_s:g} s at {fps:g} frames per second; both must be above 0")
    total = meta.get("source_total_frames")
    return ImportedFrames(
        path.stem, path, shape, digest, times_s, duration_s, fps, total if isinstance(total, int) else None
    )


def _count(value: Any) -> str:
    return str(len(value)) if isinstance(value, list) else "no"
