"""The files of any dataset, whatever its kind: annotation files, moments, videos. Stages ask here and nowhere else.

Cheap enough for a plan: files are listed and annotations parsed, but no video is opened. What differs between the kinds
is `datasets.formats`' matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vsr1_core.datasets import verified
from vsr1_core.datasets.format import AnnotationFile, DatasetFormat, MadeVideo
from vsr1_core.datasets.formats import get_format
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.datasets.verified import BadLine, Moment
from vsr1_core.recipes import Configuration


def format_of(entry: DatasetEntry) -> DatasetFormat:
    """The format of the entry's kind. ValueError lists the kinds."""
    return get_format(entry.kind)


def annotation_files(entry: DatasetEntry, config: Configuration) -> dict[str, AnnotationFile]:
    """file_id -> file. `split` is empty where the file's rows say it themselves. FileNotFoundError: no file at all."""
    return format_of(entry).annotation_files(entry, config)


def moments(entry: DatasetEntry, config: Configuration) -> dict[str, Moment | BadLine]:
    """query_id -> moment, or `<file>:<line>` -> why that line is none."""
    return verified.without_duplicates(format_of(entry).lines(entry, config))


def place_of(entry: DatasetEntry, config: Configuration, query_id: str) -> str | None:
    """`<file>:<line>` that a moment or a refused line was read from; None where there is none (any more)."""
    lines = format_of(entry).lines(entry, config)
    return next((place for place, row in lines if query_id in (row.query_id, place)), None)


def corpus_splits(entry: DatasetEntry, config: Configuration) -> dict[str, list[str]]:
    """video_id -> the splits whose corpus it belongs to: those in which it is annotated, and a made video's own."""
    splits = {video_id: {split} for video_id, split in format_of(entry).splits_of_videos(entry, config).items()}
    for moment in moments(entry, config).values():
        if isinstance(moment, Moment):
            splits.setdefault(moment.video_id, set()).add(moment.split)
    return {video_id: sorted(names) for video_id, names in splits.items()}


def unannotated_splits(entry: DatasetEntry) -> list[str]:
    """The splits of a video on disk that no annotation names; none: it does not belong to the corpus."""
    return list(format_of(entry).unannotated_splits)


def video_files(entry: DatasetEntry) -> dict[str, list[Path]]:
    """video_id -> its files on disk (several where files clash). Empty where videos are made, not found."""
    return format_of(entry).video_files(entry)


def made_videos(entry: DatasetEntry, config: Configuration) -> Mapping[str, MadeVideo] | None:
    """video_id -> the video that is made for it; None where videos are found."""
    return format_of(entry).made_videos(entry, config)


def file_facts(entry: DatasetEntry) -> list[tuple[str, int, int]]:
    """(path, bytes, mtime_ns) of the files that the dataset reads; made videos are none. Missing folders are empty."""
    root = Path(entry.annotations).absolute()
    in_folder = sorted(root.iterdir()) if entry.annotations and root.is_dir() else []
    annotated = [path for path in [root, *in_folder] if path.is_file()]
    try:
        videos = [path for paths in video_files(entry).values() for path in paths]
    except FileNotFoundError:
        videos = []
    return [(str(p), (stat := p.stat()).st_size, stat.st_mtime_ns) for p in [*annotated, *videos]]


def missing_video_error(entry: DatasetEntry, video_id: str) -> str:
    return (
        f"no video file for {video_id!r}: put {video_id}.mp4 (or .mkv, .avi, .mov, .webm, ...) into "
        f"{Path(entry.videos).absolute()} and build again; what else is missing: vsr1 dataset check {entry.name}"
    )
