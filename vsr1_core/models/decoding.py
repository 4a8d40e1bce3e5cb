"""The one decoding loop: text, then soft query tokens, on one key-value cache, all rows of a batch together.

A row's next input is either a sampled token's embedding or R(z_{k-1}). A row that has what it needs leaves the batch
at once. The prompt and its video are read once; `teacher_forced` is the differentiable form of the same thing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from vsr1_core.models.batching import Batch, language_model_kwargs, left_padded
from vsr1_core.models.inputs import Prompt
from vsr1_core.models.policy import Policy
from vsr1_core.models.vision import VideoFeatures
from vsr1_core.reasoning.conversation import REFINE_TOKEN


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
    """Where the tokenizer's spellings of the two answers part: after `prefix` comes `matched` or `not_matched`."""

    prefix: tuple[int, ...]
    matched: int
    not_matched: int


def decision_tokens(tokenizer: PreTrainedTokenizerBase) -> DecisionTokens:
    """Found by tokenizing both answers. Raises ValueError when one spelling begins with the other."""
    yes = tokenizer("<answer>matched</answer>", add_special_tokens=False)["input_ids"]
    no = tokenizer("<answer>not_matched</answer>", add_special_tokens=False)["input_ids"]
    for place, (a, b) in enumerate(zip(yes, no, strict=False)):
        if a != b:
            return DecisionTokens(tuple(yes[:place]), a, b)
    raise ValueError("the tokenizer spells the two answers so that one begins with the other")


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end a row's text: the stop tokens and <REFINE>."""
    names = ("<|im_end|>", REFINE_TOKEN)
    return {tokenizer.eos_token_id, tokenizer.pad_token_id, *tokenizer.convert_tokens_to_ids(names)}


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
        return self.model(**kwargs, use_cache=True).last_hidden_state

    def seed(self, hidden: Tensor) -> Tensor:
        """What h_1 is read from, [B, L, H]: `hidden` (post-norm) or, in compat, the states before the norm."""
        return hidden if not self.seed_is_pre_norm or self.pre_norm is None else self.pre_norm


@dataclass
class _State:
    """The rows still in the batch, in cache order: `rows` are their numbers in the caller's order."""

    rows: list[int]
    mask: Tensor
    positions: Tensor
    hidden: Tensor
    seed: Tensor

    def keep(self, kept: list[int], cache: DynamicCache) -> None:
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in kept]
        if not kept:
            return
        index = torch.tensor(kept, device=self.mask.device)
        cache.batch_select_indices(index)
        self.mask, self.positions = self.mask[index], self.positions[index]
        self.hidden, self.seed = self.hidden[index], self.seed[index]


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
) -> list[Decoded]:
    """Decode every row. `wants_refine(text)` is asked once a row's text has ended (stop token, <REFINE>, or the
    limit); where it says yes, <REFINE> is fed, written by the model or not, and N latents follow.

    The text excludes stop token and includes a <REFINE> that the model wrote. Results are in the order of `prompts`.
    """
    results = [Decoded() for _ in prompts]
    decision = decision_tokens(tokenizer)
    refine_id = tokenizer.convert_tokens_to_ids(REFINE_TOKEN)
    ends = end_tokens(tokenizer)
    refine_embedding = policy.model.language_model.embed_tokens.weight[refine_id]
    latents: dict[int, list[Tensor]] = {}
    cache = DynamicCache(config=policy.config.text_config)
    with _HiddenStates(policy) as model:
        state = _prefill(model, cache, left_padded(policy.model, prompts, features, tokenizer.pad_token_id))
        while state.rows:
            writing = [i for i, row in enumerate(state.rows) if row not in latents]
            sampled = _sample(
                policy,
                state,
                writing,
                results=results,
                decision=decision,
                temperature=settings.temperature,
                generator=generator,
            )
            embeds = policy.model.language_model.embed_tokens(sampled)
            kept = []
            for i, row in enumerate(state.rows):
                if row in latents:
                    following = _next_latent(policy, state, i, latents[row], settings.num_soft_tokens)
                elif not _text_ended(results[row], int(sampled[i]), ends, settings.max_new_tokens):
                    following = embeds[i]
                else:
                    results[row].text = _text(tokenizer, results[row].token_ids, ends, refine_id)
                    following = None
                    if settings.num_soft_tokens and wants_refine(results[row].text):
                        latents[row] = []
                        following = refine_embedding
                if following is not None:
                    embeds[i] = following
                    kept.append(i)
            state.keep(kept, cache)
            if kept:
                _step(model, state, cache, embeds[kept])
    for row, tokens in latents.items():
        results[row].latents = torch.stack(tokens)
    return results


