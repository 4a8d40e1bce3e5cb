"""Qwen3-VL as the model of the search engine. It maps a text, a text with latents, or a video to a unit vector.

The vector is the L2-normalised hidden state, after the final norm, at the last position of the chat template.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from vsr1_core.input_form import PUBLISHED, QUERY_INSTRUCTION, EmbedderForm
from vsr1_core.models.prompts import Prompt, extended
from vsr1_core.models.protocols import VideoFrames
from vsr1_core.models.qwen3_vl.batching import language_model_kwargs, left_padded
from vsr1_core.models.qwen3_vl.inputs import VideoLayout, build_prompts
from vsr1_core.models.qwen3_vl.loaded import LoadedPolicy
from vsr1_core.models.qwen3_vl.packed import num_shared, pack, pack_texts, packs, read
from vsr1_core.models.qwen3_vl.policy import policy_from_body
from vsr1_core.models.qwen3_vl.sizes import size_of
from vsr1_core.models.qwen3_vl.vision import VideoFeatures, VisionTower
from vsr1_core.models.sizes import ModelSize
from vsr1_core.models.soft_query import SoftQueryConfig, in_own_precision
from vsr1_core.models.text_tokens import MARK, TEXT_RULE, Rendered, render, template_ids

_LAYOUTS_KEPT = 512
_CLOSING_TOKENS = 6
"""The tokens that close a query in the published form: <|im_end|>, a line break, the three tokens that open the
assistant's turn, and <|endoftext|>. The authors count as many from the end, also where a query was cut."""


@dataclass(frozen=True)
class SplitQuery:
    """The token ids of a rendered query in two parts; latents are inserted between `before` and `after`."""

    before: list[int]
    after: list[int]


def _conversation(content: list[dict[str, Any]], instruction: str = QUERY_INSTRUCTION) -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": [{"type": "text", "text": instruction}]},
        {"role": "user", "content": content},
    ]


