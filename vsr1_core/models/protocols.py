"""What the method asks of a model family: an `Embedder` to search with, and a `PolicyModel` that verifies and refines.

Search, training and stages know models by these protocols alone. A family is a folder beside this file with a module
`family` (see `registry`); it may offer embedders only. Sizes: E is the width of an embedder's input space, where soft
tokens are inserted; D the size of its vectors; H the hidden size of a policy's language model; N the number of soft
tokens; B rows of a batch; L tokens of the longest row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from vsr1_core.models.prompts import Prompt
from vsr1_core.models.sizes import ModelSize
from vsr1_core.models.soft_query import SoftQueryConfig
from vsr1_core.recipes import TinyRecipe


@dataclass(frozen=True)
class VideoFrames:
    """A video as it is stored: pixels uint8 [T, H, W, 3], and the source time of each frame in seconds, [T]."""

    pixels: np.ndarray
    timestamps_s: Sequence[float]


class Embedder(Protocol):
    """The search engine's model: text, or text and soft tokens, or a video -> a unit vector of size D.

    Soft tokens are vectors of size E. They enter the text tower beside the token embeddings, right after the query's
    text and before whatever closes it, and gradients flow through the tower to them.

        embedder = load_embedder("models/embedder")
        vectors = embedder.embed_queries(["a person opens a fridge"])          # [1, D]
        refined = embedder.embed_queries(["a person opens a fridge"], [soft])  # soft: [n, E]
        videos = embedder.embed_videos([VideoFrames(pixels, times)])           # [1, D]
    """

    @property
    def model(self) -> nn.Module:
        """All weights of the embedder, for moving, freezing and saving them."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that is saved with the weights."""

    @property
    def head(self) -> nn.Module | None:
        """What queries go through last, where the corpus' vectors have another size; see `with_head`."""

    @property
    def hidden_size(self) -> int:
        """E, the width of the input space that soft tokens are written into."""

    @property
    def embedding_size(self) -> int:
        """The size of the vectors that the model itself makes of queries and videos."""

    @property
    def device(self) -> torch.device:
        """Where the weights are, and the vectors that come out."""

    @property
    def text_digest(self) -> str:
        """Digest, 16 hex digits, of all but the weights that decides a query's vector: template and tokenizer."""

    def with_head(self, head: nn.Module | None) -> Embedder:
        """The same search engine for queries that go through `head` (None: as they are); videos never do."""

    def embed_queries(self, queries: Sequence[str], latents: Sequence[Tensor | None] | None = None) -> Tensor:
        """Unit vectors float32 [B, D] of `queries`, in order. `latents[b]`: soft tokens [n_b, E], or None.

        Differentiable where gradients are on. Raises ValueError for a query after which soft tokens have no place.
        """

    def embed_videos(self, videos: Sequence[VideoFrames]) -> Tensor:
        """Unit vectors float32 [B, D] of `videos`, in order.

        A family that wants another number or size of frames chooses and resizes them itself. Raises ValueError for
        frames that it cannot use.
        """


class VideoFeatures(Protocol):
    """A video as a policy reads it, computed once.

    tokens: [n, H] in time order, the same number for each mark of `layout`. layout: what a prompt needs to know of the
    video, made by the same encoder; its `marks_s` are the seconds that the prompt names.
    """

    @property
    def tokens(self) -> Tensor:
        """[n, H], n a multiple of the number of time marks."""

    @property
    def layout(self) -> Any:
        """Its `marks_s` are seconds, [marks]; all else is the family's own."""

    @property
    def num_bytes(self) -> int:
        """Memory that all of its tensors take."""

    def copied(self) -> VideoFeatures:
        """The same values in memory of their own: what an encoder gives may be views of a whole batch."""


