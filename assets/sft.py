"""The training data of stage 1."""

from __future__ import annotations

from typing import Any

import dagster as dg
import polars as pl

from assets._factory import AssetInfo
from assets._metadata import markdown_table
from vsr1_core.stages.base import View


def label_extras(view: View, asset: str) -> dict[str, Any]:
    """How many rows each label has."""
    table = view.rows(asset, ["label"]).group_by("label").len().sort("label")
    return {"labels": dg.MetadataValue.md(markdown_table(["label", "rows"], table.rows()))}


def trace_extras(view: View, asset: str) -> dict[str, Any]:
    """How many rows each label has, how many traces contradicted their label and were dropped, and what the replies of
    a teacher model cost, including failed ones."""
    rows = view.table(asset).rows()
    contradictions = rows.filter((pl.col("finish_reason") == "stop") & (pl.col("verdict") != pl.col("label")))
    extras = label_extras(view, asset) | {"teacher/contradictions": contradictions.height}
    asked = rows.filter(pl.col("num_requests") > 0)
    if asked.height:
        extras |= {name: asked[column].sum() for name, column in _COSTS.items()}
        extras["teacher/retries"] = extras["teacher/requests"] - asked.height
    return extras


_COSTS = {
    "teacher/requests": "num_requests",
    "teacher/prompt_tokens": "num_prompt_tokens",
    "teacher/completion_tokens": "num_tokens",
    "teacher/request_seconds": "request_s",
}


ASSETS = (
    AssetInfo("top1_pool", extras=label_extras),
    AssetInfo("reasoning_traces", extras=trace_extras),
    AssetInfo("sft_examples", frozenset({"parquet", "json"}), label_extras),
    AssetInfo("hard_refine_examples", extras=label_extras),
)
