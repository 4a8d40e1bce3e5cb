"""The search engine's model: text or video -> unit vector, and text plus latents -> unit vector (METHOD 3).

The embedding is the hidden state, after the final norm, of the last position of the chat template, L2-normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from vsr1_core.models.batching import language_model_kwargs, left_padded
from vsr1_core.models.inputs import Prompt, VideoLayout, build_prompts
from vsr1_core.models.vision import VideoFeatures

INSTRUCTION = "Represent the user's input."
_MARK = "\u2063query\u2063"


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
    """A frozen or trainable Qwen3-VL body with its tokenizer. E is its hidden size."""

    def __init__(self, model: Qwen3VLModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._prompts: dict[VideoLayout, Prompt] = {}

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.text_config.hidden_size)

    def split_query(self, query: str) -> SplitQuery:
        """Where latents go: right after the query text, before the template's closing tokens.

        Read off the template: it is rendered around a mark, so it does not matter how many tokens close it or
        whether the tokenizer appends an end-of-text token. Raises ValueError when the place cannot be found.
        """
        rendered = self.tokenizer.apply_chat_template(
            _conversation([{"type": "text", "text": _MARK}]), tokenize=False, add_generation_prompt=True
        )
        if rendered.count(_MARK) != 1:
            raise ValueError("the embedder's chat template does not contain the query text exactly once")
        head, tail = rendered.split(_MARK)
        before = self.tokenizer(head + query, add_special_tokens=False)["input_ids"]
        whole = self.tokenizer(head + query + tail)["input_ids"]
        if whole[: len(before)] != before or len(whole) == len(before):
            raise ValueError(
                f"no place for latents after the query {query!r}: the tokens around its end merge in this template"
            )
        return SplitQuery(before, whole[len(before) :])

    def embed_queries(self, queries: Sequence[str], latents: Sequence[Tensor | None] | None = None) -> Tensor:
        """Unit vectors [B, E]. `latents[b]` is [n_b, E] (already through A) or None; gradients flow to them.

        Rows are right-padded: with a causal model and plain positions 0..L-1 nothing before the padding changes.
        """
        parts = [self.split_query(q) for q in queries]
        soft = list(latents) if latents is not None else [None] * len(parts)
        embed = self.model.language_model.embed_tokens
        rows = [
            torch.cat([embed(self._ids(p.before)), *([] if z is None else [z]), embed(self._ids(p.after))])
            for p, z in zip(parts, soft, strict=True)
        ]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        positions = torch.arange(padded.shape[1], device=padded.device).expand(3, len(rows), -1)
        hidden = self.model.language_model(inputs_embeds=padded, position_ids=positions, use_cache=False)
        last = torch.tensor([len(r) - 1 for r in rows], device=padded.device)
        pooled = hidden.last_hidden_state[torch.arange(len(rows), device=padded.device), last]
        return torch.nn.functional.normalize(pooled.float(), dim=-1)

    def embed_videos(self, features: Sequence[VideoFeatures]) -> Tensor:
        """Unit vectors [B, E] of videos whose vision features are given."""
        prompts = [self._video_prompt(f.layout) for f in features]
        batch = left_padded(self.model, prompts, features, self.tokenizer.pad_token_id)
        hidden = self.model.language_model(**language_model_kwargs(batch), use_cache=False)
        return torch.nn.functional.normalize(hidden.last_hidden_state[:, -1].float(), dim=-1)

    def _video_prompt(self, layout: VideoLayout) -> Prompt:
        """The prompt depends on the layout alone, and few layouts occur: positions take 2 ms a prompt to work out."""
        if layout not in self._prompts:
            conversation = _conversation([{"type": "video"}])
            self._prompts[layout] = build_prompts(self.tokenizer, self.model, [conversation], [layout])[0]
        return self._prompts[layout]

    def _ids(self, ids: list[int]) -> Tensor:
        return torch.tensor(ids, device=self.model.language_model.embed_tokens.weight.device)
