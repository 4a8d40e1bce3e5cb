"""Files of the lake that no row points to any more: frames of videos that are gone, checkpoints of earlier versions.

Nothing removes them by itself: an earlier checkpoint is what a later one may have to be compared with.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vsr1_core.lake import Lake, read_json
from vsr1_core.stages.base import Stage

MIN_AGE_S = 86_400.0
"""Younger files may belong to a build in progress, whose rows are not there yet."""


@dataclass(frozen=True)
class UnusedFile:
    """A file, or a folder of a model. age_s: since its newest file was written."""

    asset: str
    dataset: str
    path: Path
    num_bytes: int
    age_s: float

    def delete(self) -> None:
        if self.path.is_dir():
            shutil.rmtree(self.path)
        else:
            self.path.unlink(missing_ok=True)


def unused_files(lake: Lake, stages: Mapping[str, Stage], min_age_s: float = MIN_AGE_S) -> Iterator[UnusedFile]:
    """What stages name for a row (`Stage.row_files`) and no row of any dataset points to, at least `min_age_s` old."""
    for stage in stages.values():
        folder = lake.files_of_all(stage.name)
        if not stage.row_files or not folder.exists():
            continue
        used = set(_used(lake, stage))
        for path in sorted(folder.glob(f"*/{stage.row_files}")):
            dataset = path.parent.name
            if (dataset, path.name) not in used:
                found = _measure(stage.name, dataset, path)
                if found.age_s >= min_age_s:
                    yield found


def _used(lake: Lake, stage: Stage) -> Iterator[tuple[str, str]]:
    """(dataset, name) of the files that rows point to: a dataset's rows may point to another one's models. The rest of
    a path is left out, as homes are moved."""
    for dataset in lake.datasets(stage.name):
        table = lake.table(stage.name, dataset, stage.key, stage.columns)
        for path in [*table.rows(["path"])["path"], *table.pending()["path"]]:
            if path:
                yield Path(path).parent.name, Path(path).name
    for record in lake.files_of_all(stage.name).glob("*/adopted.json"):
        yield record.parent.name, Path(read_json(record)["path"]).name


def _measure(asset: str, dataset: str, path: Path) -> UnusedFile:
    files = [p for p in (path, *path.rglob("*")) if p.is_file()]
    stats = [p.stat() for p in files] or [path.stat()]
    newest = max(stat.st_mtime for stat in stats)
    return UnusedFile(asset, dataset, path, sum(stat.st_size for stat in stats), time.time() - newest)
