"""What a model family offers: how its folders are opened, and which models it makes.

A family is a folder beside this file with a module `family` (see `registry`); it may offer embedders only. Letters for
sizes are those of `protocols`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vsr1_core.models.insertion import InsertionPlace
from vsr1_core.models.protocols import Embedder, PolicyModel, VideoEncoder
from vsr1_core.models.sizes import ModelSize
from vsr1_core.models.soft_query import SoftQueryConfig
from vsr1_core.recipes import TinyRecipe


class TinyModel(Embedder, Protocol):
    """An embedder that is trained from scratch, and from which a policy of the same family starts."""

    @property
    def encoder(self) -> VideoEncoder:
        """Its vision side, which is trained with it."""

    @property
    def vision_tower(self) -> nn.Module:
        """The weights behind `encoder`."""

    def embed_features(self, features: Sequence[Any]) -> Tensor:
        """As `embed_videos`, for videos that `encoder` has encoded."""

    def answer_logits(
        self, conversations: Sequence[Sequence[dict[str, Any]]], features: Sequence[Any], answers: Sequence[list[int]]
    ) -> Tensor:
        """Logits float32 [n, V] that predict the n tokens of all answers, one answer after another. `answers[b]` are
        the tokens that follow conversation b about the video of `features[b]`."""

    def new_policy(self, soft_query: SoftQueryConfig, seed: int) -> PolicyModel:
        """A policy that starts from these weights; `seed` decides the weights of the soft query modules."""


@runtime_checkable
class EmbedderFamily(Protocol):
    """A family that offers embedders. Every `folder` is a local folder with a config.json."""

    @property
    def name(self) -> str:
        """The name of its folder."""

    def load_embedder(self, folder: Path, device: str, dtype: torch.dtype, instruction: str) -> Embedder:
        """Load the frozen search engine, which gets `instruction` with queries unless its folder records one. Raises
        ValueError that names every missing, unexpected or misshaped tensor."""

    def embedder_sizes(self, folder: Path) -> tuple[int, int]:
        """(E, D) of the embedder in `folder`, read from its config."""

    def insertion_place(self, folder: Path) -> InsertionPlace:
        """Where the embedder in `folder` takes soft tokens, read from its tokenizer; no weight is loaded."""

    def model_size(self, folder: Path) -> ModelSize:
        """The size of the model in `folder`, computed from its config."""

    def published_size(self, model_id: str) -> ModelSize | None:
        """The size of a published model of this family that is not on this machine; None if it is not known."""


@runtime_checkable
class PolicyFamily(EmbedderFamily, Protocol):
    """A family that offers policies as well as embedders."""

    def load_policy(self, folder: Path, device: str, dtype: torch.dtype) -> PolicyModel:
        """Load a policy whose checkpoint has the soft query modules. Raises ValueError as `load_embedder` does."""

    def new_policy(
        self, folder: Path, soft_query: SoftQueryConfig, device: str, dtype: torch.dtype, seed: int = 42
    ) -> PolicyModel:
        """A published model with new soft query modules, whose weights `seed` decides, and the <REFINE> token."""

    def load_released_policy(
        self, folder: Path, *, training_file: Path, embedder: str, dtype: torch.dtype
    ) -> PolicyModel:
        """Load a policy in the authors' format, which records no options; `training_file` has its prompt."""

    def write_released_form(self, folder: Path, target: Path, base: Path) -> list[str]:
        """Write the policy of `folder` into `target` as the authors' code reads it; return what that does otherwise."""

    def write_released_embedder(self, folder: Path, target: Path) -> None:
        """Write the embedder of `folder` into `target` as the authors' code reads it in a checkpoint."""

    def with_text_writer(self, policy: Any, name: str, folder: Path, learns: bool = False) -> PolicyModel:
        """`policy` with text from the engine `name`, which keeps the weights in its own format in `folder`. `learns`:
        the policy is trained while the engine writes, which gets its weights by `TextWriter.take_weights`."""


@runtime_checkable
class TinyFamily(PolicyFamily, Protocol):
    """A family that makes models small enough to be trained from scratch on a CPU."""

    def load_embedder(self, folder: Path, device: str, dtype: torch.dtype, instruction: str) -> TinyModel:
        """As `EmbedderFamily.load_embedder`; a policy may start from the model that it returns."""

    def new_tiny(self, recipe: TinyRecipe, texts: Sequence[str], instruction: str) -> TinyModel:
        """A model with random weights (from torch's global generator) and a tokenizer that was trained on `texts`."""
