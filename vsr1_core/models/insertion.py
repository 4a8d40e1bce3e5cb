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
