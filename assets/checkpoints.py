"""The models: base models, and the checkpoints that are trained from them."""

from __future__ import annotations

from typing import Any

import dagster as dg
import polars as pl

from assets._factory import GPU, AssetInfo
from assets._metadata import cell, drawn, fitting, picture
from vsr1_core.segments import is_right
from vsr1_core.stages import methods
from vsr1_core.stages.base import View
from vsr1_core.stages.method_styles import STYLES


def checkpoint_extras(view: View, asset: str) -> dict[str, Any]:
    """The loss curves of each trained checkpoint, and its folder."""
    key = view.stages[asset].key
    extras: dict[str, Any] = {}
    for row_id, path, curve in view.rows(asset, [key, "path", "curve"]).iter_rows():
        extras[f"checkpoint/{row_id}"] = dg.MetadataValue.path(path)
        if curve:
            extras[f"curves/{row_id}"] = _curve_picture(view, row_id, curve)
    return extras


def grpo_extras(view: View, asset: str) -> dict[str, Any]:
    """As `checkpoint_extras`, and the last sampled group: what its episodes wrote, and their rewards."""
    extras = checkpoint_extras(view, asset)
    episodes = [e for (found,) in view.rows(asset, ["episodes"]).iter_rows() for e in found or ()]
    if episodes:
        last = [e for e in episodes if e["step"] == episodes[-1]["step"]]
        extras["episodes"] = dg.MetadataValue.md("\n\n".join(_episode_text(e) for e in last))
    return extras


def _episode_text(episode: dict[str, Any]) -> str:
    """One episode as Markdown: the query, its rewards, and one line per turn."""
    parts = [name for name in episode if name.startswith("reward_")]
    rewards = ", ".join(f"{name.removeprefix('reward_')} {episode[name]:.2f}" for name in parts)
    lines = [f"**{cell(episode['query'], 200)}** (step {episode['step']}, sample {episode['sample']}): {rewards}"]
    moment = (episode["gt_video_id"], episode["gt_start_s"], episode["gt_end_s"])
    for turn in episode["turns"]:
        shown = "the right video" if is_right(turn["video_id"], *moment) else cell(turn["video_id"])
        rank = turn["rank"] or "-"
        lines.append(f"{turn['turn']}. Shown {shown} (right video at rank {rank}): {cell(turn['text'], 500)}")
    return "\n".join(lines)


def _curve_picture(view: View, row_id: str, curve: list[dict[str, Any]]) -> dg.MetadataValue:
    def draw() -> bytes:
        from vsr1_core.evaluation import plots

        return fitting(plots.png(plots.loss_curves({row_id: pl.DataFrame(curve)}, STYLES)))

    return picture(drawn(view.lake, ["curves", row_id, curve], draw), f"training curves of {row_id}")


ASSETS = (
    AssetInfo("base_models", frozenset({"pytorch", "huggingface"}), checkpoint_extras, GPU),
    *(
        AssetInfo(trained.name, frozenset({"pytorch"}), grpo_extras if trained.searches else checkpoint_extras, GPU)
        for trained in methods.TRAINED.values()
    ),
)
