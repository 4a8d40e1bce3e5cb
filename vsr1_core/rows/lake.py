"""The paths of everything in the lake of a home. `rows.table` describes what the folder of a table contains."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vsr1_core.rows.files import check_name, sweep_leftovers
from vsr1_core.rows.lease import Lease, hold
from vsr1_core.rows.places import Places
from vsr1_core.rows.table import Table

SHARED_AGE_S = 86_400.0
"""Seconds. A younger temporary file in a folder that all datasets share may be one that is being written."""


@dataclass(frozen=True)
class Lake:
    """The lake below `root`. Every method returns a path, or an object at a path, and creates nothing.

    lease: of the dataset whose tables are written; None where nothing is, or where there can be no other writer.
    """

    root: Path
    lease: Lease | None = None

    @property
    def places(self) -> Places:
        """The paths that are kept in this lake, whose folder is in that of its home."""
        return Places(self.root.absolute().parent)

    def table(self, asset: str, dataset: str, key: str, columns: Mapping[str, Any]) -> Table:
        """The table of an asset for one dataset. `key` is the name of its id column; `columns` maps name -> polars
        type."""
        folder = self._tables(asset) / f"dataset={check_name(dataset)}"
        return Table(folder, asset, dataset, key, columns, self.places, self.lease)

    def _tables(self, asset: str) -> Path:
        return self.root / "tables" / check_name(asset, "asset")

    def datasets(self, asset: str) -> list[str]:
        """The datasets that have a table of `asset`, registered or not."""
        return sorted(folder.name.partition("=")[2] for folder in self._tables(asset).glob("dataset=*"))

    def fenced(self) -> AbstractContextManager[None]:
        """For the block, nobody can take the lease over (`Lease.fenced`)."""
        return contextlib.nullcontext() if self.lease is None else self.lease.fenced()

    def lease_folder(self, dataset: str) -> Path:
        """The folder of the lease of a dataset (`rows.lease.hold`)."""
        return self.root / "leases" / check_name(dataset)

    def folders_of(self, dataset: str) -> Iterator[Path]:
        """The folders that only runs which hold the lease of `dataset` write into."""
        name = check_name(dataset)
        own = (f"tables/*/dataset={name}", f"history/*/dataset={name}", f"files/*/{name}", f"imported/{name}")
        for pattern in (*own, f"cache/plans/{name}", f"cache/annotations/{name}"):
            yield from self.root.glob(pattern)

    def _shared_folders(self) -> Iterator[tuple[Path, bool]]:
        """The folders that runs of all datasets write into, and whether those below are written so as well. The cache
        of vision features keeps its own bounds."""
        home = self.root.parent
        yield from ((home, False), (home / "datasets", False), (self.root / "schemas", True))
        yield from ((self.root / "handles", True), (self.cache("digests"), True), (self.cache("pictures"), True))

    @contextlib.contextmanager
    def written(
        self,
        dataset: str,
        what: str,
        run: str = "",
        *,
        also: Sequence[int] = (),
        wait: bool = False,
        log: Callable[[str], None] = lambda line: None,
    ) -> Iterator[Lake]:
        """This lake, for the block with the lease of `dataset`. The other arguments are those of `rows.lease.hold`.

        What killed runs left half written is deleted when the lease is taken; where other datasets are written too,
        only what is a day old.

        Raises:
            LeaseHeld: Something else writes the dataset; the message says what.
        """
        with hold(self.lease_folder(dataset), what, run, also=also, wait=wait, log=log) as lease:
            if lease.is_new:
                for folder in self.folders_of(dataset):
                    sweep_leftovers(folder)
                for folder, is_deep in self._shared_folders():
                    sweep_leftovers(folder, SHARED_AGE_S, is_deep)
            yield replace(self, lease=lease)

    def history(self, asset: str) -> Path:
        """The folder for the kept states of a small table; each dataset has its own `dataset=<name>/` below it."""
        return self.root / "history" / check_name(asset, "asset")

    def files(self, asset: str, dataset: str) -> Path:
        """The folder for an asset's files that are not rows (frames, indexes, checkpoints)."""
        return self.files_of_all(asset) / check_name(dataset)

    def files_of_all(self, asset: str) -> Path:
        """The folder that contains the `files` folders of all datasets."""
        return self.root / "files" / check_name(asset, "asset")

    def cache(self, what: str) -> Path:
        """A folder for data that can be computed again at any time. All datasets and stages share it, and it is safe to
        delete."""
        return self.root / "cache" / check_name(what, "cache")

    def imported(self, dataset: str) -> Path:
        """The folder for data that was imported instead of computed (`vsr1_core.home.prepared`)."""
        return self.root / "imported" / check_name(dataset)
