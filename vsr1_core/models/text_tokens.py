"""Tokens of texts from people and models: what is spelled in such a text is words, whatever it spells.

A chat template is trusted: its control tokens (turns, the video, <REFINE>) are tokens. The text that is put into it is
data: nothing in it becomes a control token, so that no query can forge a turn, end one, refine, or place a video. An
ordinary text has exactly the tokens that the tokenizer gives it together with the template around it (tested). Works
for the fast tokenizers of transformers.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from vsr1_core.reasoning.conversation import ANY_TAG
from vsr1_core.rows.texts import check_text

TEXT_RULE = "data are words"
"""Names the rule of this module in the keys of stored vectors; change it when the tokens of a text change."""
MARK = "\ufdd0"
"""A noncharacter, which no text of a template contains. It stands for the text of a user."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as the chat template renders it. The n-th mark in `text` stands for the n-th of `data`."""

    text: str
    data: tuple[str, ...]


@dataclass(frozen=True)
class _Words:
    """A tokenizer that knows no control tokens, and how to find those of a template. tags: the tags of an answer that
    are tokens of their own."""

    backend: Tokenizer
    control: re.Pattern[str]
    tags: re.Pattern[str]
    ids: dict[str, int]
    before: tuple[int, ...]
    after: tuple[int, ...]


def render(tokenizer: PreTrainedTokenizerBase, conversation: Sequence[dict[str, Any]]) -> Rendered:
    """Render a conversation up to the assistant's turn. The texts of its user turns are data.

    Raises ValueError if the chat template does not write each text of a user exactly once.
    """
    data: list[str] = []
    turns = [_marked(turn, data) if turn["role"] == "user" else turn for turn in conversation]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    if text.count(MARK) != len(data):
        raise ValueError("the chat template does not contain the text of the user exactly once; use another template")
    return Rendered(text, tuple(data))


def _marked(turn: dict[str, Any], data: list[str]) -> dict[str, Any]:
    """The turn with a mark in place of each text, which is appended to `data`."""
    parts = turn["content"] if isinstance(turn["content"], list) else [{"type": "text", "text": turn["content"]}]
    data += [part["text"] for part in parts if "text" in part]
    return turn | {"content": [part | {"text": MARK} if "text" in part else part for part in parts]}


def plain_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of each text as words, without anything before or after them. Raises ValueError for a text that
    cannot be encoded."""
    encoded = _words(tokenizer).backend.encode_batch([check_text(text) for text in texts], add_special_tokens=False)
    return [row.ids for row in encoded]


def closed_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """As `plain_ids`, with the tokens that the tokenizer itself puts before and after a text."""
    words = _words(tokenizer)
    return [[*words.before, *ids, *words.after] for ids in plain_ids(tokenizer, texts)]


def template_ids(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Rendered], add_special_tokens: bool = False
) -> list[list[int]]:
    """The token ids of rendered conversations: control tokens of the template are tokens, data are words.

    With `add_special_tokens`, a tokenizer that appends an end-of-text token does so.
    """
    words = _words(tokenizer)
    pieces = [_pieces(row, words.control) for row in rows]
    texts = list(dict.fromkeys(piece for row in pieces for is_control, piece in row if not is_control))
    known = dict(zip(texts, plain_ids(tokenizer, texts), strict=True))
    found = [
        [token for is_control, piece in row for token in ([words.ids[piece]] if is_control else known[piece])]
        for row in pieces
    ]
    return [[*words.before, *ids, *words.after] for ids in found] if add_special_tokens else found


def _pieces(row: Rendered, control: re.Pattern[str]) -> list[tuple[bool, str]]:
    """The pieces of a rendered text in order: (whether it is a control token of the template, its text)."""
    data = iter(row.data)
    pieces = []
    for number, piece in enumerate(control.split(row.text)):
        first, *rest = piece.split(MARK)
        filled = "".join([first, *(next(data) + text for text in rest)])
        pieces += [(bool(number % 2), filled)] if filled else []
    return pieces


def answer_ids(tokenizer: PreTrainedTokenizerBase, answer: str) -> tuple[list[int], list[tuple[int, int]]]:
    """The token ids of an answer, and the (start, end) of each token in it. The tags of an answer and <REFINE> are
    tokens where the tokenizer has them as tokens; all else, such as the words of a trace, is data."""
    words = _words(tokenizer)
    ids, offsets, start = [], [], 0
    for number, piece in enumerate(words.tags.split(answer)):
        if number % 2:
            ids.append(words.ids[piece])
            offsets.append((start, start + len(piece)))
        elif piece:
            coded = words.backend.encode(check_text(piece), add_special_tokens=False)
            ids += coded.ids
            offsets += [(start + a, start + b) for a, b in coded.offsets]
        start += len(piece)
    return ids, offsets


def _either(tokens: Sequence[str]) -> re.Pattern[str]:
    """Splits a text at `tokens`, the longest first, and keeps them; no token splits nothing."""
    spelled = [re.escape(token) for token in sorted(tokens, key=len, reverse=True)]
    return re.compile(f"({'|'.join(spelled)})" if spelled else "((?!))")


def _words(tokenizer: PreTrainedTokenizerBase) -> _Words:
    return _make_words(tokenizer, len(tokenizer))  # tokens may have been added since


@functools.lru_cache(16)
def _make_words(tokenizer: PreTrainedTokenizerBase, _num_tokens: int) -> _Words:
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    ids = {token["content"]: token["id"] for token in described["added_tokens"]}
    backend = Tokenizer.from_str(
        json.dumps({**described, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None})
    )
    plain, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    at = next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
    tags = _either([token for token in ids if re.fullmatch(ANY_TAG, token)])
    return _Words(backend, _either(list(ids)), tags, ids, tuple(whole[:at]), tuple(whole[at + len(plain) :]))
