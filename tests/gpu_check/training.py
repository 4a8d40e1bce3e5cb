"""Parts of the check that train and build. `measures` has those that only run models."""

from __future__ import annotations

import dataclasses
import importlib.util
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from tests.benchmarks.measuring import resident_bytes
from tests.core.tiny_models import query_text
from tests.gpu_check.measures import Setup, part
from vsr1_core.models.feature_store import FeatureStore
from vsr1_core.models.peak_memory import PeakMemory
from vsr1_core.models.qwen3_vl import latent_steps
from vsr1_core.models.qwen3_vl.embedder import Qwen3VLEmbedder
from vsr1_core.models.qwen3_vl.inputs import VideoPatches
from vsr1_core.models.qwen3_vl.loaded import LoadedPolicy
from vsr1_core.reasoning.conversation import answer_text


@part
def stage_1(setup: Setup) -> dict[str, Any]:
    """Seconds and memory of a step of stage 1 on one long video, with gradient checkpointing."""
    return _stage_1(setup)


@part
def stage_1_of_four_rows(setup: Setup) -> dict[str, Any]:
    """The same step with four long videos at once."""
    return _stage_1(setup, batch_size=4)


@part
def stage_1_without_latents(setup: Setup) -> dict[str, Any]:
    """The same step of one row, trained on its text alone: what the latents cost is the rest."""
    return _stage_1(setup, refine="none")


@part
def stage_1_of_adapters(setup: Setup) -> dict[str, Any]:
    """The same step of one row, in which adapters of rank 16 learn beside a text model in the dtype of inference."""
    return _stage_1(setup, lora_rank=16)


