"""Models: the base ones, and those trained from them. One training at a time: they share the `training` pool."""

from __future__ import annotations

from typing import Any

import dagster as dg
import polars as pl

from assets._factory import AssetInfo
from assets._metadata import fitting, markdown_table, picture, without_empty_columns
from vsr1_core.stages.base import View


def checkpoint_extras(view: View, asset: str) -> dict[str, Any]:
    """The loss curves of each trained checkpoint, and what it was trained from."""
    frame, key = view.rows(asset), view.stages[asset].key
    named = [name for name in ("digest", "parent", "source", "path") if name in frame.columns]
    listed = without_empty_columns(frame.select(key, *named))
    extras: dict[str, Any] = {"checkpoints": dg.MetadataValue.md(markdown_table(listed.columns, listed.rows()))}
    if "curve" in frame.columns:
        for row_id, curve in frame.select(key, "curve").iter_rows():
            if curve:
                extras[f"curves/{row_id}"] = _curve_picture(row_id, curve)
    return extras


def _curve_picture(row_id: str, curve: list[dict[str, Any]]) -> dg.MetadataValue:
    from vsr1_core.evaluation import plots

    figure = plots.loss_curves({row_id: pl.DataFrame(curve)})
    return picture(fitting(plots.png(figure)), f"training curves of {row_id}")


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
