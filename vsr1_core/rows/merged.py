"""Rows of several files and frames as one table: sorted by id, and of each id the last piece that names it decides.

In memory are the id and status of each row, and where it is: 28 bytes, and as many again while rows that come in no
order are put in order. The rows are read a block at a time.
So a commit of a million rankings takes little more memory than one of ten thousand. `rows.row_files` says which files
make up a table, and `rows.table` what is written.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import polars as pl
from polars.io.plugins import register_io_source

from vsr1_core.rows.columnar import Ids
from vsr1_core.rows.unreadable import named, scanned

BLOCK_ROWS = 4096
"""Rows that are read, and encoded, at a time. At polars' 262,144, the encoding of 100,000 rankings takes 370 MB."""
MAX_READS = 16
"""How often the rows of all pieces may be read. Where they lie in no order at all, each block would read all pieces;
then a sixteenth of the rows is read at a time."""
PART_ROWS, MAX_PARTS = 65536, 16
"""So many rows are sorted, and compared with their neighbours, at a time; of more than a million, a sixteenth."""
PIECE, ROW = "_piece", "_row"
"""Where a row is: the number of its piece, and its own number in it."""


class Piece(Protocol):
    """Some rows of a table, in any order."""

    def read(self, columns: Sequence[str], begin: int = 0, count: int | None = None) -> pl.DataFrame:
        """These columns of `count` rows from number `begin` on; of all that follow where `count` is None."""
        ...


@dataclass(frozen=True)
class FrameRows:
    """Rows in memory."""

    frame: pl.DataFrame

    def read(self, columns: Sequence[str], begin: int = 0, count: int | None = None) -> pl.DataFrame:
        return self.frame.slice(begin, count).select(columns)


@dataclass(frozen=True)
class FileRows:
    """The rows of a Parquet file. A column of `schema` that the file has with another type, or not at all, is null."""

    path: Path
    schema: Mapping[str, Any]

    @cached_property
    def kept(self) -> Mapping[str, Any]:
        """Name -> polars type of the columns in the file."""
        with named(self.path):
            found = scanned([self.path]).collect_schema()
        return self.schema if found == self.schema else found  # one object for thousands of shards

    def read(self, columns: Sequence[str], begin: int = 0, count: int | None = None) -> pl.DataFrame:
        same = [name for name in columns if self.kept.get(name) == self.schema[name]]
        with named(self.path):
            found = scanned([self.path]).slice(begin, count).select(same).collect()
        return completed(found, columns, self.schema)


def completed(rows: pl.DataFrame, columns: Sequence[str], schema: Mapping[str, Any]) -> pl.DataFrame:
    """The rows with exactly these columns; those that they lack are null."""
    if rows.columns == list(columns):
        return rows
    new = [pl.lit(None, dtype=schema[name]).alias(name) for name in columns if name not in rows.columns]
    return rows.with_columns(new).select(columns)


