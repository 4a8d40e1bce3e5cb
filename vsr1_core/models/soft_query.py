"""The soft query modules P, R and A, in whichever policy they stand, and what a checkpoint records of them.

H is the hidden size of the policy's language model, D the size of the corpus' vectors, E the embedder's hidden size.
The structure and the names in a checkpoint are described in docs/method.md (soft query refinement).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vsr1_core.recipes import MethodOptions
from vsr1_core.rows.files import read_json


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
    embedder_vector_size: int = 0
    """The size of the embedder's own vectors where it projects its hidden states to another size; 0 means E."""

    def __post_init__(self) -> None:
        if self.seed_hidden not in ("post_norm", "pre_norm"):
            raise ValueError(f"seed_hidden must be 'post_norm' or 'pre_norm', not {self.seed_hidden!r}")


def soft_query_of(options: MethodOptions, hidden_size: int, vector_size: int, embedder: str) -> SoftQueryConfig:
    """What a new policy records that is made with `options` for an embedder of hidden size E = `hidden_size`, whose
    vectors have the size D = `vector_size`. `embedder`: its digest, hub id or folder."""
    own = {f.name: getattr(options, f.name) for f in fields(options) if f.name != "seed"}
    projected = vector_size if vector_size != hidden_size else 0
    return SoftQueryConfig(vector_size, hidden_size, embedder=embedder, embedder_vector_size=projected, **own)


def own_soft_query(folder: Path | str) -> SoftQueryConfig | None:
    """What a checkpoint folder's config.json records of its soft query; None for a published model, which has none."""
    options = read_json(Path(folder) / "config.json").get("soft_query")
    return SoftQueryConfig(**options) if options else None


def soft_query_modules(hidden_size: int, soft: SoftQueryConfig) -> dict[str, nn.Module]:
    """The modules by their checkpoint names, with their starting weights, for a policy of hidden size H.

    P (`refine_projector`) ends with zeros, R and A with the identity on the shared diagonal. `refine_gate` is unused:
    the authors' checkpoints have it. `query_embedder_head` is there only where the embedder's vectors do not have the
    size D.
    """
    embedding_size, vector_size = soft.embedding_size, soft.embedder_vector_size or soft.embedder_hidden_size
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
        "refine_append_input_projector": _input_projector(embedding_size, soft.embedder_hidden_size),
        "refine_gate": gate,
    }
    if embedding_size != vector_size:
        modules["query_embedder_head"] = nn.Linear(vector_size, embedding_size)
    return modules


def _input_projector(size: int, out_size: int) -> nn.Sequential:
    linear = nn.Linear(size, out_size)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.LayerNorm(size), linear)


def is_soft_query(name: str) -> bool:
    """Whether a tensor of this name belongs to the soft query modules and not to the family's own model."""
    return name.startswith(("refine_", "query_embedder_head."))


class SoftQueryMixin:
    """Mixed into a causal language model of transformers, whose `config.soft_query` holds a SoftQueryConfig's fields.

    The modules stand at the top level of the model, so that a checkpoint has them beside the model's own tensors.
    """

    config: Any

    def add_soft_query_modules(self, hidden_size: int) -> None:
        """Give the model its modules, to be called at the end of its constructor."""
        for name, module in soft_query_modules(hidden_size, self.soft_query).items():
            for part in module.modules():
                part._is_hf_initialized = True  # keep the starting weights above: they are part of the method
            self.add_module(name, module)  # type: ignore[attr-defined]

    @property
    def soft_query(self) -> SoftQueryConfig:
        """The method's options. ValueError for a model that is no policy."""
        if not getattr(self.config, "soft_query", None):
            raise ValueError("this model's config has no soft_query section; see vsr1_core.models.checkpoints")
        return SoftQueryConfig(**self.config.soft_query)

    @property
    def refine_parameters(self) -> list[nn.Parameter]:
        """The parameters of P, R, A and the query head where there is one: they have a learning rate of their own."""
        modules = [self.refine_projector, self.refine_latent_input_projector, self.refine_append_input_projector]  # type: ignore[attr-defined]
        if self.query_head is not None:
            modules.append(self.query_head)
        return [p for module in modules for p in module.parameters()]

    @property
    def query_head(self) -> nn.Module | None:
        """Linear to size D where the embedder's vectors have another size; see `Embedder.with_head`."""
        return getattr(self, "query_embedder_head", None)

    def latent(self, hidden: Tensor) -> Tensor:
        """P: hidden states [..., H] -> soft tokens [..., D]."""
        return self.refine_projector(hidden)  # type: ignore[attr-defined]

    def latent_input(self, latent: Tensor) -> Tensor:
        """R: soft tokens [..., D] -> the policy's next input embedding [..., H]."""
        return self.refine_latent_input_projector(latent)  # type: ignore[attr-defined]

    def append_input(self, latent: Tensor) -> Tensor:
        """A: soft tokens [..., D] -> the embedder's input embeddings [..., E]."""
        return self.refine_append_input_projector(latent)  # type: ignore[attr-defined]
