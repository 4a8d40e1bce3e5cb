"""The interface that each kind of dataset implements. The kinds are the modules in `datasets.formats`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.datasets.verified import BadLine, Moment
from vsr1_core.recipes import Configuration


@dataclass(frozen=True)
class AnnotationFile:
    """One annotation file.

    split: the split of all its rows; empty when each row says its own. content: the version of the file's content; None
    when the file is missing, and then `error` says what to put where. digest: the digest of the bytes that `content`
    stands for; empty when `content` stands for a recipe.
    """

    file_id: str
    path: Path
    split: str
    content: str | None
    error: str | None = None
    digest: str = ""


@dataclass(frozen=True)
class MadeVideo:
    """A video that is made and not found. content: the version of what decides its pixels, which is known before the
    file exists. task: the argument for `DatasetFormat.render`, which has to be picklable."""

    path: Path
    content: str
    task: Any


class DatasetFormat(ABC):
    """One kind of dataset. All methods except `render` have to be cheap: they list files and parse annotations, and
    they open no video."""

    kind: str
    """The name of the kind in a `DatasetEntry`."""
    says: str
    """One sentence that describes the kind to users."""
    unannotated_splits: tuple[str, ...] = ()
    """The splits to which a video on disk belongs when no annotation names it. If this is empty, such a video does not
    belong to the corpus."""

    @abstractmethod
    def annotation_files(self, entry: DatasetEntry, config: Configuration) -> dict[str, AnnotationFile]:
        """Map file_id -> annotation file. Raises FileNotFoundError when the dataset has none of its files."""

    @abstractmethod
    def lines(self, entry: DatasetEntry, config: Configuration) -> Iterator[tuple[str, Moment | BadLine]]:
        """Yield (`<file>:<line>`, moment or BadLine) for every line that is not blank."""

    def lines_of(self, file: AnnotationFile) -> Iterable[tuple[str, Moment | BadLine]] | None:
        """What `lines` says of a file that is there, parsed now, where the kind, the file's name, split and content
        decide all of it; None for a kind of which they do not."""
        return None

    @abstractmethod
    def video_files(self, entry: DatasetEntry) -> Mapping[str, list[Path]]:
        """Map video_id -> its files on disk; more than one if files clash. Empty for a kind whose videos are made."""

    def prepare(self, entry: DatasetEntry, config: Configuration) -> None:  # noqa: B027  # most find their files
        """Make the annotation files, for a kind whose annotations are made and not found."""

    def made_videos(self, entry: DatasetEntry, config: Configuration) -> Mapping[str, MadeVideo] | None:
        """Map video_id -> the video to make; None for a kind whose videos are found."""
        return None

    @staticmethod
    def render(task: Any) -> dict[str, Any]:
        """Make one video of `made_videos` and return its columns in `raw_videos`. `task` is that of its MadeVideo. This
        runs in a worker process."""
        raise NotImplementedError("the videos of this kind of dataset are found, not made")

    def splits_of_videos(self, entry: DatasetEntry, config: Configuration) -> Mapping[str, str]:
        """Map video_id -> the split to which the video belongs in addition to those in which it is annotated."""
        return {}
