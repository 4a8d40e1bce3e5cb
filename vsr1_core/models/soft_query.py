"""The soft query modules P, R and A, which any policy contains, and what a checkpoint records about them.

H is the hidden size of the policy's language model, D the size of the corpus vectors, E the embedder's hidden size.
The structure and the names in a checkpoint are described in docs/method.md (soft query refinement).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vsr1_core.input_form import TEMPLATE, InputForm, VideoWrapper
from vsr1_core.models.weights import stored_shapes
from vsr1_core.recipes import MethodOptions
from vsr1_core.rows.files import read_json


@dataclass(frozen=True)
class SoftQueryConfig:
    """The method options that a checkpoint records beside its weights."""

    embedding_size: int
    """D, the size of the corpus vectors."""
    embedder_hidden_size: int
    """E, the hidden size of the embedder."""
    num_soft_tokens: int = 8
    """N, the soft tokens of one refinement."""
    accumulate: bool = True
    """False (compat): the query of a turn carries only the latents of that turn, not those of earlier turns."""
    seed_hidden: str = "post_norm"
    """Where h_1 is read: after the final norm, or before it (`pre_norm`, compat). h_2..h_N are always read after it."""
    system_prompt: str = ""
    embedder: str = ""
    """Digest, hub id or folder of the embedder that the policy searches with."""
    embedder_vector_size: int = 0
    """The size of the embedder's own vectors, if it projects its hidden states to another size; 0 means E."""
    form: InputForm = TEMPLATE
    """How the policy is asked."""

    @classmethod
    def recorded(cls, options: Mapping[str, Any]) -> SoftQueryConfig:
        """The options in the section `soft_query` of a checkpoint's config.json."""
        return cls(**{**options, "form": InputForm.recorded(options.get("form"))})

    def __post_init__(self) -> None:
        if self.seed_hidden not in ("post_norm", "pre_norm"):
            raise ValueError(f"seed_hidden must be 'post_norm' or 'pre_norm', not {self.seed_hidden!r}")


def soft_query_of(
    options: MethodOptions,
    hidden_size: int,
    vector_size: int,
    embedder: str,
    trained_with: VideoWrapper = "published",
) -> SoftQueryConfig:
    """The record of a new policy that is made with `options` for an embedder of hidden size E = `hidden_size`, whose
    vectors have the size D = `vector_size`. `embedder`: digest, hub id or folder of the embedder. `trained_with`: the
    wrapper of videos with which the policy's weights were trained."""
    own = {f.name: getattr(options, f.name) for f in fields(options) if f.name not in ("seed", "form")}
    own["form"] = options.form.resolved(trained_with)
    projected = vector_size if vector_size != hidden_size else 0
    return SoftQueryConfig(vector_size, hidden_size, embedder=embedder, embedder_vector_size=projected, **own)


CheckpointKind = Literal["own", "released", "plain"]


def checkpoint_kind(folder: Path) -> CheckpointKind:
    """What the folder of a policy holds: `own` (its config has the method's options), `released` (the soft query
    modules in the authors' form, which records no options), or `plain` (a model without these modules)."""
    if own_soft_query(folder):
        return "own"
    return "released" if any(map(is_soft_query, stored_shapes(folder))) else "plain"


def own_soft_query(folder: Path | str) -> SoftQueryConfig | None:
    """The soft query options in the config.json of a checkpoint folder; None for a published model, which has none."""
    options = read_json(Path(folder) / "config.json").get("soft_query")
    return SoftQueryConfig.recorded(options) if options else None


SOFT_QUERY_MODULES = [
    *("refine_projector", "refine_latent_input_projector", "refine_append_input_projector", "refine_gate"),
    "query_embedder_head",
]
"""Names of the modules. Their weights are float32 whatever the precision of the model, as in the authors' code: a list,
because transformers reads it as the attribute `_keep_in_fp32_modules_strict` of a model class."""