class VideoEncoder(Protocol):
    """The vision side of a policy: frames -> the family's input -> features. The input is the family's own type."""

    @property
    def device(self) -> torch.device:
        """Where the weights are, and the features that come out."""

    def prepare(self, frames: VideoFrames) -> Any:
        """The model's input. ValueError for frames of a size that it cannot take."""

    def layout(self, height: int, width: int, timestamps_s: Sequence[float]) -> Any:
        """The layout of frames of height x width pixels at `timestamps_s` [T] seconds, without reading any frame."""

    def num_patches(self, video: Any) -> int:
        """How large the input of `prepare` is; passes are bounded by the sum."""

    def encode(self, videos: Sequence[Any]) -> list[Any]:
        """The features of several inputs in one pass, in order. Differentiable where gradients are on."""

    def digest(self) -> str:
        """16 hex digits for all that features depend on beside the frames: weights, precision, configuration."""

    def stored(self, feature: Any) -> tuple[dict[str, Tensor], dict[str, object]]:
        """A feature as named tensors and a note in JSON types, for a file."""

    def restored(self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> Any:
        """What `stored` was given, on the encoder's device."""


@dataclass(frozen=True)
class DecodeSettings:
    """How text and latents are decoded.

    max_new_tokens: the limit of a text. temperature: 0 is greedy. num_soft_tokens: N; 0 makes no latents, and a row
    ends with its text.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    num_soft_tokens: int = 8


@dataclass
class Decoded:
    """One row's outcome.

    token_ids: the sampled tokens, a stop token and a <REFINE> of the policy's own included. log_probs: of each of them,
    at temperature 1. text: what they say. latents: [N, D], or None where the row did not refine.
    """

    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    text: str = ""
    latents: Tensor | None = None
    matched_probability: float | None = None
    """P(matched) / (P(matched) + P(not_matched)) where the answer's first differing token is chosen."""

    @property
    def num_text_tokens(self) -> int:
        """Sampled tokens, a stop token and a <REFINE> of the policy's own among them."""
        return len(self.token_ids)

    @property
    def num_latent_tokens(self) -> int:
        """N, or 0 where the row did not refine."""
        return 0 if self.latents is None else len(self.latents)


class TextWriter(Protocol):
    """Who writes the rows' text. Latents are not its business."""

    def write(
        self,
        prompts: Sequence[Prompt],
        features: Sequence[Any],
        settings: DecodeSettings,
        generator: torch.Generator | None = None,
    ) -> list[Decoded]:
        """Each row's tokens (stop token included), their log-probabilities, text and decision, in order; no latents."""


class Reading(Protocol):
    """Prompts that a policy has read, to be continued by one input at a time. Rows that are done leave the batch."""

    rows: list[int]
    """The rows still in the batch, in its order, by their numbers in the order of the prompts."""
    hidden: Tensor
    """[B, H] after the final norm, at the last position of each row."""
    seed: Tensor
    """[B, H] what h_1 is read from: `hidden`, or (compat) the states before the final norm."""

    def keep(self, kept: Sequence[int]) -> list[int]:
        """Let all rows but those at the places `kept` (ascending) go. Returns the old places in the new order."""

    def step(self, embeds: Tensor) -> None:
        """One decoding step: one input embedding per row, embeds [B, H]; append to the key-value cache, advance every
        row's position by 1."""


class SoftQueryModel(Protocol):
    """The weights of a policy as an nn.Module: a causal language model of transformers with `SoftQueryMixin`."""

    config: Any
    lm_head: nn.Module
    refine_gate: nn.Module

    @property
    def soft_query(self) -> SoftQueryConfig:
        """The method's options, as the checkpoint records them."""

    @property
    def query_head(self) -> nn.Module | None:
        """Where the embedder's vectors have another size than the corpus': the layer between them."""

    @property
    def refine_parameters(self) -> list[nn.Parameter]:
        """The parameters of P, R, A and the query head, which have a learning rate of their own."""

    def latent(self, hidden: Tensor) -> Tensor:
        """P: hidden states [..., H] -> soft tokens [..., D]."""

    def latent_input(self, latent: Tensor) -> Tensor:
        """R: soft tokens [..., D] -> the policy's next input embedding [..., H]."""

    def append_input(self, latent: Tensor) -> Tensor:
        """A: soft tokens [..., D] -> the embedder's input embeddings [..., E]."""

    def __getattr__(self, name: str) -> Any:
        """All else that an nn.Module has: parameters, train, eval, to, ..."""


class PolicyModel(Protocol):
    """A policy with its tokenizer: it verifies a video for a query, grounds the moment, and writes soft tokens.

    policy = load_policy("models/policy")
    [feature] = policy.encoder.encode([policy.encoder.prepare(VideoFrames(pixels, times))])
    prompts = policy.prompts([build_messages("a person opens a fridge")], [feature.layout])
    [row] = decode(policy, prompts, [feature], DecodeSettings(), wants_refine=lambda text: True)
    row.text, row.latents  # what it wrote, and [N, D] soft tokens
    """

    @property
    def model(self) -> SoftQueryModel:
        """All weights, for training, moving and saving them."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """It spells <REFINE> as one token."""

    @property
    def source(self) -> str:
        """The folder or hub id that it was loaded from; empty for one that was just made."""

    @property
    def writer(self) -> TextWriter | None:
        """Who writes its text in place of the decoding loop, with the same weights."""

    @property
    def encoder(self) -> VideoEncoder:
        """Its vision side; encoders of equal digests give equal features."""

    @property
    def vision_tower(self) -> nn.Module:
        """The weights behind `encoder`."""

    @property
    def text_model(self) -> nn.Module:
        """The language model without its head, whose linear layers adapters go beside."""

    @property
    def end_tokens(self) -> set[int]:
        """The tokens that end a row's text: the stop tokens and <REFINE>."""

    def prompts(self, conversations: Sequence[Sequence[dict[str, Any]]], layouts: Sequence[Any]) -> list[Prompt]:
        """One prompt a conversation, up to the assistant's turn. `layouts[b]` is that of its video, None without one.

        Raises ValueError where a conversation and its layout disagree about whether there is a video.
        """

    def reading(self, prompts: Sequence[Prompt], features: Sequence[Any], room: int) -> AbstractContextManager[Reading]:
        """Prefill: one pass over all prompts and their videos. `room`: how many steps are expected. For inference."""

    def teacher_forced(
        self, prompts: Sequence[Prompt], features: Sequence[Any], *, refining: Sequence[int], num_soft_tokens: int
    ) -> tuple[Tensor, Tensor]:
        """Hidden states [B, L, H] of whole rows (prompt and answer), left-padded, and the latents [R, N, D] of the rows
        `refining`, whose last token is <REFINE>. Gradients flow through everything."""

    def frozen_copy(self) -> PolicyModel:
        """The policy as it stands, without gradients. It shares the vision tower, which does not learn with it."""

    def with_writer(self, writer: TextWriter | None) -> PolicyModel:
        """The same policy whose text is written by `writer` (None: by the decoding loop)."""


class TinyModel(Embedder, Protocol):
    """An embedder that is trained from scratch, and that a policy of the same family starts from."""

    @property
    def encoder(self) -> VideoEncoder:
        """Its vision side, which learns with it."""

    @property
    def vision_tower(self) -> nn.Module:
        """The weights behind `encoder`."""

    @property
    def word_embeddings(self) -> nn.Parameter:
        """[V, H], the language model's input embeddings, which its output is tied to."""

    def embed_features(self, features: Sequence[Any]) -> Tensor:
        """As `embed_videos`, of videos that `encoder` has encoded."""

    def answer_logits(
        self, conversations: Sequence[Sequence[dict[str, Any]]], features: Sequence[Any], answers: Sequence[list[int]]
    ) -> Tensor:
        """Logits float32 [n, V] at the positions before each answer's tokens, all answers one after another, where
        `answers[b]` are the tokens that follow conversation b about the video of `features[b]`."""

    def new_policy(self, soft_query: SoftQueryConfig, seed: int) -> PolicyModel:
        """A policy that starts from these weights; `seed` decides those of the soft query modules."""


@runtime_checkable
class EmbedderFamily(Protocol):
    """A family that offers embedders. Folders are local ones with a config.json."""

    @property
    def name(self) -> str:
        """The name of its folder."""

    def load_embedder(self, folder: Path, device: str, dtype: torch.dtype) -> Embedder:
        """The frozen search engine in `folder`. ValueError names every missing, unexpected or misshaped tensor."""

    def embedder_sizes(self, folder: Path) -> tuple[int, int]:
        """(E, D) of the embedder in `folder`, off its config alone."""

    def model_size(self, folder: Path) -> ModelSize:
        """How large the model in `folder` is, off its config alone."""

    def published_size(self, model_id: str) -> ModelSize | None:
        """How large a published model of this family is that is not on this machine; None where that is not known."""


@runtime_checkable
class PolicyFamily(EmbedderFamily, Protocol):
    """A family that offers policies, too."""

    def load_policy(self, folder: Path, device: str, dtype: torch.dtype) -> PolicyModel:
        """A policy whose checkpoint has the soft query modules. ValueError as `load_embedder` has it."""

    def new_policy(
        self, folder: Path, soft_query: SoftQueryConfig, device: str, dtype: torch.dtype, seed: int = 42
    ) -> PolicyModel:
        """A published model with fresh soft query modules, whose weights `seed` decides, and the <REFINE> token."""

    def load_released_policy(
        self, folder: Path, *, training_file: Path, embedder: str, dtype: torch.dtype
    ) -> PolicyModel:
        """A policy in the authors' form, which holds no options; `training_file` is the SFT file with its prompt."""

    def with_text_writer(self, policy: Any, name: str, folder: Path) -> PolicyModel:
        """`policy` whose text the engine `name` writes; the engine's own form of the weights is kept in `folder`."""


@runtime_checkable
class TinyFamily(PolicyFamily, Protocol):
    """A family that makes models small enough to be trained from scratch on a CPU."""

    def load_embedder(self, folder: Path, device: str, dtype: torch.dtype) -> TinyModel:
        """As any family does; a policy may start from what it gives."""

    @property
    def query_instruction(self) -> str:
        """What its embedder is told before every query."""

    def new_tiny(self, recipe: TinyRecipe, texts: Sequence[str]) -> TinyModel:
        """A model with random weights (torch's global generator) whose tokenizer learned to spell `texts`."""
