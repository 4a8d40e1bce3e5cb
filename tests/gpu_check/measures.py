"""The parts of the check: what each measures, on models with random weights. No processes and no files here."""

from __future__ import annotations

import dataclasses
import importlib.util
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from tests.benchmarks.corpora import random_frames
from tests.benchmarks.measuring import Clock, resident_bytes
from tests.benchmarks.sizes import config_2b, random_models
from tests.core import naive
from tests.core.tiny_models import query_text, small_config, tiny_tokenizer
from vsr1_core.models.decoding import decode
from vsr1_core.models.feature_store import FeatureStore
from vsr1_core.models.peak_memory import PeakMemory
from vsr1_core.models.prompts import Prompt
from vsr1_core.models.protocols import Decoded, DecodeSettings
from vsr1_core.models.qwen3_vl import reading as reading_module
from vsr1_core.models.qwen3_vl.embedder import Qwen3VLEmbedder
from vsr1_core.models.qwen3_vl.inputs import VideoPatches
from vsr1_core.models.qwen3_vl.loaded import LoadedPolicy
from vsr1_core.models.qwen3_vl.sizes import size_of
from vsr1_core.models.qwen3_vl.vision import VideoFeatures
from vsr1_core.reasoning.conversation import REFINE_TOKEN, answer_text, build_messages

NUM_SOFT_TOKENS = 8


@dataclass(frozen=True)
class Size:
    """How large the inputs are. side: of square frames, in pixels; long, short: frames of a video."""

    side: int
    long: int
    short: int
    batch: int
    text_tokens: int


SIZES = {
    "2b": Size(side=448, long=64, short=16, batch=64, text_tokens=128),
    "tiny": Size(side=32, long=8, short=4, batch=4, text_tokens=6),
}


@dataclass(frozen=True)
class Setup:
    """Where the check runs, and how large its models and inputs are."""

    device: str
    size: str

    @property
    def inputs(self) -> Size:
        return SIZES[self.size]

    @property
    def clock(self) -> Clock:
        return Clock(self.device)

    @property
    def inference_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    @cached_property
    def config(self) -> Any:
        return config_2b(tiny_tokenizer()) if self.size == "2b" else small_config()

    def models(self, dtype: torch.dtype | None = None) -> tuple[LoadedPolicy, Qwen3VLEmbedder]:
        return random_models(self.config, tiny_tokenizer(), self.device, dtype or self.inference_dtype)

    def models_to_train(self) -> tuple[LoadedPolicy, Qwen3VLEmbedder]:
        """As a build trains them: the weights that learn are float32, the frozen ones have the dtype of inference."""
        policy, embedder = self.models(torch.float32)
        policy.model.model.visual.to(self.inference_dtype)
        embedder.model.to(self.inference_dtype)
        return policy, embedder

    def videos(self, count: int, num_frames: int) -> dict[str, VideoPatches]:
        side = self.inputs.side
        return {f"v{i}": random_frames(i, num_frames, side, side, self.config) for i in range(count)}


Part = Callable[[Setup], dict[str, Any]]
PARTS: dict[str, Part] = {}


def part(function: Part) -> Part:
    """Register a part under the name of its function; parts run in the order of this file."""
    PARTS[function.__name__] = function
    return function


def run_part(name: str, setup: Setup) -> dict[str, Any]:
    """The facts that a part found, and the seconds it took without the start of its process."""
    started = time.monotonic()
    facts = PARTS[name](setup)
    return {**facts, "seconds": round(time.monotonic() - started, 1)}


def machine(device: str) -> dict[str, Any]:
    """What the check runs on."""
    import transformers

    facts = {"torch": torch.__version__, "transformers": transformers.__version__, "device": device}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {"gpu": properties.name, "gpu_gib": round(properties.total_memory / 2**30, 1)}
    return facts


def prompts_about(policy: LoadedPolicy, features: list[VideoFeatures], count: int) -> tuple[list[Prompt], list[Any]]:
    """`count` prompts, each about one of the videos in turn."""
    shown = [features[i % len(features)] for i in range(count)]
    return policy.prompts([build_messages(query_text(i)) for i in range(count)], [f.layout for f in shown]), shown


@part
@torch.no_grad()
def loop_equality(setup: Setup) -> dict[str, Any]:
    """Whether the cached loop gives the latents of N full passes and the text of plain generation, in float32."""
    policy, _ = setup.models(torch.float32)
    videos = setup.videos(2, setup.inputs.short)
    features = policy.encoder.encode(list(videos.values()))
    prompts, shown = prompts_about(policy, features, 2)
    made = _decoded(policy, prompts, shown, setup.inputs.text_tokens)
    plain = [_plain(policy, *each, setup.device) for each in zip(prompts, videos.values(), made, strict=True)]
    pairs = [(row.latents, latents) for row, (latents, _) in zip(made, plain, strict=True)]
    difference = max(float((ours - theirs).abs().max() / theirs.abs().max()) for ours, theirs in pairs)
    same = sum(row.token_ids == ids for row, (_, ids) in zip(made, plain, strict=True))
    return {"largest_relative_difference": difference, "rows": len(made), "rows_with_equal_text": same}


