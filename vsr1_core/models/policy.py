"""The policy: Qwen3-VL with the soft query modules of METHOD 3 at the top level of its checkpoint.

Decoding text and latents is `models.decoding`; reading and writing checkpoints is `models.checkpoints`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor, nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from vsr1_core.recipes import MethodOptions


@dataclass(frozen=True)
class SoftQueryConfig:
    """What a checkpoint records beside its weights. D: the corpus vectors' size; E: the embedder's hidden size."""

    embedding_size: int
    embedder_hidden_size: int
    num_soft_tokens: int = 8
    accumulate: bool = True
    """False (compat): a turn's query carries only its own latents, not those of earlier turns."""
    seed_hidden: str = "post_norm"
    """Where h_1 is read: after the final norm, or `pre_norm` (compat); h_2..h_N are always after it."""
    system_prompt: str = ""
    embedder: str = ""

    def __post_init__(self) -> None:
        if self.seed_hidden not in ("post_norm", "pre_norm"):
            raise ValueError(f"seed_hidden must be 'post_norm' or 'pre_norm', not {self.seed_hidden!r}")


def soft_query_of(options: MethodOptions, size: int, embedder: str) -> SoftQueryConfig:
    """What a new policy records that is made with `options` for an embedder of hidden size `size`, whose vectors have
    that size, too. `embedder`: its digest, hub id or folder."""
    own = {f.name: getattr(options, f.name) for f in fields(options) if f.name != "seed"}
    return SoftQueryConfig(size, size, embedder=embedder, **own)


def soft_query_modules(hidden_size: int, embedding_size: int, embedder_hidden_size: int) -> dict[str, nn.Module]:
    """The modules of METHOD 3 by their checkpoint names, with their starting weights."""
    projector = nn.Sequential(
        nn.Linear(hidden_size, embedding_size),
        nn.LayerNorm(embedding_size),
        nn.GELU(),
        nn.Linear(embedding_size, embedding_size),
    )
    nn.init.zeros_(projector[3].weight)
    nn.init.zeros_(projector[3].bias)
    gate = nn.Linear(hidden_size, 1)
    nn.init.zeros_(gate.weight)
    nn.init.zeros_(gate.bias)
    modules: dict[str, nn.Module] = {
        "refine_projector": projector,
        "refine_latent_input_projector": _input_projector(embedding_size, hidden_size),
        "refine_append_input_projector": _input_projector(embedding_size, embedder_hidden_size),
        "refine_gate": gate,
    }
    if embedding_size != embedder_hidden_size:
        modules["query_embedder_head"] = nn.Linear(embedder_hidden_size, embedding_size)
    return modules


def _input_projector(size: int, out_size: int) -> nn.Sequential:
    linear = nn.Linear(size, out_size)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.LayerNorm(size), linear)


class Policy(Qwen3VLForConditionalGeneration):
    """Qwen3-VL plus P, R and A. `config.soft_query` holds a SoftQueryConfig's fields."""

    def __init__(self, config: Qwen3VLConfig) -> None:
        super().__init__(config)
        soft = self.soft_query
        modules = soft_query_modules(config.text_config.hidden_size, soft.embedding_size, soft.embedder_hidden_size)
        for name, module in modules.items():
            for part in module.modules():
                part._is_hf_initialized = True  # keep the starting weights above: they are part of the method
            self.add_module(name, module)

    @property
    def soft_query(self) -> SoftQueryConfig:
        if not getattr(self.config, "soft_query", None):
            raise ValueError("this model's config has no soft_query section; see vsr1_core.models.checkpoints")
        return SoftQueryConfig(**self.config.soft_query)

    @property
    def refine_parameters(self) -> list[nn.Parameter]:
        """The parameters of P, R, A and the query head where there is one: they have a learning rate of their own."""
        modules = [self.refine_projector, self.refine_latent_input_projector, self.refine_append_input_projector]
        if self.query_head is not None:
            modules.append(self.query_head)
        return [p for module in modules for p in module.parameters()]

    @property
    def query_head(self) -> nn.Module | None:
        """Linear(E, D) where the corpus vectors have another size than the embedder; see `Embedder.with_head`."""
        return getattr(self, "query_embedder_head", None)

    def latent(self, hidden: Tensor) -> Tensor:
        """P: hidden states [..., H] -> soft tokens [..., D]."""
        return self.refine_projector(hidden)

    def latent_input(self, latent: Tensor) -> Tensor:
        """R: soft tokens [..., D] -> the policy's next input embedding [..., H]."""
        return self.refine_latent_input_projector(latent)

    def append_input(self, latent: Tensor) -> Tensor:
        """A: soft tokens [..., D] -> the embedder's input embeddings [..., E]."""
        return self.refine_append_input_projector(latent)


def with_soft_query(config: Qwen3VLConfig, soft_query: SoftQueryConfig) -> Qwen3VLConfig:
    """A copy of `config` that describes a policy."""
    copy = Qwen3VLConfig.from_dict(config.to_dict())
    copy.soft_query = asdict(soft_query)
    copy.architectures = ["Qwen3VLForConditionalGeneration"]
    return copy


def policy_from_body(body: nn.Module, soft_query: SoftQueryConfig, seed: int) -> Policy:
    """A policy that starts from a Qwen3-VL body's weights (the tiny embedder's); the head is tied to its embeddings."""
    torch.manual_seed(seed)
    policy = Policy(with_soft_query(body.config, soft_query))
    policy.model.load_state_dict(body.state_dict())
    policy.tie_weights()
    return policy.eval()
