"""The one decoding loop: text, then soft query tokens, on one key-value cache, all rows of a batch together.

A row's next input is either a sampled token's embedding or R(z_{k-1}). A row that has what it needs leaves the batch
at once. A prompt and its video are read once, also when several rows sample from the same one; `teacher_forced` is
the differentiable form of the same thing. Text may also come from elsewhere (`TextWriter`, such as `vllm_writer`'s):
then the loop reads prompt and text in one pass and goes on with the latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor
from transformers import Cache, PreTrainedTokenizerBase

from vsr1_core.models.batching import Batch, language_model_kwargs, left_padded
from vsr1_core.models.inputs import Prompt, extended
from vsr1_core.models.kv_cache import InPlaceCache, rows_that_fill_holes, same_prompts
from vsr1_core.models.policy import Policy
from vsr1_core.models.prefix import SharedPrefix, layer_inputs
from vsr1_core.models.vision import VideoFeatures
from vsr1_core.reasoning.conversation import MATCH_TO_SPAN, REFINE_TOKEN


@dataclass(frozen=True)
class DecodeSettings:
    """temperature 0 is greedy. num_soft_tokens 0 makes no latents: the row ends with its text."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    num_soft_tokens: int = 8


@dataclass
class Decoded:
    """One row's outcome. log_probs: of each sampled token at temperature 1; latents: [N, D] or None."""

    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    text: str = ""
    latents: Tensor | None = None
    matched_probability: float | None = None
    """P(matched) / (P(matched) + P(not_matched)) where the answer's first differing token is chosen."""

    @property
    def num_text_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_latent_tokens(self) -> int:
        return 0 if self.latents is None else len(self.latents)


@dataclass(frozen=True)
class DecisionTokens:
    """Where the tokenizer's spellings of the two answers part: after one of `prefixes` comes `matched` or
    `not_matched`. Several, because `<answer>` is spelled differently after a space, a line break and nothing."""

    prefixes: tuple[tuple[int, ...], ...]
    matched: int
    not_matched: int
    match_to_span: tuple[int, ...]
    """What a match goes on with behind a prefix, up to where its first number stands."""

    def follow(self, token_ids: Sequence[int]) -> bool:
        """Whether the token after `token_ids` decides."""
        return any(tuple(token_ids[-len(prefix) :]) == prefix for prefix in self.prefixes)

    def as_match(self, token_ids: Sequence[int]) -> list[int] | None:
        """`token_ids` up to their first decision, then a match up to its span; None where nothing was decided."""
        decided = (n for n in range(len(token_ids) + 1) if self.follow(token_ids[:n]))
        place = next(decided, None)
        return None if place is None else [*token_ids[:place], *self.match_to_span]


_BEFORE_ANSWER = (" ", "\n", "")


def decision_tokens(tokenizer: PreTrainedTokenizerBase) -> DecisionTokens:
    """Found by tokenizing both answers behind all that may stand before them; a space is what is written.

    Raises ValueError when one spelling begins with the other, or both part before `<answer>` is complete.
    """
    forms = [_parting(tokenizer, before) for before in _BEFORE_ANSWER]
    written, matched, not_matched = forms[0]
    prefixes = dict.fromkeys(prefix for prefix, *pair in forms if pair == [matched, not_matched])
    match = tokenizer(f"{_BEFORE_ANSWER[0]}{MATCH_TO_SPAN}", add_special_tokens=False)["input_ids"]
    return DecisionTokens(tuple(prefixes), matched, not_matched, tuple(match[len(written) :]))


def _parting(tokenizer: PreTrainedTokenizerBase, before: str) -> tuple[tuple[int, ...], int, int]:
    """The tokens of `<answer>` behind `before`, and the first token of either answer."""
    yes, no = (
        tokenizer(f"{before}<answer>{word}</answer>", add_special_tokens=False)["input_ids"]
        for word in ("matched", "not_matched")
    )
    for place, (a, b) in enumerate(zip(yes, no, strict=False)):
        if a != b and place:
            return tuple(yes[:place]), a, b
    raise ValueError("the tokenizer spells the two answers so that no token tells them apart")


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end a row's text: the stop tokens and <REFINE>."""
    names = ["<|im_end|>", REFINE_TOKEN]
    return {tokenizer.eos_token_id, tokenizer.pad_token_id, *tokenizer.convert_tokens_to_ids(names)}


