"""The index and the first ranking, from which the policy starts."""

from __future__ import annotations

from typing import Any

import dagster as dg
import polars as pl

from assets._factory import AssetInfo
from assets._metadata import markdown_table, without_empty_columns
from vsr1_core.stages.base import View
from vsr1_core.stages.retrieval import RECALL_COLUMNS


def ranking_extras(view: View, asset: str) -> dict[str, Any]:
    """Recall of the first ranking for each split. A right video that is not in the index counts as a miss."""
    hits = [(pl.col("rank") <= k).fill_null(value=False).mean().alias(f"R@{k}") for k in (1, 5, 10, 100)]
    table = view.rows(asset, ["split", "rank"]).group_by("split").agg(pl.len().alias("queries"), *hits).sort("split")
    return {"recall": dg.MetadataValue.md(markdown_table(table.columns, table.rows()))}


def index_extras(view: View, asset: str) -> dict[str, Any]:
    """What each index holds and, where it may miss videos, which share of the nearest ones it finds."""
    table = view.rows(asset, ["split", "num_videos", "dim", *RECALL_COLUMNS, "num_trained", "num_moved"])
    shown = without_empty_columns(table.with_columns(kind=pl.lit(view.config.retrieval.index)))
    return {"indexes": dg.MetadataValue.md(markdown_table(shown.columns, shown.rows()))}


ASSETS = (
    AssetInfo("video_index", frozenset({"faiss"}), index_extras),
    AssetInfo("first_ranking", frozenset({"faiss", "parquet"}), ranking_extras),
)
