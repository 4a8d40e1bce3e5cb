"""What the work on planned rows reads of committed tables: the rows with their ids, or all of them, never many at a
time. Plans read by `View.rows` and its like, which note what a plan depends on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import polars as pl

from vsr1_core.stages.base import View
from vsr1_core.stages.readings import Reading


def rows_with(view: View, asset: str, columns: Sequence[str], ids: Iterable[str]) -> pl.DataFrame:
    """The ok rows with these ids, sorted by id."""
    found = view.table(asset).rows(dict.fromkeys([*columns, "status"]), list(ids))
    return found.filter(pl.col("status") == "ok")[list(columns)]


def all_rows(view: View, asset: str) -> Iterator[dict[str, Any]]:
    """The key and the own columns of all ok rows, sorted by id."""
    stage = view.stages[asset]
    for rows in view.read_batches(Reading.of(asset, "ok", [stage.key, *stage.columns])):
        yield from rows.iter_rows(named=True)
