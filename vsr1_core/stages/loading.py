"""How stages load models and frames: by the paths in the rows of their tables. This module defines no stage."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import polars as pl

from vsr1_core.input_form import QUERY_INSTRUCTION
from vsr1_core.recipes import Configuration, MethodOptions
from vsr1_core.segments import window_of
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution, TextWriterName
from vsr1_core.stages.imported_vectors import check_imported

if TYPE_CHECKING:
    import torch

    from vsr1_core.models.batches import Budget
    from vsr1_core.models.feature_store import FeatureStore
    from vsr1_core.models.protocols import Embedder, PolicyModel, VideoEncoder, VideoFrames
    from vsr1_core.models.query_vectors import QueryVectors
    from vsr1_core.models.tensor_folder import TensorFolder


T = TypeVar("T")
INPUT_SHARE = 5
"""Bytes of a video's frames and of its patches in float32, per byte of its frames."""


def one_row(view: View, asset: str, row_id: str) -> dict[str, Any]:
    """The ok row `row_id` of an asset. LookupError, where there is none, says what to build or why the row failed."""
    table = view.table(asset)
    rows = table.rows().filter(pl.col(table.key) == row_id).to_dicts()
    if not rows:
        raise LookupError(f"{asset} has no row {row_id!r}; {_remedy(view, asset)}")
    if rows[0]["status"] != "ok":
        raise LookupError(f"{asset}/{row_id} failed: {rows[0]['error']}")
    return rows[0]


def _remedy(view: View, asset: str) -> str:
    """The command that makes a missing row. A dataset that borrows models has only those that their owner makes."""
    models = view.models_view()
    command = f"run: vsr1 build --dataset {view.entry.name} --assets {asset}"
    if models is None or view.stages[asset].group != "checkpoints" or models.versions(asset):
        return command
    return (
        f"{view.entry.name} uses the models of {models.entry.name}, which makes none: let a method that searches with "
        f"it stand in evaluation.methods of {models.config.name} and build {models.entry.name}, or take such methods "
        f"out of {view.config.name}"
    )


@functools.cache
def _budget_of_this_process() -> Budget:
    from vsr1_core.models.batches import Budget

    return Budget()


def budget_of(execution: Execution) -> Budget:
    """What the passes of the models may take; the log is told when that was too much. There is one budget in a process,
    so that a stage begins with what the one before it has found to fit."""
    budget = _budget_of_this_process()
    budget.log = execution.log
    return budget


def precision(view: View, execution: Execution) -> torch.dtype:
    """The dtype of inference (`weights.inference_dtype`) with the dataset's embedder."""
    from vsr1_core.models.weights import inference_dtype

    embedder = lambda: Path(one_row(view, "base_models", "embedder")["path"])  # noqa: E731
    return inference_dtype(execution.precision, execution.device, embedder)


def embedder_of(view: View, execution: Execution) -> Embedder:
    """The dataset's frozen embedder, on the device and in the precision of `execution`. LookupError: not built;
    ValueError: imported vectors are of another embedder."""
    from vsr1_core.models.checkpoints import load_embedder

    row = one_row(view, "base_models", "embedder")
    instruction = view.config.models.query_instruction
    embedder = load_embedder(row["path"], execution.device, precision(view, execution), instruction)
    check_imported(view, embedder, row)
    return embedder


def asked_with(config: Configuration) -> tuple[str, ...]:
    """The query instruction where it is not the default, as a part of the versions of what it decides. The default is
    no part of them, so that rows which are older than this setting stay as they are."""
    instruction = config.models.query_instruction
    return () if instruction == QUERY_INSTRUCTION else (instruction,)


def policy_of(view: View, execution: Execution, asset: str, row_id: str) -> PolicyModel:
    """The policy whose folder the row of `asset` names, for inference. A published base model gets new soft query
    modules. `execution.text_writer` decodes its text. LookupError: the row is not built."""
    policy = _opened_policy(view, execution, asset, row_id, precision(view, execution))
    return with_writer(view, policy, asset, row_id, execution.text_writer)


