"""The files of any dataset, whatever its kind: annotation files, moments, videos. Stages ask here and nowhere else.

Cheap enough for a plan: files are listed and annotations parsed, but no video is opened.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vsr1_core.datasets import folder, toy, toy_files, verified
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.datasets.verified import BadLine, Moment
from vsr1_core.recipes import Configuration
from vsr1_core.rows.files import digest_file


@dataclass(frozen=True)
class AnnotationFile:
    """content: its version; None where the file is missing, and `error` says what to put where. digest: of the bytes
    that `content` stands for; empty where it stands for a recipe."""

    file_id: str
    path: Path
    split: str
    content: str | None
    error: str | None = None
    digest: str = ""


def annotation_files(entry: DatasetEntry, config: Configuration) -> dict[str, AnnotationFile]:
    """file_id -> file. `split` is empty where the file's rows say it themselves. FileNotFoundError: no file at all."""
    root = Path(entry.annotations).absolute()
    if entry.kind == "toy":
        return {
            path.name: AnnotationFile(path.name, path, split, toy_files.annotation_content(root, config.toy, split))
            for split in toy.SPLITS
            for path in [toy_files.annotation_path(root, split)]
        }
    if entry.kind == "verified":
        return {p.name: _verified_file(p, split) for p, split in verified.annotation_paths(entry.name, root).items()}
    if not entry.annotations:
        return {}
    if not root.is_file():
        raise FileNotFoundError(f"dataset {entry.name!r} has its annotations in {root}, which is not there")
    digest = digest_file(root)
    return {root.name: AnnotationFile(root.name, root, "", digest, digest=digest)}


def _verified_file(path: Path, split: str) -> AnnotationFile:
    if path.is_file():
        digest = digest_file(path)
        return AnnotationFile(path.name, path, split, digest, digest=digest)
    return AnnotationFile(path.name, path, split, None, verified.missing_file_error(path))


def moments(entry: DatasetEntry, config: Configuration) -> dict[str, Moment | BadLine]:
    """query_id -> moment, or `<file>:<line>` -> why that line is none."""
    return verified.without_duplicates(_lines(entry, config))


def _lines(entry: DatasetEntry, config: Configuration) -> Iterator[tuple[str, Moment | BadLine]]:
    root = Path(entry.annotations).absolute()
    if entry.kind == "toy" and not toy_files.is_written(root, config.toy):
        for split, rows in toy.annotations(config.toy).items():  # as they will be written
            name = toy_files.annotation_path(root, split).name
            yield from ((f"{name}:{n}", verified.fig_moment(row, split)) for n, row in enumerate(rows, 1))
        return
    for file in annotation_files(entry, config).values():
        if file.error is None:
            yield from _parsed(entry.kind, file.path, file.split, digest_file(file.path))


@functools.lru_cache(maxsize=8)
def _parsed(kind: str, path: Path, split: str, digest: str) -> tuple[tuple[str, Moment | BadLine], ...]:
    """A file's (place, row) pairs. Kept by the digest of its content: a build asks for them several times, a watching
    process at every look, and parsing takes a hundred times as long as hashing.
    """
    return tuple(folder.read_annotations(path) if kind == "folder" else verified.read_fig(path, split))


def place_of(entry: DatasetEntry, config: Configuration, query_id: str) -> str | None:
    """`<file>:<line>` that a moment or a refused line was read from; None where there is none (any more)."""
    return next((place for place, row in _lines(entry, config) if query_id in (row.query_id, place)), None)


def corpus_splits(entry: DatasetEntry, config: Configuration) -> dict[str, list[str]]:
    """video_id -> the splits whose corpus it belongs to: those in which it is annotated, and a toy video's own."""
    splits: dict[str, set[str]] = {}
    if entry.kind == "toy":
        splits = {scene.video_id: {scene.split} for scene in toy.scenes(config.toy)}
    for moment in moments(entry, config).values():
        if isinstance(moment, Moment):
            splits.setdefault(moment.video_id, set()).add(moment.split)
    return {video_id: sorted(names) for video_id, names in splits.items()}


def unannotated_splits(entry: DatasetEntry) -> list[str]:
    """The splits of a video on disk that no annotation names; none: it does not belong to the corpus."""
    return ["test"] if entry.kind == "folder" else []


def video_files(entry: DatasetEntry) -> dict[str, list[Path]]:
    """video_id -> its files on disk (several where files clash). Not for toy, whose videos are made, not found."""
    root = Path(entry.videos).absolute()
    if entry.kind == "folder":
        return folder.find_videos(root)
    return folder.find_videos(root, by_name=True) if root.is_dir() else {}


def file_facts(entry: DatasetEntry) -> list[tuple[str, int, int]]:
    """(path, bytes, mtime_ns) of the files that the dataset reads; toy's videos are none. Missing folders are empty."""
    root = Path(entry.annotations).absolute()
    in_folder = sorted(root.iterdir()) if entry.annotations and root.is_dir() else []
    annotated = [path for path in [root, *in_folder] if path.is_file()]
    try:
        videos = [] if entry.kind == "toy" else [p for paths in video_files(entry).values() for p in paths]
    except FileNotFoundError:
        videos = []
    return [(str(p), (stat := p.stat()).st_size, stat.st_mtime_ns) for p in [*annotated, *videos]]


def toy_scenes(entry: DatasetEntry, config: Configuration) -> dict[str, tuple[toy.Scene, Path]]:
    """video_id -> (scene, the file it is rendered to)."""
    root = Path(entry.videos).absolute()
    return {scene.video_id: (scene, root / f"{scene.video_id}.mp4") for scene in toy.scenes(config.toy)}


def missing_video_error(entry: DatasetEntry, video_id: str) -> str:
    return (
        f"no video file for {video_id!r}: put {video_id}.mp4 (or .mkv, .avi, .mov, .webm, ...) into "
        f"{Path(entry.videos).absolute()} and build again; what else is missing: vsr1 dataset check {entry.name}"
    )
