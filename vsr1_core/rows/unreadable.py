"""How Parquet files of rows are opened, and what is said of one that cannot be read: polars names no file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

PENDING = "pending"
"""The folder in that of a table with the shards of a running build."""
HISTORY_IS_DAMAGED = "copy it back, or delete it, and the history lacks what was kept then; no table loses a row"
_OF_POLARS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)


class UnreadableRows(OSError):
    """A file of rows is there, and cannot be read. The message says which one, and what to do; no row is to blame."""

    is_of_the_run = True


def scanned(paths: Sequence[Path]) -> pl.LazyFrame:
    return pl.scan_parquet(list(paths), hive_partitioning=False, glob=False)


def read_rows(path: Path) -> pl.DataFrame:
    """All rows of one file. Raises UnreadableRows."""
    with named(path):
        return pl.read_parquet(path, hive_partitioning=False, glob=False)


@contextlib.contextmanager
def named(*paths: Path) -> Iterator[None]:
    """Raise UnreadableRows in place of what polars says while it reads `paths`."""
    try:
        yield
    except _OF_POLARS as error:
        broken, reason = next(((path, found) for path in paths if (found := _problem(path))), (paths[-1], str(error)))
        table = broken.parents[1] if broken.parent.name == PENDING else broken.parent
        way_out = "delete it, and its rows are made again" if table != broken.parent else remedy(table)
        raise UnreadableRows(f"{broken}, a file of {table_of(table)}, cannot be read ({reason}): {way_out}") from error


@contextlib.contextmanager
def told(path: Path, way_out: str) -> Iterator[None]:
    """Raise UnreadableRows in place of what polars says while it reads `path`, which belongs to no table. way_out: what
    to do, as the end of a sentence."""
    try:
        yield
    except _OF_POLARS as error:
        raise UnreadableRows(f"{path} cannot be read ({error}): {way_out}") from error


def _problem(path: Path) -> str:
    """Why a file cannot be read by itself; empty where it can."""
    try:
        scanned([path]).collect()
    except _OF_POLARS as error:
        return str(error)
    return ""


def table_of(folder: Path) -> str:
    """The table in a folder, as answers say it that name no folder."""
    return f"the table {folder.parent.name} of {_dataset_of(folder)}"


def _dataset_of(folder: Path) -> str:
    return folder.name.partition("=")[2]


def remedy(folder: Path) -> str:
    """What to do where a file of the table in a folder is missing or damaged."""
    return (
        f"copy it back, or delete its folder and run: vsr1 build --dataset {_dataset_of(folder)} "
        f"--assets {folder.parent.name}, which makes the rows of this table again; no other table loses any"
    )
