"""The sizes of Qwen3-VL models: of any folder from its config, and of the published models from their known shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from vsr1_core.models.sizes import ModelSize

_VISION_SMALL = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
_VISION_LARGE = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
_SHAPES: Mapping[str, tuple[int, int, int, int, bool, Mapping[str, Any]]] = {
    "2B": (2048, 28, 16, 6144, True, _VISION_SMALL),
    "4B": (2560, 36, 32, 9728, True, _VISION_SMALL),
    "8B": (4096, 36, 32, 12288, False, _VISION_LARGE),
}
"""Hidden size, layers, heads, intermediate size, tied embeddings, vision, from the published config.json files."""


def size_of(config: Qwen3VLConfig, model: nn.Module | None = None) -> ModelSize:
    """The size of the model that `config` describes. Parameters are counted in `model`, which has a vision tower
    `visual`; without it, the model is built on the meta device, where it takes no memory."""
    if model is None:
        with torch.device("meta"):
            model = Qwen3VLForConditionalGeneration(config)
    text, tower = config.text_config, config.vision_config
    vision = sum(p.numel() for name, p in model.named_parameters() if "visual." in name)
    return ModelSize(
        text=sum(p.numel() for p in model.parameters()) - vision,
        vision=vision,
        hidden_size=text.hidden_size,
        num_layers=text.num_hidden_layers,
        intermediate_size=text.intermediate_size,
        cache_size=2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim,
        attention_size=text.num_attention_heads * text.head_dim,
        vocab_size=text.vocab_size,
        num_levels=1 + len(tower.deepstack_visual_indexes),
        vision_hidden_size=tower.hidden_size,
        vision_intermediate_size=tower.intermediate_size,
        patch_values=tower.in_channels * tower.temporal_patch_size * tower.patch_size**2,
        patches_per_token=tower.spatial_merge_size**2,
    )


def published_config(name: str) -> Qwen3VLConfig | None:
    """The configuration of a published model by its hub id; None if its shapes are not known."""
    size = next((size for size in _SHAPES if name.startswith("Qwen/Qwen3-VL") and f"-{size}" in name), None)
    if size is None:
        return None
    hidden, layers, heads, intermediate, tied, vision = _SHAPES[size]
    text = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": intermediate,
        "vocab_size": 151_936,
        "max_position_embeddings": 262_144,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5_000_000.0,
            "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": tied,
    }
    vision = {**vision, "out_hidden_size": hidden, "num_position_embeddings": 2304}
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)
