"""What a kind of dataset has to say of its files. The kinds themselves are modules of `datasets.formats`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.datasets.verified import BadLine, Moment
from vsr1_core.recipes import Configuration


@dataclass(frozen=True)
class AnnotationFile:
    """content: its version; None where the file is missing, and `error` says what to put where. digest: of the bytes
    that `content` stands for; empty where it stands for a recipe. split: empty where the file's rows say it."""

    file_id: str
    path: Path
    split: str
    content: str | None
    error: str | None = None
    digest: str = ""


@dataclass(frozen=True)
class MadeVideo:
    """A video that is made and not found. content: what decides its pixels, known before the file is there. task: what
    `DatasetFormat.render` gets, which has to be picklable."""

    path: Path
    content: str
    task: Any


class DatasetFormat(ABC):
    """One kind of dataset. Everything here has to be cheap: files are listed and annotations parsed, no video is
    opened."""

    kind: str
    """Its name in a `DatasetEntry`."""
    says: str
    """One sentence for people."""
    unannotated_splits: tuple[str, ...] = ()
    """The splits of a video on disk that no annotation names; none: it does not belong to the corpus."""

    @abstractmethod
    def annotation_files(self, entry: DatasetEntry, config: Configuration) -> dict[str, AnnotationFile]:
        """file_id -> file. FileNotFoundError where there is no file at all."""

    @abstractmethod
    def lines(self, entry: DatasetEntry, config: Configuration) -> Iterator[tuple[str, Moment | BadLine]]:
        """(`<file>:<line>`, the moment, or why that line is none) of every line that is not blank."""

    @abstractmethod
    def video_files(self, entry: DatasetEntry) -> dict[str, list[Path]]:
        """video_id -> its files on disk, several where files clash. Empty where videos are made."""

    def prepare(self, entry: DatasetEntry, config: Configuration) -> None:  # noqa: B027  # most find their files
        """Make the annotation files, where they are made and not found."""

    def made_videos(self, entry: DatasetEntry, config: Configuration) -> Mapping[str, MadeVideo] | None:
        """video_id -> the video that is made for it; None where videos are found."""
        return None

    @staticmethod
    def render(task: Any) -> dict[str, Any]:
        """Make one video of `made_videos` and return its columns of `raw_videos`. Runs in a worker process."""
        raise NotImplementedError("the videos of this kind of dataset are found, not made")

    def splits_of_videos(self, entry: DatasetEntry, config: Configuration) -> Mapping[str, str]:
        """video_id -> the split that it belongs to beside those in which it is annotated."""
        return {}
