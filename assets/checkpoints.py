"""Models: the base ones, and those trained from them. One training at a time: they share the `training` pool."""

from __future__ import annotations

from typing import Any

import dagster as dg

from assets._factory import AssetInfo
from assets._metadata import curve_plot, markdown_table, picture
from vsr1_core.stages.base import View


def checkpoint_extras(view: View, asset: str) -> dict[str, Any]:
    """The loss curves of each trained checkpoint, and what it was trained from."""
    frame = view.rows(asset)
    extras: dict[str, Any] = {}
    if "curve" in frame.columns:
        for row in frame.select(view.stages[asset].key, "curve").iter_rows():
            if row[1]:
                extras[f"curves/{row[0]}"] = picture(curve_plot(row[1]), f"training curves of {row[0]}")
    named = [name for name in ("digest", "parent", "source", "path") if name in frame.columns]
    key = view.stages[asset].key
    extras["checkpoints"] = dg.MetadataValue.md(markdown_table([key, *named], frame.select(key, *named).rows()))
    return extras


ASSETS = (
    AssetInfo(
        "base_models",
        "The embedder and the policy to start from: trained small on toy, else the configured models.",
        frozenset({"pytorch", "huggingface"}),
        checkpoint_extras,
        "training",
    ),
    AssetInfo(
        "fine_tuned_checkpoint",
        "The baseline: fine-tuned on the same rows, without refinement.",
        frozenset({"pytorch"}),
        checkpoint_extras,
        "training",
    ),
    AssetInfo(
        "sft_checkpoint",
        "Stage 1: supervised fine-tuning with the retrieval loss on the soft tokens.",
        frozenset({"pytorch"}),
        checkpoint_extras,
        "training",
    ),
    AssetInfo(
        "grpo_checkpoint",
        "Stage 2: GRPO over whole search episodes.",
        frozenset({"pytorch"}),
        checkpoint_extras,
        "training",
    ),
)
