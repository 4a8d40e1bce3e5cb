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
from vsr1_core.rows.frames import alone, in_id_order, last_of_each
from vsr1_core.rows.unreadable import named, scanned

BLOCK_ROWS = 4096
"""Rows that are read, and encoded, at a time. At polars' 262,144, the encoding of 100,000 rankings takes 370 MB."""
MAX_READS = 16
"""How often the rows of all pieces may be read. Where they lie in no order at all, each block would read all pieces;
then a sixteenth of the rows is read at a time."""
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
        rows = in_id_order(rows if fits is None or _all(rows, fits) else rows.filter(fits), key)
        return cls(pieces, key, last_of_each(rows, key), sizes)

    def where(self, fits: pl.Expr) -> Merged:
        """Those of the rows whose heads fit."""
        return self if _all(self.heads, fits) else replace(self, heads=self.heads.filter(fits))

    def added(self, piece: Piece) -> Merged:
        """With the rows of one more piece, which have other ids."""
        more = _heads(piece, len(self.pieces), self.key)
        heads = in_id_order(pl.concat([self.heads, more]), self.key)
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