def soft_query_modules(hidden_size: int, soft: SoftQueryConfig) -> dict[str, nn.Module]:
    """The modules by their checkpoint names, with their starting weights, for a policy of hidden size H.

    The last layer of P (`refine_projector`) starts with zeros, those of R and A with the identity on the shared
    diagonal. `refine_gate` is unused, but the authors' checkpoints have it. `query_embedder_head` exists only if the
    embedder's vectors do not have the size D.
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


def in_own_precision(module: nn.Module, states: Tensor) -> Tensor:
    """`module(states)`, in the precision of its weights, also where autocast is on. Soft query modules have float32."""
    with torch.autocast(states.device.type, enabled=False):
        result: Tensor = module(states.to(next(module.parameters()).dtype))
    return result


@torch.no_grad()
def start_among_words(model: Any, policy_words: Tensor, embedder_words: Tensor, seed: int) -> bool:
    """Give new soft query modules a start at which latents look like words to those who read them.

    R and A map a normalised latent to the mean and the scale of the word vectors, `policy_words` [V, H] and
    `embedder_words` [V, E], and the last layer of P gets random weights, which `seed` decides, so that latents are not
    zero. Returns False, and changes nothing, if the last layer of P is not zero: the modules are trained already.
    """
    last = model.refine_projector[-1]
    if bool(last.weight.any()):
        return False
    for projector, words in (
        (model.refine_latent_input_projector, policy_words),
        (model.refine_append_input_projector, embedder_words),
    ):
        projector[1].weight.mul_(words.std(0).mean().to(projector[1].weight))
        projector[1].bias.copy_(words.mean(0))
    generator = torch.Generator().manual_seed(seed)
    last.weight.copy_(torch.randn(last.weight.shape, generator=generator) / last.in_features**0.5)
    return True


def is_soft_query(name: str) -> bool:
    """Whether a tensor of this name belongs to the soft query modules, and not to the family's own model."""
    return name.startswith(("refine_", "query_embedder_head."))


class SoftQueryMixin:
    """A mixin for a causal language model of transformers, whose `config.soft_query` holds the fields of a
    SoftQueryConfig.

    The modules are at the top level of the model, so that a checkpoint has them beside the model's own tensors.
    """

    config: Any

    def add_soft_query_modules(self, hidden_size: int) -> None:
        """Add the modules to the model. Call this at the end of the model's constructor."""
        for name, module in soft_query_modules(hidden_size, self.soft_query).items():
            for part in module.modules():
                part._is_hf_initialized = True  # keep the starting weights above: they are part of the method
            self.add_module(name, module)  # type: ignore[attr-defined]

    @property
    def soft_query(self) -> SoftQueryConfig:
        """The method's options. Raises ValueError for a model that is not a policy."""
        if not getattr(self.config, "soft_query", None):
            raise ValueError(
                "this model is not a policy: its config has no soft_query section; see vsr1_core.models.checkpoints"
            )
        return SoftQueryConfig.recorded(self.config.soft_query)

    @property
    def refine_parameters(self) -> list[nn.Parameter]:
        """The parameters of P, R, A and, if there is one, the query head. They have a learning rate of their own."""
        modules = [self.refine_projector, self.refine_latent_input_projector, self.refine_append_input_projector]  # type: ignore[attr-defined]
        if self.query_head is not None:
            modules.append(self.query_head)
        return [p for module in modules for p in module.parameters()]

    @property
    def query_head(self) -> nn.Module | None:
        """The linear layer to size D, if the embedder's vectors have another size; see `Embedder.with_head`."""
        return getattr(self, "query_embedder_head", None)

    def latent(self, hidden: Tensor) -> Tensor:
        """P: hidden states [..., H] -> soft tokens [..., D], in the precision of P."""
        return in_own_precision(self.refine_projector, hidden)  # type: ignore[attr-defined]

    def latent_input(self, latent: Tensor) -> Tensor:
        """R: soft tokens [..., D] -> the policy's next input embedding [..., H], in the precision of R."""
        return in_own_precision(self.refine_latent_input_projector, latent)  # type: ignore[attr-defined]

    def append_input(self, latent: Tensor) -> Tensor:
        """A: soft tokens [..., D] -> the embedder's input embeddings [..., E], in the precision of A."""
        return in_own_precision(self.refine_append_input_projector, latent)  # type: ignore[attr-defined]
