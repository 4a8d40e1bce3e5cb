"""The tokens of a policy's text: where the decision is made, which tokens are text, and what is fed before the latents.

This works for any tokenizer of transformers. The model family says which tokens end a text (`PolicyModel.end_tokens`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from vsr1_core.reasoning.conversation import MATCH_TO_SPAN, REFINE_TOKEN


@dataclass(frozen=True)
class DecisionTokens:
    """The tokens at which the two answers differ: after one of `prefixes`, the next token is `matched` or
    `not_matched`. There are several prefixes, because the tokenizer spells `<answer>` differently after a space, after
    a line break, and after neither."""

    prefixes: tuple[tuple[int, ...], ...]
    matched: int
    not_matched: int
    match_to_span: tuple[int, ...]
    """The tokens of a match that follow a prefix, up to the place of the first number."""

    def is_decision_next(self, token_ids: Sequence[int]) -> bool:
        """Whether the token after `token_ids` decides between `matched` and `not_matched`."""
        return any(tuple(token_ids[-len(prefix) :]) == prefix for prefix in self.prefixes)

    def place(self, token_ids: Sequence[int]) -> int | None:
        """The place of the first decision in `token_ids`, which is their length if the next token decides; None if
        there is none."""
        return next((n for n in range(len(token_ids) + 1) if self.is_decision_next(token_ids[:n])), None)

    def as_match(self, token_ids: Sequence[int]) -> list[int] | None:
        """`token_ids` up to their first decision, followed by a match up to its span; None if there is no decision."""
        place = self.place(token_ids)
        return None if place is None else [*token_ids[:place], *self.match_to_span]


_BEFORE_ANSWER = (" ", "\n", "")


def decision_tokens(tokenizer: PreTrainedTokenizerBase) -> DecisionTokens:
    """The tokens by which `tokenizer` tells the two answers apart.

    They are found by tokenizing both answers after everything that may come before them (the policy writes a
    space). Raises ValueError if the tokens of one answer begin with those of the other, or if the answers already
    differ before `<answer>` is complete.
    """
    forms = [_parting(tokenizer, before) for before in _BEFORE_ANSWER]
    written, matched, not_matched = forms[0]
    prefixes = dict.fromkeys(prefix for prefix, *pair in forms if pair == [matched, not_matched])
    match = tokenizer(f"{_BEFORE_ANSWER[0]}{MATCH_TO_SPAN}", add_special_tokens=False)["input_ids"]
    return DecisionTokens(tuple(prefixes), matched, not_matched, tuple(match[len(written) :]))


def _parting(tokenizer: PreTrainedTokenizerBase, before: str) -> tuple[tuple[int, ...], int, int]:
    """The tokens of `<answer>` after the text `before`, and for each answer the first token that tells it apart."""
    yes, no = (
        tokenizer(f"{before}<answer>{word}</answer>", add_special_tokens=False)["input_ids"]
        for word in ("matched", "not_matched")
    )
    for place, (a, b) in enumerate(zip(yes, no, strict=False)):
        if a != b and place:
            return tuple(yes[:place]), a, b
    raise ValueError(
        "the tokenizer spells `matched` and `not_matched` so that no token tells them apart; use another tokenizer"
    )


def written_text(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], ends: Collection[int]) -> str:
    """The text of `token_ids` without the stop tokens among `ends`, but with a <REFINE> that the policy wrote."""
    stops = {*ends} - {tokenizer.convert_tokens_to_ids(REFINE_TOKEN)}
    return tokenizer.decode([t for t in token_ids if t not in stops], skip_special_tokens=False)


def before_latents(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], ends: Collection[int]) -> list[int]:
    """The tokens that the policy reads after the prompt and before the first latent: the text, then <REFINE> in place
    of the token of `ends` that ended the text."""
    kept = token_ids[:-1] if token_ids and token_ids[-1] in ends else token_ids
    return [*kept, tokenizer.convert_tokens_to_ids(REFINE_TOKEN)]
