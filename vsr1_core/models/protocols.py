"""What the method needs from a model family: an `Embedder` to search with, a `PolicyModel` to verify and to refine.

Search, training and stages use models only through these protocols. `family_protocols`
says what a model family offers. Sizes: E is the width of an embedder's input space, where soft
tokens are inserted; D is the size of its vectors; H is the hidden size of a policy's language model; N is the number of
soft tokens; B is the number of rows in a batch; L is the number of tokens in the longest row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from vsr1_core.models.prompts import Prompt
from vsr1_core.models.sizes import ModelSize
from vsr1_core.models.soft_query import SoftQueryConfig


@dataclass(frozen=True)
class VideoFrames:
    """A video as it is stored: pixels uint8 [T, H, W, 3], and the source time of each frame in seconds, [T]."""

    pixels: np.ndarray
    timestamps_s: Sequence[float]


class Embedder(Protocol):
    """The model of the search engine. It maps a text, a text with soft tokens, or a video to a unit vector of size D.

    Soft tokens are vectors of size E. They enter the text tower beside the token embeddings, right after the query's
    text and before the tokens that close it, and gradients flow through the tower to them.

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
        """The last layer for queries, if the vectors of the corpus have another size; see `with_head`."""

    @property
    def hidden_size(self) -> int:
        """E, the width of the input space in which soft tokens are inserted."""

    @property
    def embedding_size(self) -> int:
        """The size of the vectors that the model itself makes from queries and videos, without a head."""

    @property
    def device(self) -> torch.device:
        """The device of the weights and of the vectors that the model returns."""

    @property
    def word_embeddings(self) -> Tensor:
        """[V, E]: the vectors of the tokens, beside which soft tokens enter the text tower."""

    @property
    def text_digest(self) -> str:
        """Digest (16 hex digits) of everything but the weights that decides a query's vector: template, tokenizer."""

    @property
    def recorded(self) -> dict[str, Any]:
        """What the record of its folder says about its inputs, as JSON types; empty if the family has no input form."""

    @property
    def size(self) -> ModelSize:
        """The shapes on which the memory of a pass depends."""

    @property
    def takes_pictures(self) -> bool:
        """Whether a picture, as a video of one frame, gets a vector that can be compared with those of videos."""

    def query_tokens(self, queries: Sequence[str]) -> list[int]:
        """How many tokens each query takes in a pass, without soft tokens."""

    def video_size(self, frames: VideoFrames) -> tuple[int, int]:
        """(patches, tokens of the prompt) of a video in a pass. Raises ValueError for frames that it cannot use."""

    def with_head(self, head: nn.Module | None) -> Embedder:
        """The same search engine, with queries (and no videos) going through `head`; None: without a head."""

    def embed_queries(
        self, queries: Sequence[str], latents: Sequence[Tensor | None] | None = None, max_tokens: int = 0
    ) -> Tensor:
        """Unit vectors float32 [B, D] of `queries`, in order. `latents[b]`: soft tokens [n_b, E], or None.

        Differentiable if gradients are on. `max_tokens`: see `InputForm.query_tokens`. Raises ValueError if soft tokens
        cannot be inserted after a query.
        """

    def embed_videos(self, videos: Sequence[VideoFrames], pass_bytes: float = math.inf) -> Tensor:
        """Unit vectors float32 [B, D] of `videos`, in order. `pass_bytes`: see `VideoEncoder.encode`.

        A family selects and resizes frames itself as it needs them. Raises ValueError for frames that it cannot use.
        """


class VideoFeatures(Protocol):
    """A video as a policy reads it, computed once.

    tokens: [n, H] in time order, with the same number of tokens for each time mark of `layout`. layout: what a prompt
    needs to know about the video, made by the same encoder; its `marks_s` are the seconds that the prompt names.
    """

    @property
    def tokens(self) -> Tensor:
        """[n, H]; n is a multiple of the number of time marks."""

    @property
    def layout(self) -> Any:
        """A value of the family's own type, with the time marks `marks_s` in seconds, one per group of frames."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all its tensors."""

    def copied(self) -> VideoFeatures:
        """A copy in memory of its own: the features that an encoder returns may be views of a whole batch."""


