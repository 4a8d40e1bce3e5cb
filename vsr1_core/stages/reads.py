"""Which upstream rows the version of an input stands for: the usual cases, declared once for all stages.

The edges of the graph, the tree of `vsr1 explain` and the lineage in the UI are all derived from these declarations.
"""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from vsr1_core.segments import video_of
from vsr1_core.stages.base import Read, Row, RowIds, View


def same(asset: str) -> Read:
    """The row of `asset` that has the same id as the reading row."""
    return Read((asset,), lambda view, row_id, row: [(asset, [row_id])])


def of_video(asset: str) -> Read:
    """The row of `asset` about the video whose segment the reading row is."""
    return Read((asset,), lambda view, row_id, row: [(asset, [video_of(row_id)])])


def one(asset: str, row_id: str) -> Read:
    """The row `row_id` of `asset`, for every reading row."""
    return Read((asset,), lambda view, _, row: [(asset, [row_id])])


def known(asset: str, column: str) -> Read:
    """The row of `asset` whose id is in the known column `column` of the reading row."""
    return Read((asset,), lambda view, row_id, row: [(asset, [row.known[column]])])


def every(asset: str, where: pl.Expr | None = None) -> Read:
    """All ok rows of `asset` that fit `where`."""
    return Read((asset,), lambda view, row_id, row: [(asset, row_ids(view, asset, where))])


def of_split(asset: str) -> Read:
    """All ok rows of `asset` in the split of the reading row."""

    def rows(view: View, row_id: str, row: Row) -> RowIds:
        return [(asset, row_ids(view, asset, pl.col("split") == split_of(view, row_id, row)))]

    return Read((asset,), rows)


def found_by(rows: Callable[[View, str, Row], RowIds], *assets: str) -> Read:
    """The rows of `assets` that the function `rows` returns, where no other case fits."""
    return Read(assets, rows)


def row_ids(view: View, asset: str, where: pl.Expr | None = None) -> list[str]:
    """Ids of the ok rows of `asset` that fit `where`, sorted."""
    frame = view.rows(asset)
    frame = frame if where is None else frame.filter(where)
    return sorted(frame[view.stages[asset].key].to_list())


def row_ids_of_split(view: View, asset: str, split: str) -> list[str]:
    """Ids of the ok rows of `asset` whose query is in `split`, sorted.

    The split is looked up in `moments`: that of a prediction is not known before the row is made.
    """
    return row_ids(view, asset, pl.col("query_id").is_in(row_ids(view, "moments", pl.col("split") == split)))


def split_of(view: View, row_id: str, row: Row) -> str:
    """The split of a row: its own column, else the split of the query with the row's id, else the row's id itself."""
    if "split" in row.known:
        return str(row.known["split"])
    of_query = view.rows("moments", ["query_id", "split"]).filter(pl.col("query_id") == row_id)["split"]
    return str(of_query[0]) if len(of_query) else row_id


EMBEDDER = one("base_models", "embedder")