def with_writer(
    view: View, policy: PolicyModel, asset: str, row_id: str, writer: TextWriterName, learns: bool = False
) -> PolicyModel:
    """`policy`, as opened from the row of `asset`, with text from the engine `writer`. `learns`: it is trained while
    the engine writes, and whoever trains it closes the engine."""
    if writer == "in-process":
        return policy
    from vsr1_core.models.registry import policy_family_of

    row = one_row(view, asset, row_id)
    folder = view.lake.cache(writer) / f"{row['digest']}-{policy.model.dtype}"
    return policy_family_of(row["path"]).with_text_writer(policy, writer, folder, learns)


def learning_policy_of(
    view: View, execution: Execution, asset: str, row_id: str, train_vision: bool = False, lora_rank: int = 0
) -> PolicyModel:
    """The same policy, to be trained. Weights that learn are fp32, because bf16 rounds steps of stage 2's learning rate
    away. A vision tower that does not learn keeps the precision of inference, so all stages share its features; so does
    a text model that only learns through adapters (`lora_rank` above 0).
    """
    import torch

    kept = precision(view, execution)
    policy = _opened_policy(view, execution, asset, row_id, kept if lora_rank else torch.float32)
    for parameter in policy.model.refine_parameters:
        parameter.data = parameter.data.float()
    policy.vision_tower.to(torch.float32 if train_vision else kept)
    return policy


def _opened_policy(view: View, execution: Execution, asset: str, row_id: str, dtype: torch.dtype) -> PolicyModel:
    from vsr1_core.models.checkpoints import open_policy

    embedder, row = one_row(view, "base_models", "embedder"), one_row(view, asset, row_id)
    options = MethodOptions.recorded(row["options"]) if row["options"] else None
    return open_policy(row["path"], embedder["path"], options, execution.device, dtype)


def frame_store(view: View, encoder: VideoEncoder, execution: Execution, is_learning: bool = False) -> FeatureStore:
    """Vision features of the dataset's videos by a policy's `encoder`, from the stored frames.

    The lake's cache keeps them on disk, and all stages and datasets share the features of the same tower, precision and
    frames. Features of a tower that `is_learning` are not kept at all, because its weights change with every step.
    """
    from vsr1_core.models.feature_store import FeatureStore, feature_key

    columns = ["video_id", "path", "height", "width", "timestamps_s", "content"]
    rows = {r["video_id"]: r for r in view.rows("frame_tensors", columns).to_dicts()}
    disk = None if is_learning else _cache(view, "vision_features", execution)
    weights = encoder.digest() if disk is not None else ""
    key_of = lambda video_id: feature_key(weights, video_id, rows[video_id]["content"])  # noqa: E731
    load = lambda video_id: encoder.prepare(frames_of(rows[video_id]))  # noqa: E731
    size_of = lambda video_id: INPUT_SHARE * _frame_bytes(rows[video_id])  # noqa: E731
    return FeatureStore(
        encoder,
        load=load,
        load_several=lambda video_ids: _made(rows, video_ids, load, size_of, budget_of(execution), encoder.device),
        batch_size=execution.batch_size,
        budget=budget_of(execution),
        layout_of=lambda video_id: _layout_of(encoder, rows[video_id]),
        disk=disk,
        key_of=None if disk is None else key_of,
        is_learning=is_learning,
    )


def query_vectors(view: View, embedder: Embedder, execution: Execution) -> QueryVectors:
    """Vectors of query texts without soft tokens, by the frozen embedder; the lake's cache keeps them on disk."""
    from vsr1_core.models.query_vectors import QueryVectors

    disk = _cache(view, "query_vectors", execution)
    if disk is None:
        return QueryVectors(embedder, budget=budget_of(execution))
    digest = one_row(view, "base_models", "embedder")["digest"]
    weights = f"{digest}-{embedder.model.dtype}"
    return QueryVectors(embedder, disk=disk, weights=weights, budget=budget_of(execution))


