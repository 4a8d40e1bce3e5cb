"""Files of the lake that no row points to any more: frames of videos that are gone, checkpoints of earlier versions.

Nothing removes them by itself: an earlier checkpoint is what a later one may have to be compared with.
"""

from __future__ import annotations

import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vsr1_core.rows.files import read_json
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.table import Table
from vsr1_core.stages.base import Stage

DAY_S = 86_400.0
MIN_AGE_S = DAY_S
"""Younger files may belong to a build in progress, whose rows are not there yet."""


@dataclass(frozen=True)
class UnusedFile:
    """A file, or a folder of a model. age_s: since its newest file was written."""

    path: Path
    num_bytes: int
    age_s: float

    @property
    def asset(self) -> str:
        return self.path.parent.parent.name

    @property
    def dataset(self) -> str:
        return self.path.parent.name

    def delete(self) -> bool:
        """Whether it was still there as it was listed, and is not any more."""
        now = _measure(self.path)
        if now is None or now.num_bytes != self.num_bytes or now.age_s < self.age_s:
            return False  # another build has written it anew
        if self.path.is_dir():
            shutil.rmtree(self.path)
        else:
            self.path.unlink()
        return True


def unused_files(lake: Lake, stages: Mapping[str, Stage], min_age_s: float = MIN_AGE_S) -> Iterator[UnusedFile]:
    """What stages name for a row (`Stage.row_files`) and no row of any dataset points to, at least `min_age_s` old."""
    filed = [stage for stage in stages.values() if stage.row_files]
    used = {Path(path).parts[-3:] for stage in filed for path in _used(lake, stage)}
    for stage in filed:
        for path in sorted(lake.files_of_all(stage.name).glob(f"*/{stage.row_files}")):
            if path.parts[-3:] not in used and not path.name.startswith("."):  # those are being written
                found = _measure(path)
                if found is not None and found.age_s >= min_age_s:
                    yield found


def _used(lake: Lake, stage: Stage) -> Iterator[str]:
    """The files that rows point to: a dataset may use another one's models, and stage 2's table a model of stage 1 that
    was adopted for it. Only asset, dataset and name of a path are compared, as homes are moved."""
    for dataset in lake.datasets(stage.name):
        table = lake.table(stage.name, dataset, stage.key, stage.dtypes)
        # In this order: a commit turns pending rows into rows.
        paths = [*_pending_paths(table), *table.rows(["path"])["path"]]
        yield from (path for path in paths if path)
    for record in lake.files_of_all(stage.name).glob("*/adopted.json"):
        yield read_json(record)["path"]


def _pending_paths(table: Table) -> list[str | None]:
    try:
        return table.pending()["path"].to_list()
    except FileNotFoundError:  # they have just been committed
        return []


def _measure(path: Path) -> UnusedFile | None:
    """None where it is gone."""
    try:
        stats = [p.stat() for p in (path, *path.rglob("*")) if p == path or p.is_file()]
    except FileNotFoundError:
        return None
    sizes = [s.st_size for s in stats if stat.S_ISREG(s.st_mode)]
    return UnusedFile(path, sum(sizes), time.time() - max(s.st_mtime for s in stats))
