"""The weights of the policy: Qwen3-VL with the soft query modules at the top level of its checkpoint."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from vsr1_core.models.soft_query import SOFT_QUERY_MODULES, SoftQueryConfig, SoftQueryMixin


class Policy(SoftQueryMixin, Qwen3VLForConditionalGeneration):
    """Qwen3-VL with P, R and A. `config.soft_query` holds the fields of a SoftQueryConfig."""

    _keep_in_fp32_modules_strict = SOFT_QUERY_MODULES

    def __init__(self, config: Qwen3VLConfig) -> None:
        super().__init__(config)
        self.add_soft_query_modules(config.text_config.hidden_size)


def with_soft_query(config: Qwen3VLConfig, soft_query: SoftQueryConfig) -> Qwen3VLConfig:
    """A copy of `config` that describes a policy with the options `soft_query`."""
    copy = Qwen3VLConfig.from_dict(config.to_dict())
    copy.soft_query = asdict(soft_query)
    copy.architectures = ["Qwen3VLForConditionalGeneration"]
    return copy


def policy_from_body(body: nn.Module, soft_query: SoftQueryConfig, seed: int) -> Policy:
    """A policy that starts from the weights of a Qwen3-VL body (the tiny embedder); its language head is tied to the
    embeddings."""
    torch.manual_seed(seed)
    policy = Policy(with_soft_query(body.config, soft_query))
    policy.model.load_state_dict(body.state_dict())
    policy.tie_weights()
    return policy.eval()
