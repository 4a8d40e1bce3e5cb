"""Models of published sizes with random weights, for benchmarks and the check on a GPU."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, set_seed
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from vsr1_core.models.qwen3_vl.embedder import Qwen3VLEmbedder
from vsr1_core.models.qwen3_vl.loaded import LoadedPolicy
from vsr1_core.models.qwen3_vl.policy import Policy, with_soft_query
from vsr1_core.models.qwen3_vl.random_folder import set_token_ids
from vsr1_core.models.qwen3_vl.sizes import published_config
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
    config = published_config("Qwen/Qwen3-VL-2B-Instruct")
    assert config is not None
    set_token_ids(config, tokenizer)
    return config
