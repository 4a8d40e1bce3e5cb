"""Finished rows of a run before its commit: saved some at a time, and replaced where the table cannot hold them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import polars as pl

from vsr1_core.rows.table import Table
from vsr1_core.rows.texts import visible

SHARD_S = 5.0
"""Seconds after which finished rows are saved, even if they fill no shard: a slow decoder had finished 170 rows, and a
kill lost them all."""


class Shard:
    """Finished rows that are not saved yet."""

    def __init__(self, table: Table, max_rows: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self._table, self._max_rows, self._saved_at = table, max_rows, time.monotonic()

    def add(self, row: dict[str, Any], is_last: bool) -> None:
        self.rows.append(row)
        if is_last:  # the commit follows, and would write these rows a second time
            return
        if len(self.rows) >= self._max_rows or time.monotonic() - self._saved_at >= SHARD_S:
            self.save()

    def save(self) -> None:
        if self.rows:
            self._table.add_pending(storable(self._table, self.rows))
        self.rows, self._saved_at = [], time.monotonic()


@contextlib.contextmanager
def saved(table: Table, max_rows: int) -> Iterator[Shard]:
    """A shard whose rows are saved when an exception, such as Ctrl-C, ends the block."""
    shard = Shard(table, max_rows)
    try:
        yield shard
    except BaseException:
        with contextlib.suppress(OSError, ValueError):  # such as a full disk or a lost lease, why the block ends
            shard.save()
        raise


def storable(table: Table, rows: list[dict[str, Any]]) -> pl.DataFrame:
    """The rows as the table has them, with a failed row in place of each one that it cannot hold, such as a text with
    half a character."""
    together = _framed(table, rows)
    if isinstance(together, pl.DataFrame):
        return together
    kept = ("row_version", "row_inputs", table.key)
    found = []
    for row in rows:
        alone = _framed(table, [row])
        failed = {**{name: row[name] for name in kept}, "status": "failed", "error": alone}
        found.append(failed if isinstance(alone, str) else row)
    return table.frame(found)


def _framed(table: Table, rows: list[dict[str, Any]]) -> pl.DataFrame | str:
    """The rows as the table has them; why it cannot hold them where it cannot."""
    try:
        return table.frame(rows)
    except (ValueError, TypeError, OverflowError, pl.exceptions.PolarsError) as error:
        if any(name not in table.schema for row in rows for name in row):
            raise  # a mistake of the stage, in every row
        return f"the row cannot be stored: {visible(str(error))}"
