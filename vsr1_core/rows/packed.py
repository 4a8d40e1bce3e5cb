"""Rows that a plan holds, compressed in memory some thousands at a time: of the 220 bytes of an annotated line with two
sentences about 80 are left, and of a version's 16 digits 9 bytes. Ids are there as they are as well, as each is looked
for."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import polars as pl

from vsr1_core.rows.frames import regrouped

PACKED_ROWS = 4096
SPELLED = 2
"""So many blocks are kept as they are spelled out: rows that are asked for in order need no more."""


def packed(frames: Iterable[pl.DataFrame], spelled: int = SPELLED) -> pl.DataFrame | Packed:
    """The rows of one or more frames for a `LazyRows`: as they are where they are few. spelled: of how many blocks of
    PACKED_ROWS rows are asked for by turns; to spell one out takes a millisecond."""
    blocks = regrouped(frames, PACKED_ROWS)
    first, second = next(blocks), next(blocks, None)
    return first if second is None else Packed(itertools.chain([first, second], blocks), spelled)


class Packed:
    """Frames of PACKED_ROWS rows, but for the last one, as one. It has the methods of a frame that `LazyRows` calls."""

    def __init__(self, frames: Iterable[pl.DataFrame], spelled: int = SPELLED) -> None:
        self._blocks: list[bytes] = []
        self._most_spelled, self._spelled = spelled, dict[int, pl.DataFrame]()
        ids = []
        for rows in frames:
            ids.append(rows.to_series(0))
            self._blocks.append(_compressed(rows))
        self._ids = pl.concat(ids, rechunk=True)

    @property
    def height(self) -> int:
        return len(self._ids)

    def to_series(self, index: int = 0) -> pl.Series:
        """The ids, which are the only column that is there as a whole."""
        if index:
            raise IndexError(index)
        return self._ids

    def iter_slices(self) -> Iterator[pl.DataFrame]:
        return map(_spelled_out, self._blocks)

    def iter_rows(self) -> Iterator[tuple[Any, ...]]:
        return itertools.chain.from_iterable(rows.iter_rows() for rows in self.iter_slices())

    def row(self, place: int) -> tuple[Any, ...]:
        return self._block(place // PACKED_ROWS).row(place % PACKED_ROWS)

    def slice(self, begin: int, number: int) -> pl.DataFrame:
        end = min(begin + number, self.height)
        blocks = range(begin // PACKED_ROWS, max(begin, end - 1) // PACKED_ROWS + 1)
        return pl.concat(map(self._block, blocks)).slice(begin % PACKED_ROWS, number)

    def __getitem__(self, places: pl.Series) -> pl.DataFrame | Packed:
        """The rows in these places, which may come in any order."""
        if places.is_sorted():
            return packed(self._rows_at(places), self._most_spelled)
        order = places.arg_sort()
        found = pl.concat(self._rows_at(places[order]))[order.arg_sort()]
        return packed(found.iter_slices(PACKED_ROWS), self._most_spelled)

    def _rows_at(self, places: pl.Series) -> Iterator[pl.DataFrame]:
        """The rows in some places, which are sorted, a block at a time."""
        yield self._block(0)[:0]
        begin = 0
        while begin < len(places):
            number = places[begin] // PACKED_ROWS
            end = int(places.search_sorted((number + 1) * PACKED_ROWS, "left"))
            yield self._block(number)[places[begin:end] - number * PACKED_ROWS]
            begin = end

    def _block(self, number: int) -> pl.DataFrame:
        found = self._spelled.pop(number, None)
        if found is None:
            found = _spelled_out(self._blocks[number])
            if len(self._spelled) >= self._most_spelled:
                del self._spelled[next(iter(self._spelled))]
        self._spelled[number] = found
        return found


def _compressed(rows: pl.DataFrame) -> bytes:
    written = io.BytesIO()
    rows.write_ipc_stream(written, compression="zstd", compat_level=pl.CompatLevel.oldest())
    return written.getvalue()


def _spelled_out(block: bytes) -> pl.DataFrame:
    return pl.read_ipc_stream(io.BytesIO(block))
