"""Frames with a row for each id, many rows at a time: in other sizes, sorted, joined."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Literal

import polars as pl

PART_ROWS, MAX_PARTS = 65536, 16
"""So many rows are sorted, and compared with their neighbours, at a time; of more than a million, a sixteenth."""


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


def in_id_order(rows: pl.DataFrame, key: str) -> pl.DataFrame:
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


def has_repeated(ids: pl.Series) -> bool:
    """Whether an id comes twice. Texts are compared where two have the same 8 bytes of hash: counting the texts takes
    72 bytes for each of them."""
    hashes = ids.hash().sort()
    return bool((hashes[1:] == hashes[:-1]).any()) and ids.n_unique() < len(ids)


def joined(
    frames: Iterable[pl.DataFrame], others: Iterable[pl.DataFrame], key: str, how: Literal["inner", "left"]
) -> Iterator[pl.DataFrame]:
    """The join of the rows of one or more frames with those of others, by ids. Both come sorted by them, and `others`
    have each id once; few of them are in memory at a time."""
    left = iter(others)
    waiting = next(left)
    for rows in frames:
        needed = [waiting]
        while rows.height and (needed[-1].is_empty() or needed[-1][key][-1] < rows[key][-1]):
            if (more := next(left, None)) is None:
                break
            needed.append(more)
        there = pl.concat(needed)
        end = int(there[key].search_sorted(rows[key][-1], "right")) if rows.height else 0
        yield rows.join(there[:end], on=key, how=how, maintain_order="left")
        waiting = there[end:]
