"""Models of the real classes that are small enough to compare with slow ways: random weights, own tokenizer, videos.

The weights are larger than their usual start, so that texts and latents differ from row to row.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from vsr1_core.models.prompts import Prompt
from vsr1_core.models.qwen3_vl.embedder import Qwen3VLEmbedder
from vsr1_core.models.qwen3_vl.inputs import VideoPatches, build_prompts, video_patches
from vsr1_core.models.qwen3_vl.loaded import LoadedPolicy
from vsr1_core.models.qwen3_vl.policy import Policy, with_soft_query
from vsr1_core.models.qwen3_vl.tiny import tiny_config
from vsr1_core.models.qwen3_vl.tokenizer import train_tokenizer
from vsr1_core.models.qwen3_vl.vision import VideoFeatures, encode_videos, fast_vision
from vsr1_core.models.soft_query import SoftQueryConfig
from vsr1_core.reasoning.conversation import REFINE_TOKEN, answer_text, build_messages
from vsr1_core.recipes import TinyRecipe

RECIPE = TinyRecipe(hidden_size=48, num_layers=3, num_heads=4, vision_hidden_size=32, vision_depth=2, patch_size=8)
COLOURS, SHAPES = ("red", "green", "blue", "golden"), ("circle", "square", "ring", "bar")
TEXTS = [
    *(f"a {c} {s} moves left on a black background before a blue ring" for c in COLOURS for s in SHAPES),
    *(answer_text(f"from 0.0 to {n}.5 seconds a ring grows.", True, 0.0, n + 0.5) for n in range(10)),
    answer_text("the video shows a bar, not a ring.", False),
    "Represent the user's input. Query: Retrieved video: <0.5 seconds> system user assistant",
]


@functools.cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS * 4, 700)


def small_config(*, grouped_heads: bool = True, num_levels: int = 2, **text: Any) -> Qwen3VLConfig:
    """Like the 2B model in kind: fewer key than query heads, two deepstack levels."""
    config = tiny_config(RECIPE, tiny_tokenizer()).to_dict()
    config["text_config"].update({"num_key_value_heads": 2 if grouped_heads else 4, **text})
    config["vision_config"]["deepstack_visual_indexes"] = list(range(num_levels))
    return Qwen3VLConfig.from_dict(config)


def spread(model: torch.nn.Module, seed: int, scale: float = 0.15) -> None:
    """Random weights of a size at which the output depends on everything in the input."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if "norm" in name and name.endswith("weight") else scale * noise)


def tiny_policy(
    seed: int = 0,
    embedding_size: int = 48,
    embedder_size: int = 48,
    config: Qwen3VLConfig | None = None,
    **soft_query: Any,
) -> LoadedPolicy:
    soft = SoftQueryConfig(embedding_size, embedder_size, **soft_query)
    config = with_soft_query(config or small_config(), soft)
    policy = Policy(config).eval()
    spread(policy, seed)
    for name in ("refine_projector", "refine_latent_input_projector", "refine_append_input_projector"):
        spread(policy.get_submodule(name), seed + 1, scale=0.6)  # large, or a chain of latents forgets its beginning
    policy.tie_weights()
    fast_vision(policy.model)
    return LoadedPolicy(policy, tiny_tokenizer())


def tiny_embedder(seed: int = 1, config: Qwen3VLConfig | None = None) -> Qwen3VLEmbedder:
    model = Qwen3VLModel(config or small_config()).eval()
    spread(model, seed)
    model.requires_grad_(False)
    return Qwen3VLEmbedder(fast_vision(model), tiny_tokenizer())


def random_video(seed: int, config: Qwen3VLConfig, max_pairs: int = 4) -> VideoPatches:
    """Frames of random colours; number, size and times differ with the seed."""
    rng = np.random.default_rng(seed)
    frames = 2 * int(rng.integers(1, max_pairs + 1))
    height, width = (16 * int(n) for n in rng.integers(1, 4, 2))
    pixels = rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    return video_patches(pixels, (np.arange(frames) * 1.3 + rng.random()).tolist(), config)


def query_text(seed: int) -> str:
    words = f"a {COLOURS[seed % 4]} {SHAPES[seed // 4 % 4]} moves left"
    return " before a blue ring ".join([words] * (1 + seed % 3))


@torch.no_grad()
def prompts_with_videos(policy: LoadedPolicy, seeds: range) -> tuple[list[Prompt], list[VideoFeatures]]:
    """One prompt a seed, each about a video of its own."""
    videos = [random_video(seed, policy.model.config) for seed in seeds]
    features = [encode_videos(policy.model.model, [video])[0] for video in videos]
    conversations = [build_messages(query_text(seed)) for seed in seeds]
    layouts = [f.layout for f in features]
    return build_prompts(policy.tokenizer, policy.model.model, conversations, layouts), features


def write_published(folder: Path, tie: bool = True, extra_rows: int = 0, seed: int = 0) -> Path:
    """A published Qwen3-VL at tiny size: no soft query modules, and no <REFINE> in its tokenizer."""
    tokenizer = tiny_tokenizer()
    config = small_config().to_dict()
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = tie
    config["text_config"]["vocab_size"] = len(tokenizer) + extra_rows
    torch.manual_seed(seed)
    Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_dict(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / file
        path.write_text(path.read_text().replace(REFINE_TOKEN, "<|was_free|>"))
    return folder
