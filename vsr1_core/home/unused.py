"""Files of the lake that no row points to any more: frames of deleted videos, and checkpoints of earlier versions.

They are never removed automatically, because a new checkpoint may have to be compared with an earlier one.
"""

from __future__ import annotations

import contextlib
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vsr1_core.rows.files import check_name, read_json
from vsr1_core.rows.known_digests import KnownDigests
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.table import Table
from vsr1_core.stages.base import Stage

DAY_S = 86_400.0
MIN_AGE_S = DAY_S
"""Seconds. Younger files may belong to a running build that has not committed its rows yet."""


@dataclass(frozen=True)
class UnusedFile:
    """A file, or the folder of a model. age_s: seconds since its newest file was written."""

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
        """Delete it. Returns False, and deletes nothing, where it is gone or has changed since it was listed."""
        now = _measure(self.path)
        if now is None or now.num_bytes != self.num_bytes or now.age_s < self.age_s:
            return False  # another build has written it anew
        _delete(self.path)
        return True


def delete_unused(
    lake: Lake,
    stages: Mapping[str, Stage],
    min_age_s: float = MIN_AGE_S,
    wait: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> tuple[list[UnusedFile], int]:
    """Delete the unused files of all datasets. Returns what was listed, and how many were deleted.

    Nothing writes these datasets meanwhile: a build could take a file into use again that was just listed.

    Raises:
        LeaseHeld: Something writes one of these datasets, and nothing was deleted.
    """
    datasets = sorted({file.dataset for file in unused_files(lake, stages, min_age_s)})
    with contextlib.ExitStack() as held:
        for dataset in datasets:
            held.enter_context(lake.written(dataset, "vsr1 prune", wait=wait, log=log))
        found = [file for file in unused_files(lake, stages, min_age_s) if file.dataset in datasets]
        return found, sum(file.delete() for file in found)


def unused_files(lake: Lake, stages: Mapping[str, Stage], min_age_s: float = MIN_AGE_S) -> Iterator[UnusedFile]:
    """Files of rows (`Stage.row_files`) that no row of any dataset points to, at least `min_age_s` seconds old."""
    filed = [stage for stage in stages.values() if stage.row_files]
    used = {Path(path).parts[-3:] for stage in filed for path in _used(lake, stage)}
    for stage in filed:
        for path in sorted(lake.files_of_all(stage.name).glob(f"*/{stage.row_files}")):
            if path.parts[-3:] not in used and not path.name.startswith("."):  # hidden files are being written
                found = _measure(path)
                if found is not None and found.age_s >= min_age_s:
                    yield found


def _used(lake: Lake, stage: Stage) -> Iterator[str]:
    """The paths that rows and adoption records point to. A dataset may use models of another one, and stage 2's table a
    model of stage 1 that was adopted for it. Callers compare only the last three parts, because homes are moved."""
    for dataset in lake.datasets(stage.name):
        table = lake.table(stage.name, dataset, stage.key, stage.dtypes)
        # In this order: a commit turns pending rows into rows.
        paths = [*_pending_paths(table), *table.rows(["path"])["path"]]
        yield from (path for path in paths if path)
    for record in lake.files_of_all(stage.name).glob("*/adopted.json"):
        yield read_json(record)["path"]


def users_of(lake: Lake, stages: Mapping[str, Stage], dataset: str) -> list[str]:
    """The other datasets whose rows point to files of `dataset`, such as the models that they borrow."""
    users = set()
    for stage in (stage for stage in stages.values() if stage.row_files):
        for other in set(lake.datasets(stage.name)) - {dataset}:
            table = lake.table(stage.name, other, stage.key, stage.dtypes)
            paths = [Path(path).parts[-3:-1] for path in table.rows(["path"])["path"] if path]
            users |= {other} if (stage.name, dataset) in paths else set()
    return sorted(users)


def delete_rows(lake: Lake, dataset: str) -> int:
    """Delete the tables of a dataset, their history, its files and its imports. Returns how many bytes that were.

    The caller holds the lease of the dataset.
    """
    folders = [*lake.folders_of(dataset), *lake.root.glob(f"handles/*/{check_name(dataset)}.json")]
    with lake.fenced():
        sizes = [found.num_bytes for path in folders if (found := _measure(path)) is not None]
        for path in folders:
            _delete(path)
    KnownDigests.of(lake, dataset).path.unlink(missing_ok=True)
    return sum(sizes)


def _delete(path: Path) -> None:
    """Delete a file or a folder; of a link, which may lead out of the home, the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _pending_paths(table: Table) -> list[str | None]:
    try:
        return table.pending()["path"].to_list()
    except FileNotFoundError:  # the pending rows have just been committed
        return []


def _measure(path: Path) -> UnusedFile | None:
    """Size and age of a file or folder; None where it is gone."""
    try:
        stats = [p.stat() for p in (path, *path.rglob("*")) if p == path or p.is_file()]
    except FileNotFoundError:
        return None
    sizes = [s.st_size for s in stats if stat.S_ISREG(s.st_mode)]
    return UnusedFile(path, sum(sizes), time.time() - max(s.st_mtime for s in stats))
