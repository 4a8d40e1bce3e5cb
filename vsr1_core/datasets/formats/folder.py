"""The format of a user's own videos: a folder of files, with or without an annotation file. `datasets.folder` reads
both."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

from vsr1_core.datasets import folder
from vsr1_core.datasets.format import AnnotationFile, DatasetFormat
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.datasets.verified import BadLine, Moment
from vsr1_core.recipes import Configuration
from vsr1_core.rows.files import digest_file


class FolderFormat(DatasetFormat):
    """All videos below a folder. Videos that no annotation names can be searched as well."""

    kind = "folder"
    says = "A folder of your own videos, with or without an annotation file (CSV or JSONL)."
    unannotated_splits = ("test",)

    def annotation_files(self, entry: DatasetEntry, config: Configuration) -> dict[str, AnnotationFile]:
        if not entry.annotations:
            return {}
        path = Path(entry.annotations).absolute()
        if not path.is_file():
            raise FileNotFoundError(f"the annotation file of dataset {entry.name!r} is not there: {path}")
        digest = digest_file(path)
        return {path.name: AnnotationFile(path.name, path, "", digest, digest=digest)}

    def lines(self, entry: DatasetEntry, config: Configuration) -> Iterator[tuple[str, Moment | BadLine]]:
        for file in self.annotation_files(entry, config).values():
            yield from _parsed(file.path, file.digest)

    def lines_of(self, file: AnnotationFile) -> Iterator[tuple[str, Moment | BadLine]]:
        return folder.read_annotations(file.path)

    def video_files(self, entry: DatasetEntry) -> Mapping[str, list[Path]]:
        return folder.find_videos(Path(entry.videos).absolute())


@functools.lru_cache(maxsize=8)
def _parsed(path: Path, digest: str) -> tuple[tuple[str, Moment | BadLine], ...]:
    """The file's (place, row) pairs, cached by the digest of its content for the reason given in
    `verified.parsed_fig`."""
    return tuple(folder.read_annotations(path))


FORMAT = FolderFormat()