def _cache(view: View, what: str, execution: Execution) -> TensorFolder | None:
    from vsr1_core.models.tensor_folder import TensorFolder

    return TensorFolder(view.lake.cache(what), execution.cache_bytes) if execution.cache_bytes else None


def frames_of(row: Mapping[str, Any]) -> VideoFrames:
    """The frames of a `frame_tensors` row, resized to its height and width: imported arrays may have another size."""
    from vsr1_core.media.frame_store import read_frames, resized
    from vsr1_core.models.protocols import VideoFrames

    return VideoFrames(resized(read_frames(Path(row["path"])), row["height"], row["width"]), row["timestamps_s"])


def _made(
    rows: Mapping[str, Mapping[str, Any]],
    video_ids: Sequence[str],
    make: Callable[[str], T],
    size_of: Callable[[str], float],
    budget: Budget,
    device: torch.device,
) -> Iterator[T]:
    """`make` of each video, in order. What decodes JPEGs is made in a thread ahead of the model on `device`, within
    the budget; arrays are memory maps, which cost nothing to open."""
    from vsr1_core.media.frame_store import is_decoded
    from vsr1_core.models.ahead import made_ahead

    if len(video_ids) < 2 or not any(is_decoded(rows[video_id]["path"]) for video_id in video_ids):
        return map(make, video_ids)
    return made_ahead(video_ids, make, size_of, budget.bytes_ahead(device))


def videos_to_embed(
    rows: Mapping[str, Mapping[str, Any]], video_ids: Sequence[str], budget: Budget, device: torch.device
) -> Iterator[tuple[str, VideoFrames]]:
    """Each video id with its frames as the embedder is shown them, in order. rows: id -> row of `frame_tensors`."""
    frames = _made(rows, video_ids, lambda v: frames_to_embed(rows[v]), lambda v: _frame_bytes(rows[v]), budget, device)
    return zip(video_ids, frames, strict=True)


def _frame_bytes(row: Mapping[str, Any]) -> float:
    return 3.0 * len(row["timestamps_s"]) * row["height"] * row["width"]


def frames_to_embed(row: Mapping[str, Any]) -> VideoFrames:
    """The same frames as the embedder is shown them: the times of a window count from its start."""
    frames = frames_of(row)
    window = window_of(row["video_id"])
    if window is None:
        return frames
    return dataclasses.replace(frames, timestamps_s=[max(0.0, time_s - window[0]) for time_s in frames.timestamps_s])


def layouts_of(view: View, video_ids: Sequence[str], encoder: VideoEncoder) -> list[Any]:
    """The encoder's layout of each video, which prompts are built from, in the order of `video_ids`. Reads no frame."""
    columns = ["video_id", "height", "width", "timestamps_s"]
    layouts = {row["video_id"]: _layout_of(encoder, row) for row in view.rows("frame_tensors", columns).to_dicts()}
    return [layouts[video_id] for video_id in video_ids]


def _layout_of(encoder: VideoEncoder, row: dict[str, Any]) -> Any:
    return encoder.layout(row["height"], row["width"], row["timestamps_s"])


def durations_of(view: View) -> dict[str, float]:
    """Segment id -> length in seconds, of every segment that has frames."""
    return dict(view.rows("frame_tensors", ["video_id", "duration_s"]).iter_rows())


def vectors_of(view: View, asset: str, ids: list[str]) -> torch.Tensor:
    """Stored unit vectors [len(ids), D], in the order of `ids`."""
    import torch

    key = view.table(asset).key
    stored = dict(view.rows(asset, [key, "vector"]).iter_rows())
    return torch.tensor([stored[i] for i in ids])
