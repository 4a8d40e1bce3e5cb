"""Paths of everything in the lake of a home. `rows.table` says what the folder of a table holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsr1_core.rows.files import check_name
from vsr1_core.rows.table import Table


@dataclass(frozen=True)
class Lake:
    """Every path of the lake."""

    root: Path

    def table(self, asset: str, dataset: str, key: str, columns: Mapping[str, Any]) -> Table:
        folder = self._tables(asset) / f"dataset={check_name(dataset)}"
        return Table(folder, asset, dataset, key, columns)

    def _tables(self, asset: str) -> Path:
        return self.root / "tables" / check_name(asset, "asset")

    def datasets(self, asset: str) -> list[str]:
        """The datasets that have a table of `asset`, registered or not."""
        return sorted(folder.name.partition("=")[2] for folder in self._tables(asset).glob("dataset=*"))

    def history(self, asset: str) -> Path:
        """The folder for states of a small table that are kept, in `dataset=<name>/` each."""
        return self.root / "history" / check_name(asset, "asset")

    def files(self, asset: str, dataset: str) -> Path:
        """The folder for an asset's files that are not rows (frames, indexes, checkpoints)."""
        return self.files_of_all(asset) / check_name(dataset)

    def files_of_all(self, asset: str) -> Path:
        """The folder that has a folder of `files` for each dataset."""
        return self.root / "files" / check_name(asset, "asset")

    def cache(self, what: str) -> Path:
        """The folder for what can be made again at any time: shared by all datasets and stages, safe to delete."""
        return self.root / "cache" / check_name(what, "cache")

    def imported(self, dataset: str) -> Path:
        """The folder for what was brought from elsewhere instead of being computed (`vsr1_core.home.prepared`)."""
        return self.root / "imported" / check_name(dataset)
