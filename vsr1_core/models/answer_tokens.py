"""How a policy's text is spelled in tokens: where it decides, what of it is text, and what is fed before the latents.

For any tokenizer of transformers; which tokens end a text is the family's to say (`PolicyModel.end_tokens`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from vsr1_core.reasoning.conversation import MATCH_TO_SPAN, REFINE_TOKEN


@dataclass(frozen=True)
class DecisionTokens:
    """Where the tokenizer's spellings of the two answers part: after one of `prefixes` comes `matched` or
    `not_matched`. Several, because `<answer>` is spelled differently after a space, a line break and nothing."""

    prefixes: tuple[tuple[int, ...], ...]
    matched: int
    not_matched: int
    match_to_span: tuple[int, ...]
    """What a match goes on with behind a prefix, up to where its first number stands."""

    def is_decision_next(self, token_ids: Sequence[int]) -> bool:
        """Whether the token after `token_ids` is the one that says `matched` or `not_matched`."""
        return any(tuple(token_ids[-len(prefix) :]) == prefix for prefix in self.prefixes)

    def as_match(self, token_ids: Sequence[int]) -> list[int] | None:
        """`token_ids` up to their first decision, then a match up to its span; None where nothing was decided."""
        decided = (n for n in range(len(token_ids) + 1) if self.is_decision_next(token_ids[:n]))
        place = next(decided, None)
        return None if place is None else [*token_ids[:place], *self.match_to_span]


_BEFORE_ANSWER = (" ", "\n", "")


def decision_tokens(tokenizer: PreTrainedTokenizerBase) -> DecisionTokens:
    """The tokens by which `tokenizer` tells the two answers apart.

    They are found by tokenizing both answers behind all that may stand before them (a space is what is written).
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


def written_text(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], ends: Collection[int]) -> str:
    """What `token_ids` say: without the stop tokens among `ends`, but with a <REFINE> that was written."""
    stops = {*ends} - {tokenizer.convert_tokens_to_ids(REFINE_TOKEN)}
    return tokenizer.decode([t for t in token_ids if t not in stops], skip_special_tokens=False)


def before_latents(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], ends: Collection[int]) -> list[int]:
    """What is read behind the prompt before the first latent: the text, and <REFINE> in the place of the token of
    `ends` that ended it."""
    kept = token_ids[:-1] if token_ids and token_ids[-1] in ends else token_ids
    return [*kept, tokenizer.convert_tokens_to_ids(REFINE_TOKEN)]
