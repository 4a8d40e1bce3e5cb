"""What rows read, said once: which upstream rows an input's version stands for.

The graph's edges, the tree of `vsr1 explain` and the UI's lineage all follow from these.
"""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from vsr1_core.stages.base import Read, Row, RowIds, View


def same(asset: str) -> Read:
    """The row with the same id."""
    return Read((asset,), lambda view, row_id, row: [(asset, [row_id])])


def one(asset: str, row_id: str) -> Read:
    """One row, known by its id."""
    return Read((asset,), lambda view, _, row: [(asset, [row_id])])


def known(asset: str, column: str) -> Read:
    """The row whose id is a known column of this one."""
    return Read((asset,), lambda view, row_id, row: [(asset, [row.known[column]])])


def every(asset: str, where: pl.Expr | None = None) -> Read:
    """All ok rows that fit `where`."""
    return Read((asset,), lambda view, row_id, row: [(asset, row_ids(view, asset, where))])


def of_split(asset: str) -> Read:
    """All ok rows of this row's split."""

    def rows(view: View, row_id: str, row: Row) -> RowIds:
        return [(asset, row_ids(view, asset, pl.col("split") == split_of(view, row_id, row)))]

    return Read((asset,), rows)


def found_by(rows: Callable[[View, str, Row], RowIds], *assets: str) -> Read:
    """Rows of `assets` that only a function can name."""
    return Read(assets, rows)


def row_ids(view: View, asset: str, where: pl.Expr | None = None) -> list[str]:
    """Ids of the ok rows of `asset` that fit `where`, sorted."""
    frame = view.rows(asset)
    frame = frame if where is None else frame.filter(where)
    return sorted(frame[view.stages[asset].key].to_list())


def row_ids_of_split(view: View, asset: str, split: str) -> list[str]:
    """By their queries: a prediction's own split is not known before the row is made."""
    return row_ids(view, asset, pl.col("query_id").is_in(row_ids(view, "moments", pl.col("split") == split)))


def split_of(view: View, row_id: str, row: Row) -> str:
    """A row's split: its own column, or that of the query it is named after, or the row's id itself."""
    if "split" in row.known:
        return str(row.known["split"])
    of_query = view.rows("moments", ["query_id", "split"]).filter(pl.col("query_id") == row_id)["split"]
    return str(of_query[0]) if len(of_query) else row_id


EMBEDDER = one("base_models", "embedder")
