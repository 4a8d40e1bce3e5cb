"""The search engine's model: text or video -> unit vector, and text plus latents -> unit vector (METHOD 3).

The embedding is the hidden state, after the final norm, of the last position of the chat template, L2-normalised.
"""

from __future__ import annotations

import functools
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from vsr1_core.models.batching import language_model_kwargs, left_padded
from vsr1_core.models.inputs import Prompt, VideoLayout, build_prompts
from vsr1_core.models.tensor_folder import TensorFolder
from vsr1_core.models.vision import VideoFeatures

INSTRUCTION = "Represent the user's input."
_MARK = "\u2063query\u2063"
_LAYOUTS_KEPT = 512


@dataclass(frozen=True)
class SplitQuery:
    """A rendered query in two parts: latents go between `before` and `after` (token ids)."""

    before: list[int]
    after: list[int]


def _conversation(content: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": [{"type": "text", "text": INSTRUCTION}]},
        {"role": "user", "content": content},
    ]


class Embedder:
    """A frozen or trainable Qwen3-VL body with its tokenizer. E is its hidden size.

    head: a policy's `query_embedder_head`, Linear(E, D), where the corpus vectors have another size than E. It turns
    every query, plain ones too, into the corpus' space; videos are embedded without it.
    """

    def __init__(self, model: Qwen3VLModel, tokenizer: PreTrainedTokenizerBase, head: nn.Module | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.head = head
        # The prompt depends on the layout alone, and few layouts occur: positions take 2 ms a prompt to work out.
        # Bounded: real videos have time marks of their own, and a prompt of 64 frames takes 300 KB.
        self.video_prompt = functools.lru_cache(_LAYOUTS_KEPT)(self._buildvideo_prompt)

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.text_config.hidden_size)

    def with_head(self, head: nn.Module | None) -> Embedder:
        """The same search engine for queries that go through `head` (None: as they are)."""
        return self if head is self.head else Embedder(self.model, self.tokenizer, head)

    @functools.cached_property
    def _template(self) -> tuple[str, str]:
        """What the chat template puts before and after the query's text."""
        rendered = self.tokenizer.apply_chat_template(
            _conversation([{"type": "text", "text": _MARK}]), tokenize=False, add_generation_prompt=True
        )
        if rendered.count(_MARK) != 1:
            raise ValueError("the embedder's chat template does not contain the query text exactly once")
        head, tail = rendered.split(_MARK)
        return head, tail

    @functools.cached_property
    def text_digest(self) -> str:
        """Digest of all that makes a query's text into tokens, 16 hex digits: chat template, instruction, tokenizer."""
        parts = [*self._template, self.tokenizer.backend_tokenizer.to_str()]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def split_query(self, query: str) -> SplitQuery:
        """Where latents go: right after the query text, before the template's closing tokens.

        Read off the template: it is rendered around a mark, so it does not matter how many tokens close it or
        whether the tokenizer appends an end-of-text token. Raises ValueError when the place cannot be found.
        """
        return self._split([query])[0]

    def _split(self, queries: Sequence[str]) -> list[SplitQuery]:
        head, tail = self._template
        befores = self.tokenizer([head + query for query in queries], add_special_tokens=False)["input_ids"]
        wholes = self.tokenizer([head + query + tail for query in queries])["input_ids"]
        for query, before, whole in zip(queries, befores, wholes, strict=True):
            if whole[: len(before)] != before or len(whole) == len(before):
                raise ValueError(
                    f"no place for latents after the query {query!r}: the tokens around its end merge in this template"
                )
        return [SplitQuery(b, whole[len(b) :]) for b, whole in zip(befores, wholes, strict=True)]

    def embed_queries(self, queries: Sequence[str], latents: Sequence[Tensor | None] | None = None) -> Tensor:
        """Unit vectors [B, E], or [B, D] with a head. `latents[b]` is [n_b, E] (already through A) or None;
        gradients flow to them.

        Rows are right-padded: with a causal model and plain positions 0..L-1 nothing before the padding changes.
        """
        parts = self._split(queries)
        soft = list(latents) if latents is not None else [None] * len(parts)
        embed = self.model.language_model.embed_tokens
        rows = [
            torch.cat(
                [embed(self._ids(p.before)), *([] if z is None else [z.to(embed.weight)]), embed(self._ids(p.after))]
            )
            for p, z in zip(parts, soft, strict=True)
        ]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        positions = torch.arange(padded.shape[1], device=padded.device).expand(3, len(rows), -1)
        hidden = self.model.language_model(inputs_embeds=padded, position_ids=positions, use_cache=False)
        last = torch.tensor([len(r) - 1 for r in rows], device=padded.device)
        pooled = hidden.last_hidden_state[torch.arange(len(rows), device=padded.device), last]
        if self.head is not None:
            pooled = self.head(pooled.to(next(self.head.parameters())))
        return torch.nn.functional.normalize(pooled.float(), dim=-1)

    def embed_videos(self, features: Sequence[VideoFeatures]) -> Tensor:
        """Unit vectors [B, E] of videos whose vision features are given."""
        prompts = [self.video_prompt(f.layout) for f in features]
        batch = left_padded(self.model, prompts, features, self.tokenizer.pad_token_id)
        hidden = self.model.language_model(**language_model_kwargs(batch), use_cache=False)
        return torch.nn.functional.normalize(hidden.last_hidden_state[:, -1].float(), dim=-1)

    def _buildvideo_prompt(self, layout: VideoLayout) -> Prompt:
        conversation = _conversation([{"type": "video"}])
        return build_prompts(self.tokenizer, self.model, [conversation], [layout], add_special_tokens=True)[0]

    def _ids(self, ids: list[int]) -> Tensor:
        return torch.tensor(ids, device=self.model.language_model.embed_tokens.weight.device)


