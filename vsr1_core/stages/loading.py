"""Models and frames as the stages load them: from the rows of the tables that hold their paths. No stage here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from vsr1_core.stages.base import Execution, View

if TYPE_CHECKING:
    import torch

    from vsr1_core.models.checkpoints import LoadedPolicy
    from vsr1_core.models.embedder import Embedder
    from vsr1_core.models.inputs import VideoPatches
    from vsr1_core.models.vision import FeatureStore


def one_row(view: View, asset: str, row_id: str) -> dict[str, Any]:
    """One ok row. LookupError says what to build or why it failed."""
    table = view.table(asset)
    rows = table.rows().filter(pl.col(table.key) == row_id).to_dicts()
    if not rows:
        command = f"vsr1 build --dataset {view.entry.name} --assets {asset}"
        raise LookupError(f"{asset} has no row {row_id!r}; run: {command}")
    if rows[0]["status"] != "ok":
        raise LookupError(f"{asset}/{row_id} failed: {rows[0]['error']}")
    return rows[0]


def precision(execution: Execution) -> torch.dtype:
    """fp32 on a CPU, where bf16 inference of small models gains nothing; bf16 on an accelerator."""
    import torch

    return torch.float32 if execution.device == "cpu" else torch.bfloat16


def embedder_of(view: View, execution: Execution) -> Embedder:
    from vsr1_core.models.checkpoints import load_embedder

    return load_embedder(one_row(view, "base_models", "embedder")["path"], execution.device, precision(execution))


def policy_of(view: View, execution: Execution, asset: str, row_id: str) -> LoadedPolicy:
    """The policy whose folder is in `asset`'s row; a published base gets fresh soft query modules."""
    from vsr1_core.models.checkpoints import open_policy

    embedder = one_row(view, "base_models", "embedder")["path"]
    row = one_row(view, asset, row_id)
    return open_policy(row["path"], embedder, execution.device, precision(execution))


def frame_store(view: View, model: Any, execution: Execution) -> FeatureStore:
    """Vision features of the dataset's videos by `model`'s vision tower, from the stored frames."""
    from vsr1_core.models.vision import FeatureStore

    rows = {r["video_id"]: r for r in view.rows("frame_tensors", ["video_id", "path", "timestamps_s"]).to_dicts()}
    load = lambda video_id: patches_of(rows[video_id], model.config)  # noqa: E731
    return FeatureStore(model, load, batch_size=execution.batch_size)


def patches_of(row: dict[str, Any], config: Any) -> VideoPatches:
    """The model's input from a frame_tensors row."""
    from pathlib import Path

    from vsr1_core.media.frame_store import read_frames
    from vsr1_core.models.inputs import video_patches

    return video_patches(read_frames(Path(row["path"])), row["timestamps_s"], config)


def durations_of(view: View) -> dict[str, float]:
    """video id -> seconds, of every video with frames."""
    return dict(view.rows("frame_tensors", ["video_id", "duration_s"]).iter_rows())


def vectors_of(view: View, asset: str, ids: list[str]) -> torch.Tensor:
    """Stored unit vectors [len(ids), D], in the order of `ids`."""
    import torch

    key = view.table(asset).key
    stored = dict(view.rows(asset, [key, "vector"]).iter_rows())
    return torch.tensor([stored[i] for i in ids])