@dataclass(frozen=True)
class Merged:
    """Some of the rows of `pieces`. heads: id (the column `key`), `status` and place of each of them, in the order of
    ids. sizes: how many rows each piece has."""

    pieces: Sequence[Piece]
    key: str
    heads: pl.DataFrame
    sizes: Sequence[int]

    @classmethod
    def of(cls, pieces: Sequence[Piece], key: str, fits: pl.Expr | None = None) -> Merged:
        """The rows of one or more pieces whose heads fit (None: all); of those with the same id the last one."""
        found = [_heads(piece, number, key) for number, piece in enumerate(pieces)]
        sizes, rows = [of.height for of in found], pl.concat(found)
        del found
        rows = in_order(rows if fits is None or _all(rows, fits) else rows.filter(fits), key)
        return cls(pieces, key, last_of_each(rows, key), sizes)

    def where(self, fits: pl.Expr) -> Merged:
        """Those of the rows whose heads fit."""
        return self if _all(self.heads, fits) else replace(self, heads=self.heads.filter(fits))

    def added(self, piece: Piece) -> Merged:
        """With the rows of one more piece, which have other ids."""
        more = _heads(piece, len(self.pieces), self.key)
        heads = in_order(pl.concat([self.heads, more]), self.key)
        return Merged([*self.pieces, piece], self.key, heads, [*self.sizes, more.height])

    def blocks(self, columns: Sequence[str], size: int = 0) -> Iterator[pl.DataFrame]:
        """These columns of the rows, `size` at a time; BLOCK_ROWS where it is 0."""
        size = size or BLOCK_ROWS
        for heads in self.heads.iter_slices(size * self._blocks_at_once):
            yield from self._rows(heads, columns, size).iter_slices(size)

    def _rows(self, heads: pl.DataFrame, columns: Sequence[str], size: int) -> pl.DataFrame:
        parts, places = [], heads.select(PIECE, ROW).with_row_index("_at").sort(PIECE, ROW)
        for (piece, _), own in places.group_by(PIECE, pl.col(ROW) // size, maintain_order=True):
            numbers = own[ROW]
            part = self.pieces[int(str(piece))].read(columns, numbers[0], numbers[-1] - numbers[0] + 1)
            parts.append(part if part.height == len(numbers) else part[numbers - numbers[0]])
        rows = pl.concat(parts)
        return rows if places["_at"].is_sorted() else rows[places["_at"].arg_sort()]

    @cached_property
    def _blocks_at_once(self) -> int:
        """1 where each block needs few pieces. A piece is read in parts of BLOCK_ROWS, whatever is needed of them."""
        pieces = (heads[PIECE].unique() for heads in self.heads.iter_slices(BLOCK_ROWS))
        num_read = sum(min(self.sizes[piece], BLOCK_ROWS) for needed in pieces for piece in needed)
        return 1 + num_read // (MAX_READS * max(self.heads.height, BLOCK_ROWS))


def _heads(piece: Piece, number: int, key: str) -> pl.DataFrame:
    place = [pl.lit(number, dtype=pl.UInt32).alias(PIECE), pl.int_range(pl.len(), dtype=pl.UInt32).alias(ROW)]
    return piece.read([key, "status"]).with_columns(pl.col("status").cast(pl.Categorical), *place)


def _all(heads: pl.DataFrame, fits: pl.Expr) -> bool:
    """Whether all heads fit: then no copy of them is made."""
    return bool(heads.select(fits.all()).item())


def is_among(key: str, ids: Iterable[str]) -> pl.Expr:
    """Whether the id is one of these."""
    return pl.col(key).is_in((ids if isinstance(ids, pl.Series) else Ids(ids).series).implode())


def in_order(rows: pl.DataFrame, key: str) -> pl.DataFrame:
    """The rows sorted by their ids; those with the same id stay in their order. Many rows are sorted in parts, each of
    the ids from one to another: besides the rows, polars takes 56 bytes for each one that it sorts."""
    ids, parts = rows[key], min(MAX_PARTS, rows.height // PART_ROWS)
    if ids.is_sorted():
        return rows
    some = ids.gather_every(max(1, rows.height // (64 * parts))).sort() if parts > 1 else ids[:0]
    bounds = [some[number * len(some) // parts] for number in range(1, parts)]
    ranges = itertools.pairwise([None, *bounds, None])
    return pl.concat(rows.filter(*_from_to(key, *both)).sort(key, maintain_order=True) for both in ranges)


def _from_to(key: str, first: str | None, end: str | None) -> Iterator[pl.Expr]:
    """Whether an id is none before `first`, and one before `end`; None: no bound."""
    if first is not None:
        yield pl.col(key) >= first
    if end is not None:
        yield pl.col(key) < end


def last_of_each(rows: pl.DataFrame, key: str) -> pl.DataFrame:
    """The last of the rows with each id, of rows sorted by it; they themselves where no id comes twice."""
    ids = rows[key]
    parts = [ids.slice(begin, PART_ROWS + 1) for begin in range(0, rows.height, PART_ROWS)]
    is_last = [part[:PART_ROWS].ne_missing(part.shift(-1)[:PART_ROWS]) for part in parts]
    return rows if all(part.all() for part in is_last) else rows.filter(pl.concat(is_last))


def newest(rows: pl.DataFrame, key: str) -> pl.DataFrame:
    """The last row of each id, in the order of the rows; they themselves where no id comes twice. Ids alone are looked
    at: `unique` makes two copies of the rows for a while."""
    if rows[key].n_unique() == rows.height:
        return rows
    return rows[rows.select(key).with_row_index(ROW).unique(key, keep="last")[ROW].sort()]


def write_blocks(path: Path, blocks: Iterator[pl.DataFrame], schema: Mapping[str, Any]) -> None:
    """Write one Parquet file of rows that come in blocks of BLOCK_ROWS, a block at a time. The same rows give the same
    bytes, whatever they were read from."""
    apart = map(alone, blocks)
    first, second = (next(apart, pl.DataFrame(schema=schema)) for _ in range(2))
    if second.is_empty():
        first.write_parquet(path, row_group_size=BLOCK_ROWS)
        return
    source = register_io_source(lambda *_: itertools.chain([first, second], apart), schema=schema)
    source.sink_parquet(path, row_group_size=BLOCK_ROWS, maintain_order=True)


def alone(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows in memory of their own. Of a list that is a part of a longer column, Parquet would spell the values of
    the whole column, so that equal rows would give other bytes."""
    return rows.select(pl.all().gather(pl.int_range(pl.len()))).rechunk()


def regrouped(frames: Iterable[pl.DataFrame], size: int) -> Iterator[pl.DataFrame]:
    """The rows of one or more frames in frames of `size` rows, but for the last one, which may be empty."""
    left: list[pl.DataFrame] = []
    for frame in frames:
        left.append(frame)
        if sum(part.height for part in left) > size:
            *whole, rest = pl.concat(left).iter_slices(size)
            yield from whole
            left = [rest]
    yield pl.concat(left)
