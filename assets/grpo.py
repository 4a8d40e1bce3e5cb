"""The training data of stage 2."""

from __future__ import annotations

from assets._factory import AssetInfo

ASSETS = (
    AssetInfo(
        "grpo_prompts",
        "The queries of stage 2 with their negatives, also in the published JSONL form.",
        frozenset({"parquet", "json"}),
    ),
)
