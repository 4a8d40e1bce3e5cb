"""Where an embedder takes soft tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class InsertionPlace:
    """Where an embedder takes soft tokens: right after the query's text.

    tokens_after: the tokens that follow them, in order. has_end_token: whether the tokenizer appends an end token,
    which is then the last of these.
    """

    tokens_after: Sequence[str]
    has_end_token: bool

    def notice(self, name: str) -> str | None:
        """What there is to know about an embedder, called `name`, without an end token; None for one that has it."""
        if self.has_end_token:
            return None
        return (
            f"The tokenizer of {name} appends no end token, unlike that of Qwen3-VL-Embedding. The authors' code "
            "counts six tokens from the end, and would put soft tokens before the last token of the query; here they "
            "follow its text."
        )
