"""Models of published sizes with random weights, for benchmarks and the check on a GPU."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, set_seed
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from vsr1_core.models.qwen3_vl.embedder import Qwen3VLEmbedder
from vsr1_core.models.qwen3_vl.loaded import LoadedPolicy
from vsr1_core.models.qwen3_vl.policy import Policy, with_soft_query
from vsr1_core.models.qwen3_vl.vision import fast_vision
from vsr1_core.models.soft_query import SoftQueryConfig


def random_models(
    config: Qwen3VLConfig, tokenizer: PreTrainedTokenizerFast, device: str, dtype: torch.dtype
) -> tuple[LoadedPolicy, Qwen3VLEmbedder]:
    """A policy and an embedder of one size on `device`, with weights that are the same in every run."""
    set_seed(0)
    size = config.text_config.hidden_size
    with torch.device(device):
        # Not `.to(dtype)`: that would round the rotary frequencies, too.
        policy = Policy._from_config(with_soft_query(config, SoftQueryConfig(size, size)), dtype=dtype).eval()
        torch.nn.init.normal_(policy.refine_projector[3].weight, std=0.3)
        body = Qwen3VLModel._from_config(config, dtype=dtype).eval()
    for model in (policy.model, body):
        fast_vision(model).requires_grad_(False)
    return LoadedPolicy(policy, tokenizer), Qwen3VLEmbedder(body, tokenizer)


def config_2b(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """Qwen3-VL-2B's sizes; token ids are those of `tokenizer`, which may be smaller than the published one."""
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    text = {
        "vocab_size": 151_936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262_144,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5_000_000.0,
            "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "depth": 24,
        "num_heads": 16,
        "patch_size": 16,
        "out_hidden_size": 2048,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [5, 11, 17],
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
