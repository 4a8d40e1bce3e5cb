"""Read and check a whole prepared folder: its splits, its training files, and what they share. Writes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsr1_core.datasets.verified import Moment
from vsr1_core.home.prepared.documents import Problems
from vsr1_core.home.prepared.layout import PreparedSplit, read_split
from vsr1_core.home.prepared.training_files import TrainingFiles, TrainingPlaces, read_training_files


@dataclass(frozen=True)
class Prepared:
    """A prepared folder that passed all checks. notes: what is missing in it or left out of it."""

    root: Path
    splits: Mapping[str, PreparedSplit]
    training: TrainingFiles
    notes: Sequence[str] = ()

    @property
    def embedder(self) -> str:
        """The name of the model that made the vectors; empty where the folder does not say it."""
        return next((split.embedder for split in self.splits.values() if split.embedder), "")

    @property
    def corpus(self) -> dict[str, list[str]]:
        """Video id -> the splits to whose corpus it belongs although their annotations do not name it."""
        found: dict[str, list[str]] = {}
        for name, split in self.splits.items():
            for video_id in sorted(split.unannotated):
                found.setdefault(video_id, []).append(name)
        return found

    @property
    def moments(self) -> dict[str, Moment]:
        """Query id -> moment, of all splits; lines that are not valid moments are left out."""
        rows = (row for split in self.splits.values() for row in split.annotated.values())
        return {row.query_id: row.moment for row in rows if row.moment is not None}


def read_prepared(root: Path, splits: Sequence[str], places: TrainingPlaces, workers: int = 1) -> Prepared:
    """Read and check the splits of a folder, in `workers` processes. places: where its training files are.

    Raises:
        PreparedError: Something is wrong; the message names every problem.
    """
    problems = Problems(root)
    read = {split: read_split(root, split, problems, workers) for split in splits}
    whole = {name: split for name, split in read.items() if split is not None}
    training = TrainingFiles()
    if "train" in whole:
        training = read_training_files(places, whole["train"], problems)
    _check_across(whole.values(), problems)
    problems.raise_if_any()
    return Prepared(root, whole, training, problems.notes)


def _check_across(splits: Iterable[PreparedSplit], problems: Problems) -> None:
    """Report ids that two splits use differently: an id means the same in the whole dataset."""
    seen: dict[str, str] = {}
    arrays: dict[str, str] = {}
    sizes = set()
    for split in splits:
        sizes.add(split.video_vectors.shape[1])
        for query_id in split.annotated:
            if query_id in seen:
                problems.add(split.annotations, f"the id of {query_id} is also used in {seen[query_id]}")
            seen[query_id] = split.annotations.name
        for row, video_id in enumerate(split.video_ids):
            frames = split.frames.found.get(video_id)
            content = vector_digest(split.video_vectors[row]) + (frames.digest if frames else "")
            if frames and arrays.setdefault(video_id, content) != content:
                problems.add(frames.path, "frames or embedding differ from those in another split")
    if len(sizes) > 1:
        problems.add(problems.root, f"splits have embeddings of different sizes: {sorted(sizes)}")


def vector_digest(vector: NDArray[Any]) -> str:
    """Digest of a vector's bytes: 32 hexadecimal digits."""
    return hashlib.sha256(np.ascontiguousarray(vector).tobytes()).hexdigest()[:32]
