"""What an import stores in the lake: the imported rows, the documents that they came in, and their source.

There is one folder per import, `imported/<dataset>/<import id>/`, which is complete before `current.json` names it. A
stage uses an imported row in place of one that it would make (`stages.base.Stage.planned_rows`) as long as the row's
basis holds. `home.prepared.layout` reads the authors' folder, and `home.prepared.importing` writes this one.
"""

from __future__ import annotations

import contextlib
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
from vsr1_core.rows.unreadable import scanned, told

RECORD = "record.json"
"""The file of an import that says where it is from."""
IMPORTED_COLUMNS = {"digest": pl.String, "basis": pl.String}
DOCUMENT_COLUMNS = {"document": pl.String, "row_id": pl.String, "is_held": pl.Boolean, "record": pl.String}
ROWS_AT_ONCE = 256
FORM = 2
"""Version of the columns that imported rows have: 2 since the right video is called `gt_video_id`."""


@dataclass(frozen=True)
class ImportedRow:
    """One imported row, without its columns of lists.

    digest: that of the imported content. basis: the facts that the row is valid for (name -> version); the row holds as
    long as they are unchanged. known: its columns with a single value.
    """

    digest: str
    basis: Mapping[str, str]
    known: Mapping[str, Any]


@dataclass(frozen=True)
class Imported:
    """One import of one dataset, in the folder `folder`."""

    folder: Path

    @cached_property
    def record(self) -> dict[str, Any]:
        """Where the import is from, when it was made, and what it contains."""
        return dict(read_json(self.folder / RECORD))

    @property
    def corpus(self) -> dict[str, list[str]]:
        """Video id -> the splits to whose corpus it belongs although their annotations do not name it."""
        return dict(self.record.get("corpus", {}))

    def _path(self, asset: str) -> Path:
        return self.folder / "rows" / f"{asset}.parquet"

    def rows(self, asset: str, key: str) -> dict[str, ImportedRow]:
        """Row id -> imported row of an asset, whose id column is `key`; empty where the import has none."""
        if not self._path(asset).exists():
            return {}
        with self._told(self._path(asset)):
            schema = pl.read_parquet_schema(self._path(asset))
            single = [name for name, dtype in schema.items() if not dtype.is_nested()]
            kept = pl.read_parquet(self._path(asset), columns=single, glob=False, hive_partitioning=False)
        found = {}
        for row in kept.iter_rows(named=True):
            row_id, digest, basis = row.pop(key), row.pop("digest"), row.pop("basis")
            found[row_id] = ImportedRow(digest, json.loads(basis), self._placed(row))
        return found

    def values(self, asset: str, key: str, ids: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The rows `ids` of an asset with all their imported columns, lists included, and without digest and basis."""
        with self._told(self._path(asset)):
            wanted = scanned([self._path(asset)]).filter(pl.col(key).is_in(list(ids)))
            frame = wanted.drop(*IMPORTED_COLUMNS).collect()
        for some in frame.iter_slices(ROWS_AT_ONCE):
            yield from map(self._placed, some.iter_rows(named=True))

    def _placed(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with an absolute path: an imported path is relative to the folder of the import."""
        return row | {"path": str(self.folder.absolute() / row["path"])} if "path" in row else row

    def document(self, name: str) -> pl.DataFrame:
        """The lines of one imported document in order: row_id, is_held (whether a row was made of it), record."""
        path = self.folder / "documents.parquet"
        with self._told(path):
            return scanned([path]).filter(pl.col("document") == name).drop("document").collect()

    def _told(self, path: Path) -> contextlib.AbstractContextManager[None]:
        again = f"vsr1 import-prepared {self.record['source']} --dataset {self.folder.parent.name}"
        return told(path, f"copy it back, or import it again: {again}")

    def array(self, name: str) -> Path:
        """The path of an imported array, which is stored byte for byte."""
        return self.folder / "arrays" / f"{name}.npy"


def with_imported(splits: Mapping[str, Sequence[str]], corpus: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Video id -> its sorted splits, of the annotated videos (`splits`) and of those that an import adds (`corpus`)."""
    return {v: sorted({*splits.get(v, ()), *corpus.get(v, ())}) for v in {**splits, **corpus}}


def write_rows(
    imported: Imported, asset: str, rows: pl.DataFrame, digests: Sequence[str], bases: Sequence[Mapping[str, str]]
) -> None:
    """Store the imported rows of one asset. `rows` has the key and the imported columns."""
    texts = [json.dumps(dict(basis), sort_keys=True) for basis in bases]
    marks = [pl.Series("digest", digests, pl.String), pl.Series("basis", texts, pl.String)]
    with atomic_path(imported.folder / "rows" / f"{asset}.parquet") as temporary:
        rows.with_columns(marks).write_parquet(temporary)


def import_folder(lake: Lake, dataset: str, import_id: str) -> Path:
    """The folder of one import of a dataset."""
    return lake.imported(dataset) / import_id


def current_import(lake: Lake, dataset: str) -> Imported | None:
    """The import that is in force; None where the dataset has none.

    Raises:
        ValueError: An earlier version of this project wrote it with other columns; the message says how to repeat it.
    """
    path = lake.imported(dataset) / "current.json"
    if not path.exists():
        return None
    imported = Imported(import_folder(lake, dataset, read_json(path)["id"]))
    if imported.record.get("form") != FORM:
        raise ValueError(
            f"what was imported for dataset {dataset!r} was written by an earlier version of this project; import it "
            f"again: vsr1 import-prepared {imported.record['source']} --dataset {dataset}"
        )
    return imported


def put_in_force(lake: Lake, dataset: str, import_id: str) -> None:
    """Make an import the current one: stages use its rows from now on."""
    with lake.fenced():
        write_json(lake.imported(dataset) / "current.json", {"id": import_id})


def forget_import(lake: Lake, dataset: str) -> bool:
    """Delete all imports, so that stages make their own rows again. Returns False where nothing was imported."""
    path = lake.imported(dataset) / "current.json"
    existed = path.exists()
    with lake.fenced():
        path.unlink(missing_ok=True)
    shutil.rmtree(lake.imported(dataset), ignore_errors=True)
    return existed


def remove_older(lake: Lake, dataset: str) -> None:
    """Delete the folders of all imports except the current one, including those of imports that were killed."""
    current = current_import(lake, dataset)
    for folder in lake.imported(dataset).iterdir():
        if folder.is_dir() and (current is None or folder != current.folder):
            shutil.rmtree(folder)
