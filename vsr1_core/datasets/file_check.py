"""Compares a dataset's annotations with its files on disk before anything is built: what is missing, extra or unusable.

The check reads the files and not the tables. It opens every video and decodes one frame of it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vsr1_core.datasets import folder, sources
from vsr1_core.datasets.benchmarks import BENCHMARKS, wrong_row_count
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.datasets.verified import Moment
from vsr1_core.media.video_limits import DEFAULT_LIMITS, VideoLimits
from vsr1_core.recipes import Configuration
from vsr1_core.rows.files import read_jsonl
from vsr1_core.rows.texts import visible
from vsr1_core.rows.workers import map_in_processes, map_rows

KINDS = {
    "wrong count": "an annotation file that is missing, or does not have the published number of rows",
    "bad row": "an annotation row that is not a valid moment",
    "strange id": "an annotated video id that does not look like the ids of this dataset",
    "missing": "an annotated video without a file",
    "bad name": "a video file whose name is not UTF-8",
    "clash": "a video id that several files have",
    "extra": "a video file that no annotation names",
    "undecodable": "a video file that cannot be read",
    "too short": "a span that begins beyond the end of its video's file",
}
"""Kind of finding -> what it means, in the order in which findings are reported."""


@dataclass(frozen=True)
class Finding:
    """One problem. kind: a key of KINDS. row_id: the id of a video or query, a file, or `<file>:<line>`. file: a path,
    or empty. detail: the message."""

    kind: str
    row_id: str
    file: str
    detail: str


@dataclass(frozen=True)
class Spans:
    """One video file and the spans of its annotated moments: (query_id, start_s, end_s), in seconds."""

    video_id: str
    path: Path
    moments: Sequence[tuple[str, float, float]]


def check_files(
    entry: DatasetEntry, config: Configuration, workers: int = 0, limits: VideoLimits = DEFAULT_LIMITS
) -> Iterator[Finding]:
    """Yield all findings; those that need no opened video come first. With `workers` of 0, videos are read in this
    process. Raises FileNotFoundError when the dataset has no annotation file at all."""
    yield from _annotation_findings(entry, config)
    spans: dict[str, list[tuple[str, float, float]]] = {}
    for row_id, moment in sources.moments(entry, config).items():
        if isinstance(moment, Moment):
            spans.setdefault(moment.video_id, []).append((row_id, moment.start_s, moment.end_s))
        else:
            yield Finding("bad row", row_id, row_id.rsplit(":", 1)[0], moment.reason)
    yield from _strange_ids(entry, spans)
    files = sources.video_files(entry)
    yield from _name_findings(entry, spans, files)
    named = {i: paths for i, paths in files.items() if folder.name_error(paths) is None}
    single = (Spans(i, paths[0], spans.get(i, ())) for i, paths in named.items() if len(paths) == 1)
    check = functools.partial(too_short, limits=limits, is_own_process=workers > 0)
    results = map_in_processes(check, single, workers, 300) if workers else map_rows(check, single, 1)
    for result in results:
        task = result.item
        if result.error is not None:
            yield Finding("undecodable", task.video_id, str(task.path), result.error)
        for query_id, detail in result.value or ():
            yield Finding("too short", query_id, str(task.path), detail)


def _annotation_findings(entry: DatasetEntry, config: Configuration) -> Iterator[Finding]:
    for file in sources.annotation_files(entry, config).values():
        if file.error is not None:
            yield Finding("wrong count", file.file_id, str(file.path), file.error)
        elif entry.corpus in BENCHMARKS:
            problem = wrong_row_count(file.file_id, sum(1 for _ in read_jsonl(file.path)))
            if problem:
                yield Finding("wrong count", file.file_id, str(file.path), problem)


def _strange_ids(entry: DatasetEntry, video_ids: Mapping[str, object]) -> Iterator[Finding]:
    benchmark = BENCHMARKS.get(entry.corpus)
    if benchmark is None:
        return
    for video_id in sorted(video_ids):
        if not benchmark.is_video_id(video_id):
            yield Finding("strange id", video_id, "", f"ids of {entry.name} look like {benchmark.id_example}")


def _name_findings(
    entry: DatasetEntry, annotated: Mapping[str, object], files: Mapping[str, list[Path]]
) -> Iterator[Finding]:
    for video_id in sorted(annotated):
        if video_id not in files:
            yield Finding("missing", video_id, "", f"no file {video_id}.* in {Path(entry.videos).absolute()}")
    for video_id, paths in files.items():
        problem = folder.name_error(paths)
        if problem:
            yield Finding("bad name", video_id, visible(str(paths[0])), problem)
        elif len(paths) > 1:
            yield Finding("clash", video_id, str(paths[0]), folder.clash_error(video_id, paths))
        elif video_id not in annotated and not sources.unannotated_splits(entry):
            yield Finding("extra", video_id, str(paths[0]), "no annotation names this video")


def too_short(task: Spans, limits: VideoLimits, is_own_process: bool) -> list[tuple[str, str]]:
    """Return (query_id, reason) for each moment that begins after the end of its video. Raises ValueError when the
    video cannot be decoded or breaks a limit."""
    from vsr1_core.media.probe import probe_caged

    end_s = probe_caged(task.path, limits, is_own_process).duration_s
    return [
        (query_id, f"[{start_s:g}, {last_s:g}] s begins after the file's end at {end_s:.2f} s")
        for query_id, start_s, last_s in task.moments
        if start_s >= end_s
    ]