class Qwen3VLEmbedder:
    """A frozen or trainable Qwen3-VL body with its tokenizer; implements `family_protocols.TinyModel`.
    E is its hidden size, and the size of its vectors.

    head: the `query_embedder_head` of a policy, Linear(E, D), if the corpus vectors have another size than E. It maps
    every query, also a plain one, into the space of the corpus; videos are embedded without it.
    """

    def __init__(
        self,
        model: Qwen3VLModel,
        tokenizer: PreTrainedTokenizerBase,
        form: EmbedderForm = PUBLISHED,
        head: nn.Module | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.form = form
        self.head = head
        # The prompt depends only on the layout, and few layouts occur; computing positions takes 2 ms per prompt.
        # The cache is bounded: each real video has its own time marks, and a prompt of 64 frames takes 300 KB.
        self.video_prompt = functools.lru_cache(_LAYOUTS_KEPT)(self._build_video_prompt)

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.text_config.hidden_size)

    @property
    def embedding_size(self) -> int:
        return self.hidden_size

    @property
    def device(self) -> torch.device:
        return self.model.language_model.embed_tokens.weight.device

    @property
    def encoder(self) -> VisionTower:
        return VisionTower(self.model)

    @property
    def vision_tower(self) -> nn.Module:
        return self.model.visual

    @property
    def word_embeddings(self) -> nn.Parameter:
        return self.model.language_model.embed_tokens.weight

    @functools.cached_property
    def size(self) -> ModelSize:
        return size_of(self.model.config, self.model)

    @property
    def takes_pictures(self) -> bool:
        """True: it was trained on pictures and videos, and reads as many frames as there are."""
        return True

    def query_tokens(self, queries: Sequence[str]) -> list[int]:
        return [len(part.before) + len(part.after) for part in self._split(queries)]

    def video_size(self, frames: VideoFrames) -> tuple[int, int]:
        _, height, width, _ = frames.pixels.shape
        layout = self.encoder.layout(height, width, frames.timestamps_s)
        return self.encoder.num_patches(layout), len(self.video_prompt(layout).token_ids)

    def with_head(self, head: nn.Module | None) -> Qwen3VLEmbedder:
        """The same search engine, with queries going through `head` (None: without a head)."""
        return self if head is self.head else Qwen3VLEmbedder(self.model, self.tokenizer, self.form, head)

    @property
    def recorded(self) -> dict[str, Any]:
        """The form under `input_form`, as `loading.load_body` reads it."""
        return {"input_form": asdict(self.form)}

    @functools.cached_property
    def _template(self) -> tuple[str, str]:
        """What the chat template puts before and after the query's text."""
        conversation = _conversation([{"type": "text", "text": ""}], self.form.system_turn)
        head, tail = render(self.tokenizer, conversation).text.split(MARK)
        return head, tail

    @functools.cached_property
    def text_digest(self) -> str:
        """Digest (16 hex digits) of what makes tokens from a query's text: chat template, instruction, tokenizer."""
        parts = [*self._template, self.tokenizer.backend_tokenizer.to_str(), TEXT_RULE]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def split_query(self, query: str) -> SplitQuery:
        """Split a rendered query where latents are inserted: right after the query text, before the closing tokens.

        The place is found by rendering the template around a mark, so it does not matter how many tokens close it, or
        whether the tokenizer appends an end-of-text token. The query is words, whatever it spells. Raises ValueError
        if the place cannot be found.
        """
        return self._split([query])[0]

    def _cut(self, query: str, split: SplitQuery, max_tokens: int) -> SplitQuery:
        """`split`, or where it has more than `max_tokens` tokens, what the authors' code makes of it (compat): the
        tokenizer cuts the rendered text from its end, which takes the closing tokens with it, and the latents come
        before the last six of the tokens that are left."""
        if len(split.before) + len(split.after) <= max_tokens:
            return split
        head, tail = self._template
        [whole] = template_ids(self.tokenizer, [Rendered(head + MARK + tail, (query,))])
        kept = max_tokens - len(split.before) - len(split.after) + len(whole)
        ids = [*whole[:kept], *(split.before + split.after)[len(whole) :]]
        return SplitQuery(ids[:-_CLOSING_TOKENS], ids[-_CLOSING_TOKENS:])

    def _split(self, queries: Sequence[str]) -> list[SplitQuery]:
        head, tail = self._template
        befores = template_ids(self.tokenizer, [Rendered(head + MARK, (query,)) for query in queries])
        wholes = template_ids(
            self.tokenizer, [Rendered(head + MARK + tail, (query,)) for query in queries], add_special_tokens=True
        )
        for query, before, whole in zip(queries, befores, wholes, strict=True):
            if whole[: len(before)] != before or len(whole) == len(before):
                raise ValueError(
                    f"latents cannot be inserted after the query {query!r}, because in this template the tokens around "
                    "its end merge; change the end of the query"
                )
        return [SplitQuery(b, whole[len(b) :]) for b, whole in zip(befores, wholes, strict=True)]

    def embed_queries(
        self, queries: Sequence[str], latents: Sequence[Tensor | None] | None = None, max_tokens: int = 0
    ) -> Tensor:
        """Unit vectors [B, E], or [B, D] with a head. `latents[b]` is [n_b, E] (the output of A) or None; gradients
        flow to the latents. `max_tokens` cuts long queries (compat), see `_cut`.

        Rows are right-padded: in a causal model with plain positions 0..L-1, padding changes nothing before it.
        """
        parts = self._split(queries)
        if max_tokens:
            parts = [self._cut(query, part, max_tokens) for query, part in zip(queries, parts, strict=True)]
        pooled = self._last_states_of_texts(parts, list(latents) if latents is not None else [None] * len(parts))
        if self.head is not None:
            pooled = in_own_precision(self.head, pooled)
        return torch.nn.functional.normalize(pooled.float(), dim=-1)

    def _last_states_of_texts(self, parts: Sequence[SplitQuery], soft: Sequence[Tensor | None]) -> Tensor:
        """The hidden states [B, H] at the ends of texts with latents."""
        model = self.model.language_model
        if packs(model):
            own = [len(part.after) + (0 if z is None else len(z)) for part, z in zip(parts, soft, strict=True)]
            shared = num_shared([torch.tensor([part.before]) for part in parts], [int(not count) for count in own])
            start = model.embed_tokens(self._ids(parts[0].before[:shared]))
            return torch.cat(read(model, pack_texts(start, self._input_rows(parts, soft, shared))).states)
        rows = self._input_rows(parts, soft)
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        positions = torch.arange(padded.shape[1], device=padded.device).expand(3, len(rows), -1)
        hidden = model(inputs_embeds=padded, position_ids=positions, use_cache=False)
        last = torch.tensor([len(r) - 1 for r in rows], device=padded.device)
        return hidden.last_hidden_state[torch.arange(len(rows), device=padded.device), last]

    def _input_rows(self, parts: Sequence[SplitQuery], soft: Sequence[Tensor | None], start: int = 0) -> list[Tensor]:
        """The input embeddings [n_b, H] of texts with latents, from the token `start` on."""
        ids = [ids for part in parts for ids in (part.before[start:], part.after)]
        embeds = self.model.language_model.embed_tokens(self._ids(list(itertools.chain.from_iterable(ids))))
        ends = iter(embeds.split([len(some) for some in ids]))
        return [
            torch.cat([before, *([] if latents is None else [latents.to(embeds)]), after])
            for before, after, latents in zip(ends, ends, soft, strict=True)
        ]

    def embed_videos(self, videos: Sequence[VideoFrames], pass_bytes: float = math.inf) -> Tensor:
        """Unit vectors [B, E] of stored frames; all videos go through one pass of each tower, unless a single one takes
        more than `pass_bytes` in the vision tower.

        Raises ValueError if the sides of a frame are not multiples of patch size times merge size.
        """
        prepared = [self.encoder.prepare(frames) for frames in videos]
        return self.embed_features(self.encoder.encode(prepared, pass_bytes))

    def embed_features(self, features: Sequence[VideoFeatures]) -> Tensor:
        """Unit vectors [B, E] of videos from their vision features."""
        prompts = [self.video_prompt(f.layout) for f in features]
        last = torch.cat(self._states(prompts, features, [1] * len(prompts)))
        return torch.nn.functional.normalize(last.float(), dim=-1)

    def _states(
        self, prompts: Sequence[Prompt], features: Sequence[VideoFeatures], last: Sequence[int]
    ) -> list[Tensor]:
        """The hidden states [last[b], H] of the last tokens of each row."""
        model = self.model.language_model
        if packs(model):
            return read(model, pack(self.model, prompts, features, last)).states
        batch = left_padded(self.model, prompts, features, self.tokenizer.pad_token_id)
        hidden = model(**language_model_kwargs(batch), use_cache=False).last_hidden_state
        return [row[-count:] for row, count in zip(hidden, last, strict=True)]

    def _build_video_prompt(self, layout: VideoLayout) -> Prompt:
        conversation = _conversation([{"type": "video"}])
        wrapper = self.form.video_wrapper
        return build_prompts(
            self.tokenizer, self.model, [conversation], [layout], add_special_tokens=True, video_wrapper=wrapper
        )[0]

    def _ids(self, ids: list[int]) -> Tensor:
        return torch.tensor(ids, dtype=torch.long, device=self.device)

    def answer_logits(
        self,
        conversations: Sequence[Sequence[dict[str, Any]]],
        features: Sequence[VideoFeatures],
        answers: Sequence[list[int]],
    ) -> Tensor:
        """See `family_protocols.TinyModel`. The output layer is tied to the word embeddings."""
        layouts = [f.layout for f in features]
        prompts = build_prompts(
            self.tokenizer, self.model, conversations, layouts, video_wrapper=self.form.video_wrapper
        )
        rows = [extended(prompt, ids) for prompt, ids in zip(prompts, answers, strict=True)]
        of_answers = self._states(rows, features, [len(ids) + 1 for ids in answers])
        states = torch.cat([states[:-1] for states in of_answers])
        return (states @ self.word_embeddings.T).float()

    def new_policy(self, soft_query: SoftQueryConfig, seed: int) -> LoadedPolicy:
        return LoadedPolicy(policy_from_body(self.model, soft_query, seed), self.tokenizer)
