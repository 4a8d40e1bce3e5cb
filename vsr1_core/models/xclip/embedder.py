"""X-CLIP as the search engine's model, with soft tokens in its text tower.

A text is `<|startoftext|> words <|endoftext|>`; soft tokens go before the closing token, whose hidden state, after the
final norm and projected, is the embedding. X-CLIP's own text features also look at the video that they are compared
with (its prompt generator): an index needs vectors that do not, so that part is not used.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase, XCLIPModel
from transformers.masking_utils import create_causal_mask

from vsr1_core.models.protocols import VideoFrames
from vsr1_core.models.xclip.pixels import Normalisation, pixel_values


class XCLIPEmbedder:
    """A frozen X-CLIP behind `protocols.Embedder`. E is its text tower's width, D its projection's size."""

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

    @functools.cached_property
    def text_digest(self) -> str:
        """Of the tokenizer: there is no template."""
        return hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]

    def with_head(self, head: nn.Module | None) -> XCLIPEmbedder:
        return self if head is self.head else XCLIPEmbedder(self.model, self.tokenizer, self.scale, head)

    def embed_queries(self, queries: Sequence[str], latents: Sequence[Tensor | None] | None = None) -> Tensor:
        """Unit vectors [B, D]; `latents[b]` is [n_b, E] or None; gradients flow to them.

        The tower has a fixed number of positions (77 as published): a text is cut where it and its soft tokens would
        need more, as CLIP's own processor cuts texts. Rows are right-padded: the tower is causal, so nothing before the
        padding changes. Raises ValueError where the soft tokens alone leave no room for a text.
        """
        soft = list(latents) if latents is not None else [None] * len(queries)
        embed = self.model.text_model.embeddings.token_embedding
        rows = []
        for ids, z in zip(self._token_ids(queries), soft, strict=True):
            kept = self._cut(ids, 0 if z is None else len(z))
            words = embed(torch.tensor(kept, device=self.device))
            rows.append(words if z is None else torch.cat([words[:-1], z.to(words), words[-1:]]))
        pooled = self.model.text_projection(self._read(rows))
        if self.head is not None:
            pooled = self.head(pooled.to(next(self.head.parameters())))
        return F.normalize(pooled.float(), dim=-1)

    def _token_ids(self, queries: Sequence[str]) -> list[list[int]]:
        rows = self.tokenizer(list(queries))["input_ids"]
        for query, ids in zip(queries, rows, strict=True):
            if not ids or ids[-1] != self.tokenizer.eos_token_id:
                raise ValueError(
                    f"no place for latents after the query {query!r}: the embedder's tokenizer does not close it with "
                    f"{self.tokenizer.eos_token}"
                )
        return rows

    def _cut(self, ids: list[int], num_soft: int) -> list[int]:
        """The tokens that fit beside `num_soft` others; the last one always does."""
        positions = self.model.config.text_config.max_position_embeddings
        room = positions - num_soft - 1
        if room < 2:  # the opening token and one of the text
            raise ValueError(
                f"{num_soft} soft tokens leave no room for a query in a text tower of {positions} positions: use fewer "
                "turns or soft tokens, or a policy that keeps the last turn's alone (accumulate=False)"
            )
        return [*ids[:-1][:room], ids[-1]]

    def _read(self, rows: Sequence[Tensor]) -> Tensor:
        """The text tower over rows of input embeddings [L_b, E]: the hidden state [B, E] of each row's last one."""
        tower = self.model.text_model
        hidden = tower.embeddings(inputs_embeds=nn.utils.rnn.pad_sequence(list(rows), batch_first=True))
        mask = create_causal_mask(config=tower.config, inputs_embeds=hidden, attention_mask=None, past_key_values=None)
        output = tower.encoder(inputs_embeds=hidden, attention_mask=mask, is_causal=True)
        last = torch.tensor([len(row) - 1 for row in rows], device=hidden.device)
        return tower.final_layer_norm(output.last_hidden_state)[torch.arange(len(rows), device=hidden.device), last]

    def embed_videos(self, videos: Sequence[VideoFrames]) -> Tensor:
        """Unit vectors [B, D]. Of each video the tower sees so many frames as its config names, evenly spread."""
        vision = self.model.config.vision_config
        pixels = torch.stack([pixel_values(v, vision.num_frames, vision.image_size, self.scale) for v in videos])
        features = self.model.get_video_features(pixels.to(self.model.text_projection.weight)).pooler_output
        return F.normalize(features.float(), dim=-1)