def written_text(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """What the tokens say: no stop token, but a <REFINE> that was written."""
    ends = end_tokens(tokenizer) - {tokenizer.convert_tokens_to_ids(REFINE_TOKEN)}
    return tokenizer.decode([t for t in token_ids if t not in ends], skip_special_tokens=False)


class _HiddenStates:
    """Runs the language model and gives each row's hidden state at the last position, before and after the norm."""

    def __init__(self, policy: Policy) -> None:
        self.model = policy.model.language_model
        self.seed_is_pre_norm = policy.soft_query.seed_hidden == "pre_norm"
        self.pre_norm: Tensor | None = None

    def __enter__(self) -> _HiddenStates:
        self._hook = self.model.norm.register_forward_pre_hook(self._keep)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _keep(self, _module: object, args: tuple[Tensor, ...]) -> None:
        self.pre_norm = args[0]

    def run(self, **kwargs: object) -> Tensor:
        return self.model(**kwargs).last_hidden_state

    def seed(self, hidden: Tensor) -> Tensor:
        """What h_1 is read from, [B, L, H]: `hidden` (post-norm) or, in compat, the states before the norm."""
        return hidden if not self.seed_is_pre_norm or self.pre_norm is None else self.pre_norm


@dataclass
class _State:
    """The rows still in the batch, in cache order: `rows` are their numbers in the caller's order.

    mask [B, L], positions [B] of the next input, hidden and seed [B, H] of the last one.
    """

    rows: list[int]
    mask: Tensor
    positions: Tensor
    hidden: Tensor
    seed: Tensor

    def select(self, index: Sequence[int]) -> _State:
        at = torch.tensor(list(index), device=self.mask.device)
        tensors = (t[at] for t in (self.mask, self.positions, self.hidden, self.seed))
        return _State([self.rows[i] for i in index], *tensors)

    def keep(self, kept: Sequence[int], cache: InPlaceCache) -> tuple[_State, list[int]]:
        """The state of the rows `kept` (ascending), and in which order they stand now: the last ones fill the holes."""
        if len(kept) == len(self.rows):
            return self, list(kept)
        holes, movers = rows_that_fill_holes(kept)
        order = list(range(len(kept)))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        cache.move_rows(holes, movers, len(kept))
        return self.select(order), order


class TextWriter(Protocol):
    """Who writes the rows' text. Latents are not its business."""

    def write(
        self,
        prompts: Sequence[Prompt],
        features: Sequence[VideoFeatures | None],
        settings: DecodeSettings,
        generator: torch.Generator | None = None,
    ) -> list[Decoded]:
        """Each row's tokens (stop token included), their log-probabilities, text and decision, in order; no latents."""


@dataclass(frozen=True)
class InProcessWriter:
    """Text by the loop below."""

    policy: Policy
    tokenizer: PreTrainedTokenizerBase

    def write(
        self,
        prompts: Sequence[Prompt],
        features: Sequence[VideoFeatures | None],
        settings: DecodeSettings,
        generator: torch.Generator | None = None,
    ) -> list[Decoded]:
        text_only = replace(settings, num_soft_tokens=0)
        never = lambda _text: False  # noqa: E731
        return decode(
            self.policy, self.tokenizer, prompts, features, text_only, wants_refine=never, generator=generator
        )


@torch.no_grad()
def decode(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    features: Sequence[VideoFeatures | None],
    settings: DecodeSettings,
    *,
    wants_refine: Callable[[str], bool],
    generator: torch.Generator | None = None,
    writer: TextWriter | None = None,
) -> list[Decoded]:
    """Decode every row. `wants_refine(text)` is asked once a row's text has ended (stop token, <REFINE>, or the
    limit); where it says yes, <REFINE> is fed, written by the model or not, and N latents follow.

    The text excludes stop token and includes a <REFINE> that the model wrote. Results are in the order of `prompts`.
    With a `writer`, the text is its own, and the latents are those of a pass over prompt and text.
    """
    if writer is None:
        rows = _Rows(policy, tokenizer, settings, len(prompts), wants_refine, generator)
        # The limit is rarely reached: room for half of it at first, and the cache grows where that is too little.
        return rows.run(prompts, features, room=min(settings.max_new_tokens, 32 + settings.max_new_tokens // 2))
    written = writer.write(prompts, features, settings, generator)
    refining = [i for i, row in enumerate(written) if settings.num_soft_tokens and wants_refine(row.text)]
    read = [extended(prompts[i], before_latents(written[i].token_ids, tokenizer)) for i in refining]
    latents = latents_after(policy, tokenizer, read, [features[i] for i in refining], settings.num_soft_tokens)
    for i, z in zip(refining, latents, strict=True):
        written[i].latents = z
    return written


@torch.no_grad()
def latents_after(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    features: Sequence[VideoFeatures | None],
    num_soft_tokens: int,
) -> list[Tensor]:
    """z_1..z_N [N, D] of rows that end with <REFINE>: one pass over all they have written, then N - 1 single steps."""
    if not prompts or not num_soft_tokens:
        return []
    settings = DecodeSettings(num_soft_tokens=num_soft_tokens)
    rows = _Rows(policy, tokenizer, settings, len(prompts), wants_refine=lambda _text: True, generator=None)
    rows.latents = {row: [] for row in range(len(prompts))}
    return [row.latents for row in rows.run(prompts, features) if row.latents is not None]


def before_latents(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What is read behind the prompt before the first latent: the text, and <REFINE> in the place of what ended it."""
    kept = token_ids[:-1] if token_ids and token_ids[-1] in end_tokens(tokenizer) else token_ids
    return [*kept, tokenizer.convert_tokens_to_ids(REFINE_TOKEN)]


def _read_prompts(
    model: _HiddenStates,
    policy: Policy,
    cache: InPlaceCache,
    prompts: Sequence[Prompt],
    features: Sequence[VideoFeatures | None],
    pad_id: int,
) -> _State:
    """One pass over the prompts; rows with the same prompt and video share it."""
    keys = [(p.token_ids.numpy().tobytes(), id(f)) for p, f in zip(prompts, features, strict=True)]
    different, places = same_prompts(keys)
    batch = left_padded(policy.model, [prompts[i] for i in different], [features[i] for i in different], pad_id)
    state = _first_state(model, batch, model.run(**language_model_kwargs(batch), past_key_values=cache))
    if len(different) < len(prompts):
        cache.repeat_rows(places.to(batch.mask.device))
        state = state.select(places.tolist())
        state.rows = list(range(len(prompts)))
    return state


def _first_state(model: _HiddenStates, batch: Batch, hidden: Tensor) -> _State:
    next_position = batch.positions.amax(dim=(0, 2)) + 1  # padding has position 0
    return _State(list(range(len(hidden))), batch.mask, next_position, hidden[:, -1], model.seed(hidden)[:, -1])


def _step(model: _HiddenStates, state: _State, cache: Cache, embeds: Tensor) -> None:
    """Feed one input a row and move every row's position on by one, on all three axes."""
    state.mask = torch.cat([state.mask, state.mask.new_ones(len(state.rows), 1)], dim=1)
    hidden = model.run(
        inputs_embeds=embeds[:, None],
        attention_mask=state.mask,
        position_ids=state.positions[None, :, None].expand(3, -1, -1),
        past_key_values=cache,
    )
    state.positions = state.positions + 1
    state.hidden = hidden[:, -1]
    state.seed = model.seed(hidden)[:, -1]


class _Rows:
    """What each row has written and thought so far, and what it is fed next. A row writes text, then latents."""

    def __init__(
        self,
        policy: Policy,
        tokenizer: PreTrainedTokenizerBase,
        settings: DecodeSettings,
        num_rows: int,
        wants_refine: Callable[[str], bool],
        generator: torch.Generator | None,
    ) -> None:
        self.policy, self.tokenizer, self.settings = policy, tokenizer, settings
        self.wants_refine, self.generator = wants_refine, generator
        self.decoded = [Decoded() for _ in range(num_rows)]
        self.latents: dict[int, list[Tensor]] = {}
        self.decision = decision_tokens(tokenizer)
        self.refine_id = tokenizer.convert_tokens_to_ids(REFINE_TOKEN)
        self.ends = end_tokens(tokenizer)

    def run(self, prompts: Sequence[Prompt], features: Sequence[VideoFeatures | None], room: int = 0) -> list[Decoded]:
        """Read the prompts, then one input a row until no row is left. `room`: how long texts are expected to be."""
        num_layers = self.policy.config.text_config.num_hidden_layers
        cache = InPlaceCache(num_layers, room + self.settings.num_soft_tokens + 1)
        with _HiddenStates(self.policy) as model:
            state = _read_prompts(model, self.policy, cache, prompts, features, self.tokenizer.pad_token_id)
            while state.rows:
                embeds, kept = self.next_inputs(state)
                if not kept:
                    break
                state, order = state.keep(kept, cache)
                _step(model, state, cache, embeds[order])
        for row, tokens in self.latents.items():
            self.decoded[row].latents = torch.stack(tokens)
        return self.decoded

    def next_inputs(self, state: _State) -> tuple[Tensor, list[int]]:
        """Inputs [B, H] that follow the state's rows, and which of them go on (ascending)."""
        thinking = [i for i, row in enumerate(state.rows) if row in self.latents]
        writing = [i for i, row in enumerate(state.rows) if row not in self.latents]
        embeds = torch.empty_like(state.hidden)
        kept: list[int] = []
        if thinking:
            kept += self._think(state, thinking, embeds)
        if writing:
            kept += self._write(state, writing, embeds)
        return embeds, sorted(kept)

    def _think(self, state: _State, places: list[int], embeds: Tensor) -> list[int]:
        """Each row's next soft token and the input that continues from it."""
        rows = [state.rows[i] for i in places]
        is_first = torch.tensor([not self.latents[row] for row in rows], device=embeds.device)
        z = self.policy.latent(torch.where(is_first[:, None], state.seed[places], state.hidden[places]))
        for row, token in zip(rows, z, strict=True):
            self.latents[row].append(token)
        embeds[places] = self.policy.latent_input(z).to(embeds)  # autocast may have made it bf16
        wanted = self.settings.num_soft_tokens
        return [i for i, row in zip(places, rows, strict=True) if len(self.latents[row]) < wanted]

    def _write(self, state: _State, places: list[int], embeds: Tensor) -> list[int]:
        """Each row's next token; rows whose text ends go on with <REFINE> or not at all."""
        embedding = self.policy.model.language_model.embed_tokens
        tokens = self._sample(state, places)
        embeds[places] = embedding(tokens)
        kept = []
        for i, token in zip(places, tokens.tolist(), strict=True):
            row = state.rows[i]
            if self._goes_on(row, token):
                kept.append(i)
                continue
            result = self.decoded[row]
            result.text = written_text(self.tokenizer, result.token_ids)
            if self.settings.num_soft_tokens and self.wants_refine(result.text):
                self.latents[row] = []
                embeds[i] = embedding.weight[self.refine_id]
                kept.append(i)
        return kept

    def _sample(self, state: _State, places: list[int]) -> Tensor:
        """The next token of each row, with its log-probability and the odds of the decision noted."""
        log_probs = self.policy.lm_head(state.hidden[places]).float().log_softmax(-1)
        if self.settings.temperature > 0:
            weights = (log_probs / self.settings.temperature).softmax(-1)
            tokens = torch.multinomial(weights, 1, generator=self.generator)[:, 0]
        else:
            tokens = log_probs.argmax(-1)
        chosen = log_probs.gather(-1, tokens[:, None])[:, 0].tolist()
        for place, i in enumerate(places):
            result = self.decoded[state.rows[i]]
            is_kept = len(result.token_ids) < self.settings.max_new_tokens
            if is_kept and result.matched_probability is None and self.decision.follow(result.token_ids):
                pair = log_probs[place, [self.decision.matched, self.decision.not_matched]]
                result.matched_probability = float(pair.softmax(-1)[0])
            result.log_probs.append(chosen[place])
        return tokens

    def _goes_on(self, row: int, token: int) -> bool:
        """Note the token; False when the row's text is complete. Stop tokens are counted but are not text.

        A token beyond the limit is not kept: all that is kept has been fed, so <REFINE> follows it exactly.
        """
        result = self.decoded[row]
        if len(result.token_ids) >= self.settings.max_new_tokens:
            result.log_probs.pop()
            return False
        result.token_ids.append(token)
        return token not in self.ends


def teacher_forced(
    policy: Policy,
    prompts: Sequence[Prompt],
    features: Sequence[VideoFeatures | None],
    *,
    refining: Sequence[int],
    pad_id: int,
    num_soft_tokens: int,
) -> tuple[Tensor, Tensor, Batch]:
    """Hidden states [B, L, H] of whole rows (prompt and answer, left-padded), latents [R, N, D] of the rows
    `refining`, whose last token is <REFINE>, and the batch. Gradients flow through everything."""
    batch = left_padded(policy.model, prompts, features, pad_id)
    with _HiddenStates(policy) as model, layer_inputs(model.model) as inputs:
        hidden = model.run(**language_model_kwargs(batch), use_cache=False)
        seed = model.seed(hidden)[list(refining), -1]
    if not refining or not num_soft_tokens:
        return hidden, hidden.new_zeros(0, num_soft_tokens, policy.soft_query.embedding_size), batch
    prefix = SharedPrefix(model.model, inputs, batch, refining)
    tokens = [policy.latent(seed)]
    while len(tokens) < num_soft_tokens:
        # To the text's precision: autocast would leave the whole step's residual stream in bf16.
        tokens.append(policy.latent(prefix.step(policy.latent_input(tokens[-1]).to(hidden))))
    return hidden, torch.stack(tokens, dim=1), batch
