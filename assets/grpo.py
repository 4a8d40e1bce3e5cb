"""The training data of stage 2."""

from __future__ import annotations

from assets._factory import AssetInfo

ASSETS = (AssetInfo("grpo_prompts", frozenset({"parquet", "json"})),)
