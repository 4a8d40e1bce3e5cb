"""The files with the committed rows of a table: their names, which of them make up a state, how they are read, and how
long they are kept. `rows.table` says what is in them.

A state is a base, `rows_<base>.parquet`, with all rows, and the deltas over it, `changes_<base>_<number>.parquet`. A
delta has the rows that one commit made or changed, and the ids of those that it dropped (status `DROPPED`); the newest
file that names an id decides. The newest name says which state it is, so that one rename commits a state. A table has
deltas only where its base is large: a commit of 256 of 100,000 rows of vectors wrote 760 MB before there were any. What
reads `rows*.parquet` alone, such as a version of before, sees an earlier state; a base that it writes is the newest.

No file changes once it has its name, and those of earlier states are kept for a while: DuckDB opens a file three times
per query, and 15 to 19 of 1,000 queries failed when a commit replaced the file in between.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from vsr1_core.rows.merged import BLOCK_ROWS, FileRows, Merged, is_among
from vsr1_core.rows.unreadable import named, read_rows, remedy, scanned, table_of

DROPPED = "dropped"
"""The status of an id in a delta whose row is gone."""
NAME = r"(?:rows|changes)((_\d{10})?(_\d{10})?)\.parquet"
"""Names of files of rows: (1) their place in the order of commits, as texts sort, of (2) the base and (3) the delta.
`rows.parquet`, which earlier versions wrote, is older than any other and gets no deltas."""
PATTERN = "[rc]*.parquet"
"""Files of rows, and nothing else in the folder of a table."""
ONE_FILE_BYTES = 8 << 20
"""A table whose base has at most so many bytes is always written whole, as one file."""
MAX_DELTAS = 200
"""With so many deltas, the next commit writes a base: each takes a millisecond of each reader. 200 commits of 0.5 % of
the rows take as much room as the base, which is the other bound (`RowFiles.takes_delta`)."""
SUPERSEDED_S = 600.0
"""For this many seconds after a base was committed, queries may still read the files of the state before it."""
MAX_ROW_FILES = 8
"""When a table has so many files of states with an earlier base, a commit removes those that no query can still be
reading."""
MAX_OLD_BYTES = 256 << 20
"""The same where they take more bytes than this."""
FLAT_BLOCKS = 4
"""So many blocks of rows without lists are read at a time: to begin with one takes a millisecond."""
SMALL_FILE = 2**16
"""Files of rows of up to this many bytes are kept in memory: planning a graph reads each table about ten times."""


@dataclass(frozen=True)
class RowFiles:
    """The files of one committed state."""

    base: Path
    deltas: tuple[Path, ...] = ()

    @property
    def newest(self) -> Path:
        """The file whose name the last commit gave."""
        return self.paths[-1]

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.base, *self.deltas)

    @property
    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.paths)

    @property
    def schema(self) -> Mapping[str, Any]:
        """Name -> polars type of the columns, the key first. All files of a state have the same ones."""
        if (small := _small(self.base)) is not None:
            return small[1]
        with named(self.base):
            return scanned([self.base]).collect_schema()

    def num_rows(self) -> int:
        return self.read([next(iter(self.schema))]).height if self.deltas else num_rows_in(self.base)

    def read(
        self, columns: list[str], ids: Collection[str] | None = None, where: pl.Expr | None = None
    ) -> pl.DataFrame:
        """The rows, sorted by id; `ids`: only those with one of these ids; `where`: only those that fit.

        What fits is chosen as the file is read: of a column of 100,000 texts, a fifth takes 3 MB then, and 17 MB where
        all of them are read first.
        """
        small = None if self.deltas or ids is not None else _small(self.base)
        if small is not None:
            return (small[0] if where is None else small[0].filter(where)).select(columns)
        key = next(iter(self.schema))
        has_id = None if ids is None else _is_one_of(key, ids)
        if not self.deltas:
            return _read([self.base], columns, *(fits for fits in (has_id, where) if fits is not None))
        names = dict.fromkeys([*columns, key, "status", *([] if where is None else where.meta.root_names())])
        found = _read(self.paths, list(names), *([] if has_id is None else [has_id]))
        rows = found[_valid(found, key)]  # which of them fit is known of the newest row of an id only
        return (rows if where is None else rows.filter(where)).select(columns)

    def batches(self, columns: list[str]) -> Iterator[pl.DataFrame]:
        """`read`, some thousands at a time, fewer where they have lists, such as vectors."""
        if self.deltas:
            pieces = [FileRows(path, self.schema) for path in self.paths]
            rows = Merged.of(pieces, next(iter(self.schema)))
            yield from rows.where(pl.col("status").ne_missing(DROPPED)).blocks(columns)
        elif _small(self.base) is not None:
            yield from self.read(columns).iter_slices(BLOCK_ROWS)
        else:
            size = BLOCK_ROWS * (1 if any(self.schema[name].is_nested() for name in columns) else FLAT_BLOCKS)
            for begin in range(0, num_rows_in(self.base), size):
                with named(self.base):
                    found = scanned([self.base]).slice(begin, size).select(columns).collect()
                yield found

    def takes_delta(self, num_changed: int) -> bool:
        """Whether a commit of so many rows should be a delta: as long as all deltas together are smaller than the base.

        So what is written for a new row is the row, at most its share of the next base, and at most as much again of
        the base before; and a state takes at most twice the room of its rows.
        """
        size = self.base.stat().st_size
        if size <= ONE_FILE_BYTES or len(self.deltas) >= MAX_DELTAS or not _base_of(self.base.name):
            return False
        taken = sum(path.stat().st_size for path in self.deltas)
        return taken + size * num_changed / max(num_rows_in(self.base), 1) <= size

    def next_delta(self) -> Path:
        return self.base.with_name(_delta_name(_base_of(self.base.name), len(self.deltas) + 1))

    def next_base(self) -> Path:
        return self.base.with_name(_base_name(int(_base_of(self.base.name).removeprefix("_") or "0") + 1))


def row_files(folder: Path) -> RowFiles | None:
    """The files of the newest state in the folder of a table; None where no rows were committed.

    Raises:
        FileNotFoundError: A file of the state is missing; the message says what to do.
    """
    if (found := _listed(folder)) is None:
        return None
    if _missing(found) and (found := _listed(folder)) is None:  # two commits while the folder was listed
        return None
    if missing := _missing(found):
        raise FileNotFoundError(
            f"{folder / missing}, over which {found.newest.name} of {table_of(folder)} was committed, is missing: "
            f"{remedy(folder)}"
        )
    return found


def first_base(folder: Path) -> Path:
    """The file that the first rows of a table get."""
    return folder / _base_name(1)


def _base_name(number: int) -> str:
    return f"rows_{number:010d}.parquet"


def _delta_name(base: str, number: int) -> str:
    return f"changes{base}_{number:010d}.parquet"


def _listed(folder: Path) -> RowFiles | None:
    states = list(_states(folder))
    if not states:
        return None
    base, names = states[-1]
    return RowFiles(folder / f"rows{base}.parquet", tuple(folder / name for name in names if _match(name)[3]))


def _states(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The number of each base -> the names of its files; the oldest base first, and before its deltas."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if re.fullmatch(NAME, entry.name)]
    except FileNotFoundError:
        return
    for base, group in itertools.groupby(sorted(names, key=lambda name: str(_match(name)[1])), _base_of):
        yield base, list(group)


def _base_of(name: str) -> str:
    """The part of a name that says the base, such as `_0000000003`."""
    return _match(name)[2] or ""


def _match(name: str) -> re.Match[str]:
    found = re.fullmatch(NAME, name)
    if found is None:
        raise ValueError(f"{name} is not the name of a file of rows")
    return found


def _missing(files: RowFiles) -> str:
    """The name of the first file of a state that is not there; empty where all are."""
    for number, path in enumerate(files.deltas, 1):
        if path.name != (expected := _delta_name(_base_of(files.base.name), number)):
            return expected
    return files.base.name if files.deltas and not files.base.exists() else ""


def drop_superseded(folder: Path) -> None:
    """Remove files of earlier states that no query reads any more. This happens rarely, because a query that has just
    listed the folder and has not opened its files yet would fail.
    """
    states = list(_states(folder))
    old = [folder / name for _, names in states[:-1] for name in names]
    if len(old) < MAX_ROW_FILES and sum(path.stat().st_size for path in old) <= MAX_OLD_BYTES:
        return
    for (_, names), (_, (newer, *_)) in itertools.pairwise(states):
        if time.time() - (folder / newer).stat().st_mtime > SUPERSEDED_S:
            for name in names:
                (folder / name).unlink()


def num_rows_in(path: Path) -> int:
    with named(path):
        return int(scanned([path]).select(pl.len()).collect().item())


def _is_one_of(key: str, ids: Collection[str]) -> pl.Expr:
    """`is_among`, with bounds that let the reader pass over groups of rows, as files are sorted by id: 4,096 of 100,000
    rankings are read in a twentieth of the time."""
    low, high = (pl.lit(bound(ids, default=None), dtype=pl.String) for bound in (min, max))
    return pl.col(key).is_between(low, high) & is_among(key, ids)


def _valid(found: pl.DataFrame, key: str) -> pl.Series:
    """The numbers of the rows that no later one replaces or drops, in the order of their ids."""
    heads = found.select(key, "status").with_row_index("_row").unique(key, keep="last")
    return heads.filter(pl.col("status").ne_missing(DROPPED)).sort(key)["_row"]


def _read(paths: Sequence[Path], columns: list[str], *fits: pl.Expr) -> pl.DataFrame:
    with named(*paths):
        return scanned(paths).filter(*fits).select(columns).collect()


def _small(path: Path) -> tuple[pl.DataFrame, Mapping[str, Any]] | None:
    """The whole file and its schema; None for a file that is too large to keep in memory."""
    stat = path.stat()
    return _kept(path, stat.st_ino, stat.st_mtime_ns) if stat.st_size <= SMALL_FILE else None


@functools.lru_cache(maxsize=128)
def _kept(path: Path, inode: int, written_ns: int) -> tuple[pl.DataFrame, Mapping[str, Any]]:
    """Read a small file once. A file never changes once it has its name; `inode` and `written_ns` tell it from a file
    of the same name in a home that was deleted and made again."""
    frame = read_rows(path)
    return frame, dict(frame.schema)