class VideoEncoder(Protocol):
    """The vision side of a policy. It maps frames to an input of the family's own type, and this input to features."""

    @property
    def device(self) -> torch.device:
        """The device of the weights and of the features that the encoder returns."""

    def prepare(self, frames: VideoFrames) -> Any:
        """The input of the model. Raises ValueError for frames of a size that the model cannot read."""

    def layout(self, height: int, width: int, timestamps_s: Sequence[float]) -> Any:
        """The layout of frames of height x width pixels at `timestamps_s` [T] seconds, without reading any frame."""

    @property
    def size(self) -> ModelSize:
        """The shapes on which the memory of a pass depends."""

    @property
    def number_bytes(self) -> int:
        """Bytes of a weight and of an activation."""

    def num_patches(self, layout: Any) -> int:
        """The number of patches of a video, from its layout or from an input that `prepare` made."""

    def encode(self, videos: Sequence[Any], pass_bytes: float = math.inf) -> list[Any]:
        """The features of several inputs, in order, in one pass. Differentiable if gradients are on.

        A single video whose pass would take more than `pass_bytes` is encoded in several passes, where the family can
        do that without another result than rounding."""

    def digest(self) -> str:
        """Digest (16 hex digits) of what decides features beside the frames: weights, precision, configuration."""

    def stored(self, feature: Any) -> tuple[dict[str, Tensor], dict[str, object]]:
        """A feature as named tensors and a note of JSON types, to be written to a file."""

    def restored(self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> Any:
        """The feature that `stored` wrote as `tensors` and `note`, on the device of the encoder."""


@dataclass(frozen=True)
class DecodeSettings:
    """How text and latents are decoded."""

    max_new_tokens: int = 256
    """The largest number of text tokens in a row."""
    temperature: float = 0.0
    """Temperature of sampling; 0 is greedy decoding."""
    num_soft_tokens: int = 8
    """N, the number of latents of a row that refines; with 0, every row ends with its text."""


@dataclass
class Decoded:
    """What was decoded for one row."""

    token_ids: list[int] = field(default_factory=list)
    """The sampled tokens, including a stop token and a <REFINE> that the policy wrote itself."""
    log_probs: list[float] = field(default_factory=list)
    """The log-probability of each sampled token at temperature 1."""
    text: str = ""
    """The text of the tokens, without the stop token."""
    latents: Tensor | None = None
    """[N, D], or None if the row did not refine."""
    matched_probability: float | None = None
    """P(matched) / (P(matched) + P(not_matched)) at the token where the two answers differ; None without a decision."""

    @property
    def num_text_tokens(self) -> int:
        """The number of sampled tokens, including a stop token and a <REFINE> that the policy wrote itself."""
        return len(self.token_ids)

    @property
    def num_latent_tokens(self) -> int:
        """N, or 0 if the row did not refine."""
        return 0 if self.latents is None else len(self.latents)


class TextWriter(Protocol):
    """An engine that writes the text of rows in place of the decoding loop. It makes no latents."""

    def write(
        self,
        prompts: Sequence[Prompt],
        features: Sequence[Any],
        settings: DecodeSettings,
        generator: torch.Generator | None = None,
    ) -> list[Decoded]:
        """One result per row, in order: its tokens (stop token included), their log-probabilities, the text and the
        probability of a match, without latents."""

    def take_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Write with these weights from now on. `weights`: (name in a checkpoint, tensor) of the whole policy."""

    def close(self) -> None:
        """Give back the memory that the engine holds; it writes nothing more."""


class Reading(Protocol):
    """Prompts that a policy has read and that are continued by one input at a time. Finished rows leave the batch."""

    rows: list[int]
    """The rows that are still in the batch, in its order; a row is the index of its prompt."""
    hidden: Tensor
    """[B, H]: the state after the final norm at the last position of each row."""
    seed: Tensor
    """[B, H]: the state from which h_1 is read, which is `hidden` or (compat) the state before the final norm."""

    def keep(self, kept: Sequence[int]) -> list[int]:
        """Drop all rows but those at the places `kept` (ascending). Returns the old places in the new order."""

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
        """The layer from the embedder's vectors to those of the corpus, if the two have different sizes."""

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
        """Everything else that an nn.Module has: parameters, train, eval, to, ..."""


class PolicyModel(Protocol):
    """A policy with its tokenizer. It verifies a video for a query, grounds the moment, and writes soft tokens.

    Example:
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
        """The tokenizer, which spells <REFINE> as one token."""

    @property
    def writer(self) -> TextWriter | None:
        """The engine that writes its text with the same weights; None for the decoding loop."""

    @property
    def encoder(self) -> VideoEncoder:
        """Its vision side. Encoders with equal digests make equal features."""

    @property
    def vision_tower(self) -> nn.Module:
        """The weights behind `encoder`."""

    @property
    def size(self) -> ModelSize:
        """The shapes on which the memory of a pass depends."""

    @property
    def text_model(self) -> nn.Module:
        """The language model without its head; adapters are attached to its linear layers."""

    @property
    def end_tokens(self) -> set[int]:
        """The tokens that end a row's text: the stop tokens and <REFINE>."""

    def prompts(self, conversations: Sequence[Sequence[dict[str, Any]]], layouts: Sequence[Any]) -> list[Prompt]:
        """One prompt per conversation, up to the assistant's turn. `layouts[b]` is the layout of its video, or None.

        Raises ValueError if a conversation and its layout disagree about whether there is a video.
        """

    def reading(self, prompts: Sequence[Prompt], features: Sequence[Any], room: int) -> Reading:
        """Read all prompts and their videos in one pass (prefill), for inference. `room`: expected number of steps."""

    def teacher_forced(
        self,
        prompts: Sequence[Prompt],
        features: Sequence[Any],
        *,
        last: Sequence[int],
        refining: Sequence[int],
        num_soft_tokens: int,
    ) -> tuple[list[Tensor], Tensor]:
        """Read whole rows (prompt and answer). Returns the hidden states [n_b, H] of the last n_b = last[b] tokens of
        each row, and the latents [R, N, D] of the rows `refining`, whose last token is <REFINE>. Gradients flow through
        everything."""

    def teacher_forced_answers(
        self,
        prompts: Sequence[Prompt],
        features: Sequence[Any],
        answers: Sequence[Sequence[int]],
        *,
        refining: Sequence[int],
        num_soft_tokens: int,
    ) -> tuple[list[Tensor], Tensor]:
        """As `teacher_forced`, where many answers follow the same prompt: each prompt is read once. `answers[b]`: the
        tokens that follow prompts[b]. Returns hidden states [1 + n_b, H] of each row, at the end of the prompt and at
        each token of its answer, and the latents [R, N, D]."""

    def frozen_copy(self) -> PolicyModel:
        """A copy of the policy as it is now, without gradients. It shares the vision tower, which is not trained."""

    def with_writer(self, writer: TextWriter | None) -> PolicyModel:
        """The same policy, with text from `writer` (None: from the decoding loop)."""
