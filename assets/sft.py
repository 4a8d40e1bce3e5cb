"""The training data of stage 1."""

from __future__ import annotations

from typing import Any

import dagster as dg

from assets._factory import AssetInfo
from assets._metadata import markdown_table
from vsr1_core.stages.base import View


def label_extras(view: View, asset: str) -> dict[str, Any]:
    """How many rows each label has."""
    table = view.rows(asset, ["label"]).group_by("label").len().sort("label")
    return {"labels": dg.MetadataValue.md(markdown_table(["label", "rows"], table.rows()))}


ASSETS = (
    AssetInfo(
        "top1_pool", "Train queries whose first video is right, and as many whose first is wrong.", extras=label_extras
    ),
    AssetInfo(
        "reasoning_traces",
        "What the teacher wrote about the shown video; unusable ones are failed rows.",
        extras=label_extras,
    ),
    AssetInfo(
        "sft_examples",
        "The rows of stage 1, also in the published JSON form.",
        frozenset({"parquet", "json"}),
        label_extras,
    ),
)
