"""The files of a dataset of any kind: annotation files, moments, videos. Stages use only this module to find them.

These functions are cheap enough for a plan: they list files and parse annotations, but they open no video. The modules
in `datasets.formats` implement what differs between the kinds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from vsr1_core.datasets import verified
from vsr1_core.datasets.format import AnnotationFile, DatasetFormat, MadeVideo
from vsr1_core.datasets.formats import get_format
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.datasets.verified import BadLine, Moment
from vsr1_core.recipes import Configuration
from vsr1_core.rows.blocks import blocks
from vsr1_core.rows.versions import fingerprint, fingerprint_of_all


def format_of(entry: DatasetEntry) -> DatasetFormat:
    """The format of the entry's kind. Raises ValueError, which lists the kinds, when the kind is unknown."""
    return get_format(entry.kind)


def annotation_files(entry: DatasetEntry, config: Configuration) -> dict[str, AnnotationFile]:
    """Map file_id -> annotation file. Raises FileNotFoundError when the dataset should have annotation files and has
    none of them."""
    return format_of(entry).annotation_files(entry, config)


def moments(entry: DatasetEntry, config: Configuration) -> dict[str, Moment | BadLine]:
    """Map query_id -> moment; for a line that is not a valid moment, map `<file>:<line>` -> the reason."""
    return verified.without_duplicates(format_of(entry).lines(entry, config))


def place_of(
    entry: DatasetEntry, config: Configuration, query_id: str, moment: Moment | BadLine | None = None
) -> str | None:
    """The `<file>:<line>` from which a moment or a refused line was read; None when there is no such line (any more).
    `moment`: what is annotated there, for a row that kept the id of an earlier text."""
    same = None
    for place, row in format_of(entry).lines(entry, config):
        if query_id in (row.query_id, place):
            return place
        if isinstance(moment, Moment) and replace(row, query_id=query_id) == moment:
            same = same or place
    return same


def corpus_splits(
    entry: DatasetEntry, config: Configuration, annotated: Iterable[tuple[str, str]] | None = None
) -> dict[str, list[str]]:
    """Map video_id -> the sorted splits to whose corpus the video belongs: the splits in which it is annotated and, for
    a made video, the split that it was made for. annotated: (video_id, split) of all moments, where it is known."""
    splits = {video_id: {split} for video_id, split in format_of(entry).splits_of_videos(entry, config).items()}
    if annotated is None:
        said = moments(entry, config).values()
        annotated = [(moment.video_id, moment.split) for moment in said if isinstance(moment, Moment)]
    for video_id, split in annotated:
        splits.setdefault(video_id, set()).add(split)
    return {video_id: sorted(names) for video_id, names in splits.items()}


def has_own_splits(entry: DatasetEntry, config: Configuration) -> bool:
    """Whether videos belong to splits besides those in which they are annotated."""
    return bool(format_of(entry).splits_of_videos(entry, config))


def unannotated_splits(entry: DatasetEntry) -> list[str]:
    """The splits to which a video on disk belongs when no annotation names it. If the list is empty, such a video does
    not belong to the corpus."""
    return list(format_of(entry).unannotated_splits)


def video_files(entry: DatasetEntry) -> Mapping[str, list[Path]]:
    """Map video_id -> its files on disk; more than one if files clash. Empty for a kind whose videos are made and not
    found."""
    return format_of(entry).video_files(entry)


def made_videos(entry: DatasetEntry, config: Configuration) -> Mapping[str, MadeVideo] | None:
    """Map video_id -> the video to make; None for a kind whose videos are found."""
    return format_of(entry).made_videos(entry, config)


def files_version(entry: DatasetEntry) -> str:
    """A version of all files that the dataset reads, by path, size and time. Made videos are not among them, and a
    missing folder counts as empty."""
    return fingerprint([_annotations_version(entry), videos_version(entry)])


def videos_version(entry: DatasetEntry) -> str:
    """The same of its video files alone; empty where their folder is missing."""
    try:
        found = video_files(entry)
    except FileNotFoundError:
        return ""
    return _version_of(itertools.chain.from_iterable(found.values()))


def _annotations_version(entry: DatasetEntry) -> str:
    root = Path(entry.annotations).absolute()
    in_folder = sorted(root.iterdir()) if entry.annotations and root.is_dir() else []
    return _version_of(path for path in [root, *in_folder] if path.is_file())


def _version_of(paths: Iterable[Path]) -> str:
    """A version of files by path, size and time. Two paths are never spelled alike, whatever bytes are in them."""
    stats = ((ascii(str(path)), path.stat()) for path in paths)
    facts = ([name, stat.st_size, stat.st_mtime_ns] for name, stat in stats)
    return fingerprint_of_all(fingerprint(some) for some in blocks(facts, 256))


@dataclass(frozen=True)
class FileVersions:
    """Versions of the files of a dataset, each made when it is first asked for."""

    entry: DatasetEntry
    config: Configuration

    @cached_property
    def videos(self) -> str:
        """`videos_version`."""
        return videos_version(self.entry)

    @cached_property
    def all(self) -> str:
        """A version of the annotations by their content, and of all files by name, size and time."""
        contents = [[file_id, file.content] for file_id, file in annotation_files(self.entry, self.config).items()]
        return fingerprint([contents, _annotations_version(self.entry), self.videos])


def missing_video_error(entry: DatasetEntry, video_id: str) -> str:
    """The message for an annotated video without a file."""
    return (
        f"there is no video file for {video_id!r}: put {video_id}.mp4 (or .mkv, .avi, .mov, .webm, ...) into "
        f"{Path(entry.videos).absolute()} and build again; to list all missing files: vsr1 dataset check {entry.name}"
    )