def _prefill(model: _HiddenStates, cache: DynamicCache, batch: Batch) -> _State:
    return _first_state(model, batch, model.run(**language_model_kwargs(batch), past_key_values=cache))


def _first_state(model: _HiddenStates, batch: Batch, hidden: Tensor) -> _State:
    next_position = batch.positions.amax(dim=(0, 2)) + 1  # padding has position 0
    return _State(list(range(len(hidden))), batch.mask, next_position, hidden[:, -1], model.seed(hidden)[:, -1])


def _step(model: _HiddenStates, state: _State, cache: DynamicCache, embeds: Tensor) -> None:
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


def _sample(
    policy: Policy,
    state: _State,
    writing: list[int],
    *,
    results: list[Decoded],
    decision: DecisionTokens,
    temperature: float,
    generator: torch.Generator | None,
) -> Tensor:
    """The next token of each row that writes text (others get 0), with its log-probability noted."""
    sampled = torch.zeros(len(state.rows), dtype=torch.long, device=state.hidden.device)
    if not writing:
        return sampled
    log_probs = policy.lm_head(state.hidden[writing]).float().log_softmax(-1)
    if temperature > 0:
        weights = (log_probs / temperature).softmax(-1)
        tokens = torch.multinomial(weights, 1, generator=generator)[:, 0]
    else:
        tokens = log_probs.argmax(-1)
    sampled[writing] = tokens
    chosen = log_probs.gather(-1, tokens[:, None])[:, 0].tolist()
    for place, i in enumerate(writing):
        result = results[state.rows[i]]
        if tuple(result.token_ids[-len(decision.prefix) :]) == decision.prefix and result.matched_probability is None:
            pair = log_probs[place, [decision.matched, decision.not_matched]]
            result.matched_probability = float(pair.softmax(-1)[0])
        result.log_probs.append(chosen[place])
    return sampled


def _next_latent(policy: Policy, state: _State, i: int, latents: list[Tensor], wanted: int) -> Tensor | None:
    """Append row i's next soft token; the input that continues from it, or None when it was the last."""
    z = policy.latent(state.hidden[i] if latents else state.seed[i])
    latents.append(z)
    return policy.latent_input(z) if len(latents) < wanted else None


def _text(tokenizer: PreTrainedTokenizerBase, token_ids: list[int], ends: set[int], refine_id: int) -> str:
    return tokenizer.decode([t for t in token_ids if t == refine_id or t not in ends], skip_special_tokens=False)


def _text_ended(result: Decoded, token: int, ends: set[int], limit: int) -> bool:
    """Note the token; True when the row's text is complete. Stop tokens are counted but are not text.

    The token that reaches the limit is not kept: nothing was fed after it, so <REFINE> could not follow it exactly.
    """
    if token not in ends and len(result.token_ids) >= limit:
        result.log_probs.pop()
        return True
    result.token_ids.append(token)
    return token in ends


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
    cache = DynamicCache(config=policy.config.text_config)
    with _HiddenStates(policy) as model:
        if not refining or not num_soft_tokens:
            hidden = policy.model.language_model(**language_model_kwargs(batch), use_cache=False).last_hidden_state
            return hidden, hidden.new_zeros(0, num_soft_tokens, policy.soft_query.embedding_size), batch
        hidden = model.run(**language_model_kwargs(batch), past_key_values=cache)
        state = _first_state(model, batch, hidden)
        state.keep(list(refining), cache)
        tokens = [policy.latent(state.seed)]
        while len(tokens) < num_soft_tokens:
            _step(model, state, cache, policy.latent_input(tokens[-1]))
            tokens.append(policy.latent(state.hidden))
    return hidden, torch.stack(tokens, dim=1), batch
