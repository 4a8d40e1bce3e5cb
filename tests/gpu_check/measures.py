"""The parts of the check that only run models, with random weights. No processes and no files here."""

from __future__ import annotations

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

from tests.benchmarks.corpora import random_frames
from tests.benchmarks.measuring import Clock, resident_bytes
from tests.benchmarks.sizes import config_2b, random_models
from tests.core import naive
from tests.core.tiny_models import query_text, small_config, tiny_tokenizer
from vsr1_core.models.decoding import decode
from vsr1_core.models.peak_memory import PeakMemory
from vsr1_core.models.prompts import Prompt
from vsr1_core.models.protocols import Decoded, DecodeSettings
from vsr1_core.models.qwen3_vl import reading as reading_module
from vsr1_core.models.qwen3_vl.embedder import Qwen3VLEmbedder
from vsr1_core.models.qwen3_vl.inputs import VideoPatches
from vsr1_core.models.qwen3_vl.loaded import LoadedPolicy
from vsr1_core.models.qwen3_vl.sizes import size_of
from vsr1_core.models.qwen3_vl.vision import VideoFeatures
from vsr1_core.reasoning.conversation import REFINE_TOKEN, build_messages

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

    def models_with_adapters(self) -> tuple[LoadedPolicy, Qwen3VLEmbedder]:
        """As a build trains adapters: all other weights have the dtype of inference, but for the soft query modules."""
        policy, embedder = self.models()
        for parameter in policy.model.refine_parameters:
            parameter.data = parameter.data.float()
        return policy, embedder

    def videos(self, count: int, num_frames: int) -> dict[str, VideoPatches]:
        side = self.inputs.side
        return {f"v{i}": random_frames(i, num_frames, side, side, self.config) for i in range(count)}


Part = Callable[[Setup], dict[str, Any]]
PARTS: dict[str, Part] = {}


def part(function: Part) -> Part:
    """Register a part under the name of its function; parts run in the order of their files."""
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
    vision_s, features = timed(setup, lambda: [policy.encoder.encode([video])[0] for video in videos])
    prompts, shown = prompts_about(policy, features, len(videos))
    tokens = sum(len(p.token_ids) for p in prompts)

    text_s, _ = timed(setup, lambda: policy.reading(prompts, shown, room=0))
    embed_s, _ = timed(setup, lambda: embedder.embed_features(features))
    size = size_of(setup.config)
    return {
        "tokens_per_video": tokens // len(videos),
        "vision_s_per_video": vision_s / len(videos),
        "prefill_tokens_per_s": tokens / text_s,
        "prefill_flops": 2 * size.text * tokens / text_s,
        "vision_flops": 2 * size.vision * sum(len(v.patches) for v in videos) / vision_s,
        "embedder_tokens_per_s": sum(len(f.tokens) for f in features) / embed_s,
    }


def timed(setup: Setup, work: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
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
        reading_s, _ = timed(setup, lambda: policy.reading(prompts, shown, room=0), repeats=1)
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
@torch.no_grad()
def patch_embedding(setup: Setup) -> dict[str, Any]:
    """The vision tower's patch embedding as the published convolution and as the equal matrix product."""
    vision = setup.config.vision_config
    shape = (vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    dtype, count = setup.inference_dtype, 16_384 if setup.size == "2b" else 64
    layer = nn.Conv3d(3, vision.hidden_size, shape, stride=shape, device=setup.device, dtype=dtype)
    patches = torch.randn(count, 3, *shape, device=setup.device, dtype=dtype)
    convolution_s, wanted = timed(setup, lambda: layer(patches).flatten(1))
    weight = layer.weight.flatten(1)
    product_s, made = timed(setup, lambda: nn.functional.linear(patches.flatten(1), weight, layer.bias))
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