def _decoded(policy: LoadedPolicy, prompts: list[Prompt], shown: list[Any], max_new_tokens: int) -> list[Decoded]:
    settings = DecodeSettings(max_new_tokens, 0.0, NUM_SOFT_TOKENS)
    return decode(policy, prompts, shown, settings, wants_refine=lambda _text: True)


def _plain(
    policy: LoadedPolicy, prompt: Prompt, video: VideoPatches, row: Decoded, device: str
) -> tuple[Tensor, list[int]]:
    """Latents by N full passes after the row's own text, and the text by plain greedy generation."""
    model, tokenizer, ends = policy.model, policy.tokenizer, sorted(policy.end_tokens)
    patches = video.patches.to(device)
    text = [t for t in row.token_ids if t not in ends]
    refine = tokenizer.convert_tokens_to_ids(REFINE_TOKEN)
    ids = torch.cat([prompt.token_ids, torch.tensor([*text, refine])]).to(device)
    latents = naive.latents(model, dict(model.named_parameters()), ids, patches, video.grid, NUM_SOFT_TOKENS)
    written = naive.greedy_ids(
        model,
        prompt.token_ids.to(device),
        patches,
        video.grid,
        max_new_tokens=len(row.token_ids),
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
    )
    return latents, written


@part
@torch.no_grad()
def reading(setup: Setup) -> dict[str, Any]:
    """How fast long videos are read by both towers and by the language model; gives the forecast's `utilisation`."""
    policy, embedder = setup.models()
    videos = list(setup.videos(4, setup.inputs.long).values())
    vision_s, features = _timed(setup, lambda: [policy.encoder.encode([video])[0] for video in videos])
    prompts, shown = prompts_about(policy, features, len(videos))
    tokens = sum(len(p.token_ids) for p in prompts)

    text_s, _ = _timed(setup, lambda: policy.reading(prompts, shown, room=0))
    embed_s, _ = _timed(setup, lambda: embedder.embed_features(features))
    size = size_of(setup.config)
    return {
        "tokens_per_video": tokens // len(videos),
        "vision_s_per_video": vision_s / len(videos),
        "prefill_tokens_per_s": tokens / text_s,
        "prefill_flops": 2 * size.text * tokens / text_s,
        "vision_flops": 2 * size.vision * sum(len(v.patches) for v in videos) / vision_s,
        "embedder_tokens_per_s": sum(len(f.tokens) for f in features) / embed_s,
    }


