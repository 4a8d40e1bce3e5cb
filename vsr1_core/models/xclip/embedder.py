"""X-CLIP as the model of the search engine, with soft tokens in its text tower.

A text is `<|startoftext|> words <|endoftext|>`. Soft tokens are inserted before the closing token; the hidden state of
the closing token, after the final norm and the projection, is the embedding. The text features of X-CLIP itself also
depend on the video with which they are compared (its prompt generator). An index needs vectors that do not, so that
part is not used.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase, XCLIPModel
from transformers.masking_utils import create_causal_mask

from vsr1_core.models.protocols import VideoFrames
from vsr1_core.models.sizes import ModelSize
from vsr1_core.models.soft_query import in_own_precision
from vsr1_core.models.text_tokens import TEXT_RULE, closed_ids
from vsr1_core.models.xclip.pixels import Normalisation, pixel_values


def size_of(model: XCLIPModel) -> ModelSize:
    """The size of `model`. A video becomes one vector, which no text model reads."""
    text, vision = model.config.text_config, model.config.vision_config
    num_text = sum(p.numel() for p in (*model.text_model.parameters(), *model.text_projection.parameters()))
    return ModelSize(
        text=num_text,
        vision=sum(p.numel() for p in model.parameters()) - num_text,
        hidden_size=text.hidden_size,
        num_layers=text.num_hidden_layers,
        intermediate_size=text.intermediate_size,
        cache_size=0,
        attention_size=text.hidden_size,
        vocab_size=text.vocab_size,
        num_levels=1,
        vision_hidden_size=vision.hidden_size,
        vision_intermediate_size=vision.intermediate_size,
        patch_values=vision.num_channels * vision.patch_size**2,
        patches_per_token=vision.num_frames * (vision.image_size // vision.patch_size) ** 2,
    )


class XCLIPEmbedder:
    """A frozen X-CLIP; implements `protocols.Embedder`. E is the width of its text tower, D that of its projection."""

    def __init__(
        self,
        model: XCLIPModel,
        tokenizer: PreTrainedTokenizerBase,
        scale: Normalisation | None = None,
        head: nn.Module | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.scale = scale or Normalisation()
        self.head = head

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.text_config.hidden_size)

    @property
    def embedding_size(self) -> int:
        return int(self.model.config.projection_dim)

    @property
    def device(self) -> torch.device:
        return self.model.text_projection.weight.device

    @property
    def word_embeddings(self) -> Tensor:
        return self.model.text_model.embeddings.token_embedding.weight

    @functools.cached_property
    def size(self) -> ModelSize:
        return size_of(self.model)

    @property
    def takes_pictures(self) -> bool:
        """False: it mixes a fixed number of frames, and was trained on moving ones only."""
        return False

    def query_tokens(self, queries: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self._token_ids(queries)]

    def video_size(self, frames: VideoFrames) -> tuple[int, int]:
        vision = self.model.config.vision_config
        return vision.num_frames * (vision.image_size // vision.patch_size) ** 2, 1

    @functools.cached_property
    def text_digest(self) -> str:
        """Digest (16 hex digits) of the tokenizer; X-CLIP has no template."""
        parts = [self.tokenizer.backend_tokenizer.to_str(), TEXT_RULE]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def with_head(self, head: nn.Module | None) -> XCLIPEmbedder:
        return self if head is self.head else XCLIPEmbedder(self.model, self.tokenizer, self.scale, head)

    @property
    def recorded(self) -> dict[str, Any]:
        """Empty: X-CLIP has no template and no instruction."""
        return {}

    def embed_queries(
        self, queries: Sequence[str], latents: Sequence[Tensor | None] | None = None, max_tokens: int = 0
    ) -> Tensor:
        """Unit vectors [B, D]; `latents[b]` is [n_b, E] or None, and gradients flow to the latents.

        The tower has a fixed number of positions (77 as published). If a text and its soft tokens need more, the text
        is cut, as CLIP's own processor does. Rows are right-padded: the tower is causal, so padding changes nothing
        before it. Raises ValueError if the soft tokens leave no room for a text, and for `max_tokens`: no policy with
        that limit was trained with X-CLIP.
        """
        if max_tokens:
            raise ValueError(f"X-CLIP cuts queries at its own length, and cannot cut them at {max_tokens} tokens")
        soft = list(latents) if latents is not None else [None] * len(queries)
        embed = self.model.text_model.embeddings.token_embedding
        rows = []
        for ids, z in zip(self._token_ids(queries), soft, strict=True):
            kept = self._cut(ids, 0 if z is None else len(z))
            words = embed(torch.tensor(kept, device=self.device))
            rows.append(words if z is None else torch.cat([words[:-1], z.to(words), words[-1:]]))
        pooled = self.model.text_projection(self._read(rows))
        if self.head is not None:
            pooled = in_own_precision(self.head, pooled)
        return F.normalize(pooled.float(), dim=-1)

    def _token_ids(self, queries: Sequence[str]) -> list[list[int]]:
        rows = closed_ids(self.tokenizer, queries)
        for query, ids in zip(queries, rows, strict=True):
            if not ids or ids[-1] != self.tokenizer.eos_token_id:
                raise ValueError(
                    f"latents cannot be inserted after the query {query!r}, because the tokenizer of the embedder does "
                    f"not close it with {self.tokenizer.eos_token}; use the tokenizer that belongs to the model"
                )
        return rows

    def _cut(self, ids: list[int], num_soft: int) -> list[int]:
        """The tokens that fit beside `num_soft` soft tokens; the closing token is always kept."""
        positions = self.model.config.text_config.max_position_embeddings
        room = positions - num_soft - 1
        if room < 2:  # the opening token and one of the text
            raise ValueError(
                f"{num_soft} soft tokens leave no room for a query in a text tower of {positions} positions; use fewer "
                "turns or soft tokens, or a policy that keeps only those of the last turn (accumulate=False)"
            )
        return [*ids[:-1][:room], ids[-1]]

    def _read(self, rows: Sequence[Tensor]) -> Tensor:
        """Read rows of input embeddings [L_b, E] with the text tower; returns the last hidden state of each row,
        [B, E]."""
        tower = self.model.text_model
        hidden = tower.embeddings(inputs_embeds=nn.utils.rnn.pad_sequence(list(rows), batch_first=True))
        mask = create_causal_mask(config=tower.config, inputs_embeds=hidden, attention_mask=None, past_key_values=None)
        output = tower.encoder(inputs_embeds=hidden, attention_mask=mask, is_causal=True)
        last = torch.tensor([len(row) - 1 for row in rows], device=hidden.device)
        return tower.final_layer_norm(output.last_hidden_state)[torch.arange(len(rows), device=hidden.device), last]

    def embed_videos(self, videos: Sequence[VideoFrames], pass_bytes: float = math.inf) -> Tensor:
        """Unit vectors [B, D]. The tower reads as many frames of each video as its config says, evenly spaced, so that
        no video takes more than another, and `pass_bytes` is not needed."""
        vision = self.model.config.vision_config
        pixels = torch.stack([pixel_values(v, vision.num_frames, vision.image_size, self.scale) for v in videos])
        features = self.model.get_video_features(pixels.to(self.model.text_projection.weight)).pooler_output
        return F.normalize(features.float(), dim=-1)
