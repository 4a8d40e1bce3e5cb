"""What an import leaves in the lake: the imported rows, the documents that they came from, and their source.

Each import has one folder, `imported/<dataset>/<import id>/`, which is complete before `current.json` names it. A stage
uses an imported row instead of computing its own (`stages.base.Stage.planned_rows`) as long as the imported row's basis
is unchanged. `home.prepared.layout` reads the authors' folder, and `home.prepared.importing` writes this one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from vsr1_core.rows.files import atomic_path, read_json, write_json
from vsr1_core.rows.lake import Lake

IMPORTED_COLUMNS = {"digest": pl.String, "basis": pl.String}
DOCUMENT_COLUMNS = {"document": pl.String, "row_id": pl.String, "is_held": pl.Boolean, "record": pl.String}
ROWS_AT_ONCE = 256
FORM = 2
"""Version of the columns that imported rows have. It is 2 since the right video is called `gt_video_id`."""


@dataclass(frozen=True)
class ImportedRow:
    """One row that was imported instead of computed.

    digest: the digest of the imported content. basis: the inputs that the row depends on (name -> version); the row is
    valid as long as they are unchanged. known: the row's columns that are not lists or structs.
    """

    digest: str
    basis: Mapping[str, str]
    known: Mapping[str, Any]


@dataclass(frozen=True)
class Imported:
    """One import of one dataset. `record` says where the import came from, when it was made, and what it contains."""

    folder: Path

    @cached_property
    def record(self) -> dict[str, Any]:
        return dict(read_json(self.folder / "record.json"))

    def _path(self, asset: str) -> Path:
        return self.folder / "rows" / f"{asset}.parquet"

    def rows(self, asset: str, key: str) -> dict[str, ImportedRow]:
        """Map row id -> imported row. The result is empty when the import has no rows of this asset."""
        if not self._path(asset).exists():
            return {}
        schema = pl.read_parquet_schema(self._path(asset))
        single = [name for name, dtype in schema.items() if not dtype.is_nested()]
        found = {}
        for row in pl.read_parquet(self._path(asset), columns=single).iter_rows(named=True):
            row_id, digest, basis = row.pop(key), row.pop("digest"), row.pop("basis")
            found[row_id] = ImportedRow(digest, json.loads(basis), self._placed(row))
        return found

    def values(self, asset: str, key: str, ids: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield the rows `ids` with their imported columns, without the bookkeeping columns digest and basis."""
        wanted = pl.scan_parquet(self._path(asset)).filter(pl.col(key).is_in(list(ids)))
        frame = wanted.drop(*IMPORTED_COLUMNS).collect()
        for some in frame.iter_slices(ROWS_AT_ONCE):
            yield from map(self._placed, some.iter_rows(named=True))

    def _placed(self, row: dict[str, Any]) -> dict[str, Any]:
        """Make the row's path absolute: imports store paths relative to their own folder."""
        return row | {"path": str(self.folder.absolute() / row["path"])} if "path" in row else row

    def document(self, name: str) -> pl.DataFrame:
        """The lines of one imported document in their original order, with the columns row_id, is_held (whether a row
        of the lake stands for the line) and record."""
        path = self.folder / "documents.parquet"
        return pl.read_parquet(path).filter(pl.col("document") == name).drop("document")

    def array(self, name: str) -> Path:
        """The path of an imported array, which is kept byte for byte."""
        return self.folder / "arrays" / f"{name}.npy"


def write_rows(
    imported: Imported, asset: str, rows: pl.DataFrame, digests: Sequence[str], bases: Sequence[Mapping[str, str]]
) -> None:
    """Store the imported rows of one asset. `rows` has the key and the imported columns; `digests` and `bases` have one
    entry per row."""
    texts = [json.dumps(dict(basis), sort_keys=True) for basis in bases]
    marks = [pl.Series("digest", digests, pl.String), pl.Series("basis", texts, pl.String)]
    with atomic_path(imported.folder / "rows" / f"{asset}.parquet") as temporary:
        rows.with_columns(marks).write_parquet(temporary)


def import_folder(lake: Lake, dataset: str, import_id: str) -> Path:
    """The folder of one import of a dataset."""
    return lake.imported(dataset) / import_id


def current_import(lake: Lake, dataset: str) -> Imported | None:
    """The import that is in force, or None when the dataset has none.

    Raises ValueError, which says how to repeat the import, when an earlier version of this project wrote it with other
    columns.
    """
    path = lake.imported(dataset) / "current.json"
    if not path.exists():
        return None
    imported = Imported(import_folder(lake, dataset, read_json(path)["id"]))
    if imported.record.get("form") != FORM:
        raise ValueError(
            f"the import of dataset {dataset!r} was written by an earlier version of this project; import it again: "
            f"vsr1 import-prepared {imported.record['source']} --dataset {dataset}"
        )
    return imported


def put_in_force(lake: Lake, dataset: str, import_id: str) -> None:
    """Make a complete import the one that the dataset's stages use."""
    write_json(lake.imported(dataset) / "current.json", {"id": import_id})


def forget_import(lake: Lake, dataset: str) -> bool:
    """Delete the dataset's import, so that its stages compute their own rows again. Returns False when there was no
    import."""
    path = lake.imported(dataset) / "current.json"
    existed = path.exists()
    path.unlink(missing_ok=True)
    shutil.rmtree(lake.imported(dataset), ignore_errors=True)
    return existed


def remove_older(lake: Lake, dataset: str) -> None:
    """Delete the folders of all imports except the current one, including imports that were killed."""
    current = current_import(lake, dataset)
    for folder in lake.imported(dataset).iterdir():
        if folder.is_dir() and (current is None or folder != current.folder):
            shutil.rmtree(folder)