def _timed(setup: Setup, work: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """The fewest seconds of several runs after one that warms up, and what the last one returned."""
    work()
    seconds, result = [], None
    for _ in range(repeats):
        started = setup.clock()
        result = work()
        seconds.append(setup.clock() - started)
    return min(seconds), result


@part
@torch.no_grad()
def decoding(setup: Setup) -> dict[str, Any]:
    """Seconds per decoding step of a batch (the forecast's `step_s`), tokens a second, and memory: with steps that are
    captured once, and with each kernel launched from Python."""
    policy, _ = setup.models()
    inputs = setup.inputs
    features = policy.encoder.encode(list(setup.videos(4, inputs.short).values()))
    facts: dict[str, Any] = {}
    for rows in (1, inputs.batch):
        prompts, shown = prompts_about(policy, features, rows)
        _decoded(policy, prompts, shown, 4)
        captured = _steps_of_decoding(setup, policy, prompts, shown)
        with mock.patch.object(reading_module, "capture_on", return_value=None):
            launched = _steps_of_decoding(setup, policy, prompts, shown)
        facts[f"rows_{rows}"] = {**captured, "step_s_without_capture": launched["step_s"]}
    return facts


def _steps_of_decoding(setup: Setup, policy: LoadedPolicy, prompts: list[Prompt], shown: list[Any]) -> dict[str, Any]:
    with PeakMemory(setup.device, resident_bytes) as memory:
        reading_s, _ = _timed(setup, lambda: policy.reading(prompts, shown, room=0), repeats=1)
        started = setup.clock()
        made = _decoded(policy, prompts, shown, setup.inputs.text_tokens)
        seconds = setup.clock() - started
    steps = max(len(row.token_ids) for row in made) + NUM_SOFT_TOKENS
    written = sum(row.num_text_tokens + row.num_latent_tokens for row in made)
    return {
        "step_s": max(seconds - reading_s, 0) / steps,
        "reading_s": reading_s,
        "tokens_per_s": written / seconds,
        "prompt_tokens": len(prompts[0].token_ids),
        "peak_bytes": memory.peak_bytes,
    }


@part
def stage_1(setup: Setup) -> dict[str, Any]:
    """Seconds and memory of a step of stage 1 on one long video, with gradient checkpointing."""
    from vsr1_core.recipes import SFTRecipe
    from vsr1_core.training.examples import build_examples
    from vsr1_core.training.runs import TrainingRun
    from vsr1_core.training.sft import SFTData, train_sft

    policy, embedder = setup.models_to_train()
    videos = setup.videos(4, setup.inputs.long)
    features, vectors = _features_and_vectors(policy, embedder, videos)
    rows = [_sft_row(i, len(videos)) for i in range(len(videos))]
    layouts = [f.layout for f in features.get([r["shown_video_id"] for r in rows])]
    examples = build_examples(policy, rows, layouts)
    data = SFTData(examples, features, vectors, {})
    recipe = SFTRecipe(batch_size=1, gradient_checkpointing=True, bf16=setup.device == "cuda", num_negatives=2)

    def train(steps: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            train_sft(policy, embedder, data, dataclasses.replace(recipe, steps=steps), TrainingRun(Path(folder)))

    return {"tokens_per_row": len(examples[0].prompt.token_ids), **_training_step(setup, train)}


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


def _training_step(setup: Setup, train: Callable[[int], None]) -> dict[str, Any]:
    """Seconds of one step after the first, which warms up, and the highest memory."""
    ends: list[float] = []
    hook = register_optimizer_step_post_hook(lambda *_: ends.append(setup.clock()))
    with PeakMemory(setup.device, resident_bytes) as memory:
        train(3)
    hook.remove()
    return {"step_s": (ends[-1] - ends[0]) / (len(ends) - 1), "peak_bytes": memory.peak_bytes}


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

    policy, embedder = setup.models() if changes.get("lora_rank") else setup.models_to_train()
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

    return {"beta": beta, "group": recipe.group_size, "turns": recipe.num_turns, **_training_step(setup, train)}


@part
@torch.no_grad()
def patch_embedding(setup: Setup) -> dict[str, Any]:
    """The vision tower's patch embedding as the published convolution and as the equal matrix product."""
    vision = setup.config.vision_config
    shape = (vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    dtype, count = setup.inference_dtype, 16_384 if setup.size == "2b" else 64
    layer = nn.Conv3d(3, vision.hidden_size, shape, stride=shape, device=setup.device, dtype=dtype)
    patches = torch.randn(count, 3, *shape, device=setup.device, dtype=dtype)
    convolution_s, wanted = _timed(setup, lambda: layer(patches).flatten(1))
    weight = layer.weight.flatten(1)
    product_s, made = _timed(setup, lambda: nn.functional.linear(patches.flatten(1), weight, layer.bias))
    difference = float((made - wanted).float().abs().max())
    return {"convolution_s": convolution_s, "product_s": product_s, "largest_difference": difference}


@part
def comparisons(setup: Setup) -> dict[str, Any]:
    """`make bench`'s comparisons with plain ways at this size, few rows each."""
    from tests.benchmarks.bench_latents import PARTS as COMPARISONS
    from tests.benchmarks.bench_latents import Bench, _parser

    few = ["--batch=16", "--plain-rows=1", "--queries=64", "--plain-queries=1", "--repeats=1", "--max-new-tokens=48"]
    if setup.size == "tiny":
        few = ["--batch=2", "--plain-rows=1", "--queries=2", "--plain-queries=1", "--repeats=1", "--max-new-tokens=4"]
    options = _parser().parse_args([*few, f"--device={setup.device}", f"--size={setup.size}"])
    options.clock = "wall"
    bench = Bench.of(options)
    return {"lines": [bench.title(), *(line for each in COMPARISONS for line in getattr(bench, each)())]}


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


@part
def vllm(setup: Setup) -> dict[str, Any]:
    """Whether vLLM writes the loop's own greedy text, and how fast."""
    if importlib.util.find_spec("vllm") is None:
        return {"skipped": "vllm is not installed"}
    from vsr1_core.models.qwen3_vl.vllm_writer import open_writer

    policy, _ = setup.models()
    features = policy.encoder.encode(list(setup.videos(4, setup.inputs.short).values()))
    prompts, shown = prompts_about(policy, features, setup.inputs.batch)
    settings = DecodeSettings(setup.inputs.text_tokens, 0.0, 0)
    loop = decode(policy, prompts, shown, settings, wants_refine=lambda _text: False)
    with tempfile.TemporaryDirectory() as folder:
        writer = open_writer(policy, Path(folder))
        started = setup.clock()
        written = writer.write(prompts, shown, settings)
        seconds = setup.clock() - started
    same = sum(a.token_ids == b.token_ids for a, b in zip(loop, written, strict=True))
    return {
        "rows": len(loop),
        "rows_with_equal_text": same,
        "tokens_per_s": sum(len(w.token_ids) for w in written) / seconds,
    }
