"""Qwen3-VL at a size that can be trained on a laptop: the real classes with small numbers. No training here."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast, Qwen3VLConfig

from vsr1_core.recipes import TinyRecipe


def tiny_config(recipe: TinyRecipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """The configuration of the tiny policy and embedder. The sum of the three rotary sections is half of head_dim."""
    head_dim = recipe.hidden_size // recipe.num_heads
    half = head_dim // 2
    spatial = half // 3
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in _TOKENS}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": recipe.hidden_size,
        "intermediate_size": recipe.hidden_size * 3,
        "num_hidden_layers": recipe.num_layers,
        "num_attention_heads": recipe.num_heads,
        "num_key_value_heads": recipe.num_heads,
        "head_dim": head_dim,
        "max_position_embeddings": 4096,
        "initializer_range": INITIALIZER_RANGE,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [half - 2 * spatial, spatial, spatial],
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {
        "hidden_size": recipe.vision_hidden_size,
        "intermediate_size": recipe.vision_hidden_size * 3,
        "depth": recipe.vision_depth,
        "num_heads": 4,
        "patch_size": recipe.patch_size,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": recipe.hidden_size,
        "num_position_embeddings": 64,
        "initializer_range": INITIALIZER_RANGE,
        "deepstack_visual_indexes": [0],
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )


INITIALIZER_RANGE = 0.06
"""Standard deviation of the weights of small layers. The published 0.02 is for a width of 2048, at which a layer keeps
the scale of its input."""
_TOKENS = ("image_pad", "video_pad", "vision_start", "vision_end")
