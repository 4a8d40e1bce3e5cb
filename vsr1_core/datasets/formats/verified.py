"""The format VERIFIED FIG: a folder with `<name>_fig_<split>.jsonl`, and a folder in which videos are found by name.
`datasets.verified` parses the annotations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from vsr1_core.datasets import folder, verified
from vsr1_core.datasets.format import AnnotationFile, DatasetFormat
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.datasets.verified import BadLine, Moment
from vsr1_core.recipes import Configuration
from vsr1_core.rows.files import digest_file


class VerifiedFormat(DatasetFormat):
    """The three published datasets, and other datasets whose files follow the same names and schema."""

    kind = "verified"
    says = "VERIFIED FIG: one JSONL file per split, one video file per annotated id."

    def annotation_files(self, entry: DatasetEntry, config: Configuration) -> dict[str, AnnotationFile]:
        root = Path(entry.annotations).absolute()
        return {path.name: _file(path, split) for path, split in verified.annotation_paths(entry.corpus, root).items()}

    def lines(self, entry: DatasetEntry, config: Configuration) -> Iterator[tuple[str, Moment | BadLine]]:
        for file in self.annotation_files(entry, config).values():
            if file.error is None:
                yield from verified.parsed_fig(file.path, file.split, file.digest)

    def lines_of(self, file: AnnotationFile) -> Iterator[tuple[str, Moment | BadLine]]:
        return verified.read_fig(file.path, file.split)

    def video_files(self, entry: DatasetEntry) -> Mapping[str, list[Path]]:
        root = Path(entry.videos).absolute()
        return folder.find_videos(root, by_name=True) if root.is_dir() else {}


def _file(path: Path, split: str) -> AnnotationFile:
    if not path.is_file():
        return AnnotationFile(path.name, path, split, None, verified.missing_file_error(path))
    digest = digest_file(path)
    return AnnotationFile(path.name, path, split, digest, digest=digest)


FORMAT = VerifiedFormat()