def _stage_1(setup: Setup, **changes: Any) -> dict[str, Any]:
    from vsr1_core.recipes import SFTRecipe
    from vsr1_core.training.examples import build_examples
    from vsr1_core.training.runs import TrainingRun
    from vsr1_core.training.sft import SFTData, train_sft

    policy, embedder = setup.models_with_adapters() if changes.get("lora_rank") else setup.models_to_train()
    videos = setup.videos(4, setup.inputs.long)
    features, vectors = _features_and_vectors(policy, embedder, videos)
    rows = [_sft_row(i, len(videos)) for i in range(len(videos))]
    layouts = [f.layout for f in features.get([r["shown_video_id"] for r in rows])]
    examples = build_examples(policy, rows, layouts)
    data = SFTData(examples, features, vectors, {})
    fixed = {"batch_size": 1, "gradient_checkpointing": True, "bf16": setup.device == "cuda", "num_negatives": 2}
    recipe = SFTRecipe(**fixed | changes)

    def train(steps: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            train_sft(policy, embedder, data, dataclasses.replace(recipe, steps=steps), TrainingRun(Path(folder)))

    found = _training_step(setup, train) if recipe.refine == "none" else _with_and_without_capture(setup, train)
    return {"tokens_per_row": len(examples[0].prompt.token_ids), **found}


def _sft_row(i: int, num_videos: int) -> dict[str, Any]:
    """Only rows that refine, so that every step has L_ret."""
    return {
        "query_id": f"q{i}",
        "query": query_text(i),
        "gt_video_id": f"v{i}",
        "shown_video_id": f"v{(i + 1) % num_videos}",
        "label": "not_matched",
        "answer": answer_text("the video shows a bar, not a ring.", False),
        "negative_ids": [f"v{(i + 1) % num_videos}"],
    }


def _features_and_vectors(
    policy: LoadedPolicy, embedder: Qwen3VLEmbedder, videos: dict[str, VideoPatches]
) -> tuple[FeatureStore, dict[str, Tensor]]:
    with torch.no_grad():
        store = FeatureStore(embedder.encoder, videos.__getitem__)
        vectors = {v: embedder.embed_features(store.get([v]))[0].float().cpu() for v in videos}
    return FeatureStore(policy.encoder, videos.__getitem__), vectors


def _with_and_without_capture(setup: Setup, train: Callable[[int], None]) -> dict[str, Any]:
    """`_training_step`, with the steps of the latents captured, and with each of their kernels launched from Python."""
    found = _training_step(setup, train)
    with mock.patch.object(latent_steps, "capture_on", return_value=None):
        launched = _training_step(setup, train)
    return found | {f"{name}_without_capture": value for name, value in launched.items()}


def _training_step(setup: Setup, train: Callable[[int], None]) -> dict[str, Any]:
    """Seconds of a step, the least of the third and the later ones, and the highest memory. The first step prepares
    kernels, and the second one captures for the first time; another one may write a state to resume from."""
    ends: list[float] = []
    hook = register_optimizer_step_post_hook(lambda *_: ends.append(setup.clock()))
    with PeakMemory(setup.device, resident_bytes) as memory:
        train(5)
    hook.remove()
    return {"step_s": min(end - begin for begin, end in pairwise(ends[1:])), "peak_bytes": memory.peak_bytes}


@part
def stage_2(setup: Setup) -> dict[str, Any]:
    """Seconds and memory of a step of stage 2: a group of 8 episodes of 2 turns, with a reference model."""
    return _stage_2(setup, beta=0.01)


@part
def stage_2_without_reference(setup: Setup) -> dict[str, Any]:
    """The same step without a reference model (beta 0)."""
    return _stage_2(setup, beta=0.0)


@part
def stage_2_in_8_bits(setup: Setup) -> dict[str, Any]:
    """The same step, of which the optimiser keeps its moments in 8 bits."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return {"skipped": "bitsandbytes is not installed"}
    return _stage_2(setup, beta=0.01, optimizer="adamw_8bit")


@part
def stage_2_of_adapters(setup: Setup) -> dict[str, Any]:
    """The same step, in which adapters of rank 16 learn beside a text model in the dtype of inference."""
    return _stage_2(setup, beta=0.01, lora_rank=16)


def _stage_2(setup: Setup, beta: float, **changes: Any) -> dict[str, Any]:
    from vsr1_core.recipes import GRPORecipe
    from vsr1_core.search.index import build_index
    from vsr1_core.training.grpo import train_grpo
    from vsr1_core.training.rollout import GRPOPrompt
    from vsr1_core.training.runs import TrainingRun

    policy, embedder = setup.models_with_adapters() if changes.get("lora_rank") else setup.models_to_train()
    frames = setup.inputs.long
    videos = setup.videos(4, frames)
    features, vectors = _features_and_vectors(policy, embedder, videos)
    index = build_index(list(vectors), torch.stack(list(vectors.values())).numpy())
    prompts = [GRPOPrompt("q0", query_text(0), "v0", 0.0, 1.0, float(frames), ("v1", "v2"))]
    recipe = GRPORecipe(
        queries_per_step=1,
        group_size=8,
        num_turns=2,
        max_new_tokens=setup.inputs.text_tokens,
        gradient_checkpointing=True,
        bf16=setup.device == "cuda",
        num_negatives=2,
        beta=beta,
        **changes,
    )

    def train(steps: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            train_grpo(
                policy,
                embedder,
                prompts,
                index,
                features,
                vectors,
                dict.fromkeys(videos, float(frames)),
                {},
                dataclasses.replace(recipe, steps=steps),
                TrainingRun(Path(folder)),
            )

    found = _with_and_without_capture(setup, train)
    return {"beta": beta, "group": recipe.group_size, "turns": recipe.num_turns, **found}


@part
def build(setup: Setup) -> dict[str, Any]:
    """The toy corpus of `nano`, from raw videos to the report, and its test queries: both on the device, and the
    queries on the CPU with the same weights. Everything here is small, so its seconds say nothing of real models."""
    missing = [name for name in ("polars", "av", "faiss", "trl") if importlib.util.find_spec(name) is None]
    if missing:
        return {"skipped": f"{', '.join(missing)} not installed"}
    from vsr1_core import Home

    with tempfile.TemporaryDirectory() as folder:
        home = Home(folder, device=setup.device)
        home.add_dataset("made", toy=True, config="nano")
        built = home.build("made")
        again = sum(asset.num_processed for asset in home.build("made"))
        moments = home.table("moments", "made")
        queries = [row["query"] for row in moments.to_dicts() if row["split"] == "test"][:8]
        here = [home.search(text, "made", method="videosearch_r1") for text in queries]
        there = [Home(folder, device="cpu").search(text, "made", method="videosearch_r1") for text in queries]
        metrics = home.table("metrics", "made")
    firsts = [(a[0], b[0]) for a, b in zip(here, there, strict=True)]
    return {
        "assets": {asset.name: [asset.num_rows, asset.num_failed, round(asset.seconds, 1)] for asset in built},
        "failed": sum(asset.num_failed for asset in built),
        "made_again": again,
        "num_metrics": len(metrics),
        "queries": len(firsts),
        "same_video_as_on_cpu": sum(a.video == b.video for a, b in firsts),
        "largest_score_difference": max(abs(a.score - b.score) for a, b in firsts),
    }