class QueryVectors:
    """Vectors of plain queries by text, each embedded once: the embedder is frozen.

    In memory the key is the text, because an instance belongs to one embedder; at most `max_queries` are kept, the
    least recently used go first. With `disk` and `weights` (a digest of the embedder's weights and precision) they
    outlive the process; the key there is (weights, `Embedder.text_digest`, text): new weights, another chat template or
    another tokenizer make new keys, nothing else does. A head is part of a policy that may be learning: vectors behind
    one are never kept.
    """

    def __init__(
        self, embedder: Embedder, max_queries: int = 65_536, disk: TensorFolder | None = None, weights: str = ""
    ) -> None:
        if (disk is None) != (not weights):
            raise ValueError("query vectors on disk need both the folder and the weights' digest")
        self.embedder = embedder
        self.max_queries = max_queries
        self.disk = disk
        self.weights = weights
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    @torch.no_grad()
    def get(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Unit vectors [Q, D] in the order of `texts`; equal texts are embedded once."""
        if self.embedder.head is not None:
            return torch.cat(
                [self.embedder.embed_queries(texts[i : i + batch_size]) for i in range(0, len(texts), batch_size)]
            )
        found: dict[str, Tensor] = {}
        missing = []
        for text in dict.fromkeys(texts):
            vector = self._recall(text)
            if vector is None:
                missing.append(text)
            else:
                found[text] = vector
        for start in range(0, len(missing), batch_size):
            some = missing[start : start + batch_size]
            for text, vector in zip(some, self.embedder.embed_queries(some), strict=True):
                found[text] = self._keep(text, vector.clone())
                if self.disk is not None:
                    self.disk.put(self._key(text), {"vector": vector}, {})
        return torch.stack([found[text] for text in texts])

    def _recall(self, text: str) -> Tensor | None:
        if text in self._kept:
            self._kept.move_to_end(text)
            return self._kept[text]
        entry = None if self.disk is None else self.disk.get(self._key(text))
        if entry is None:
            return None
        device = self.embedder.model.language_model.embed_tokens.weight.device
        return self._keep(text, entry[0]["vector"].to(device))

    def _keep(self, text: str, vector: Tensor) -> Tensor:
        self._kept[text] = vector
        while len(self._kept) > self.max_queries:
            self._kept.popitem(last=False)
        return vector

    def _key(self, text: str) -> str:
        return f"query/{self.weights}/{self.embedder.text_digest}/{text}"
