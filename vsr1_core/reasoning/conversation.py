"""What the policy is asked and what it answers: prompt, answer text, and the parser (docs/method.md, answers).

The one conversation builder: SFT, GRPO and inference all use it. No tokenizer and no torch here; who renders the
messages with a chat template lives in `vsr1_core.models`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

Decision = Literal["matched", "not_matched", "unknown"]

REFINE_TOKEN = "<REFINE>"
_TASK = (
    "Decide whether the retrieved video shows the moment that the query describes. "
    "Think inside <think></think>, then write <answer>matched</answer> with the moment's seconds in <start></start> "
    "and <end></end>, or <answer>not_matched</answer> and "
)
SYSTEM_PROMPT = f"{_TASK}end with {REFINE_TOKEN}."
HARD_REFINE_PROMPT = f"{_TASK}a better search query in <query></query>."
"""Of policies that refine by words. A checkpoint carries its own prompt."""

MATCH_TO_SPAN = "<answer>matched</answer> <start>"
"""How a match is written up to its first number."""

_MATCHED = {"matched", "match"}
_NOT_MATCHED = {"not_matched", "notmatch", "not-matched", "mismatch"}
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
ANY_TAG = r"</?(?:think|answer|start|end|query)>|<REFINE>"
_THINK = rf"\s*<think>(?P<trace>(?:(?!{ANY_TAG}).)*)</think>\s*"
_SECONDS = r"(\d+(?:\.\d+)?)"
_MATCH_FORM = re.compile(
    rf"{_THINK}<answer>matched</answer>\s*<start>{_SECONDS}</start>\s*<end>{_SECONDS}</end>\s*", re.DOTALL | re.ASCII
)
_MISMATCH_FORM = re.compile(rf"{_THINK}<answer>not_matched</answer>\s*<REFINE>\s*", re.DOTALL | re.ASCII)
_REWRITE_FORM = re.compile(
    rf"{_THINK}<answer>not_matched</answer>\s*<query>(?P<query>(?:(?!{ANY_TAG}).)*)</query>\s*", re.DOTALL | re.ASCII
)


@dataclass(frozen=True)
class Answer:
    """What one completion says. Span in seconds, inside the video, ordered; None unless matched and readable."""

    decision: Decision
    start_s: float | None
    end_s: float | None
    reasoning: str
    has_refine: bool
    """Whether a <REFINE> stands after the answer. False for a match: what a released model writes there is ignored."""
    is_well_formed: bool
    new_query: str | None = None
    """What to search for instead, as one line; None for a match, and where none can be read."""


def user_text(query: str) -> str:
    """The user turn's text; the video follows it."""
    return f'Query: "{query}"\nRetrieved video: '


def build_messages(query: str, system_prompt: str = "") -> list[dict[str, Any]]:
    """System and user turn in the chat form of Hugging Face processors, with one place for a video.

    `system_prompt` is the checkpoint's own; without one it is SYSTEM_PROMPT.
    """
    return [
        {"role": "system", "content": [{"type": "text", "text": system_prompt or SYSTEM_PROMPT}]},
        {"role": "user", "content": [{"type": "text", "text": user_text(query)}, {"type": "video"}]},
    ]


def answer_text(
    trace: str, matched: bool, start_s: float | None = None, end_s: float | None = None, new_query: str | None = None
) -> str:
    """The assistant's text for a trace and a label; seconds with one decimal. A mismatch with `new_query` ends with
    these words to search for, any other with <REFINE>.

    Raises ValueError when a match has no span or a new query, a mismatch has a span, or the trace or the new query is
    blank or holds an answer's tags.
    """
    for what, words in (("reasoning trace", trace), ("new query", new_query)):
        if words is not None and (not words.strip() or re.search(ANY_TAG, words)):
            raise ValueError(f"a {what} must have words and none of the answer's tags, got {words[:80]!r}")
    think = f"<think> {trace.strip()} </think>"
    if not matched:
        if start_s is not None or end_s is not None:
            raise ValueError("a mismatch has no start and no end")
        ending = REFINE_TOKEN if new_query is None else f"<query> {' '.join(new_query.split())} </query>"
        return f"{think} <answer>not_matched</answer> {ending}"
    if new_query is not None:
        raise ValueError("a match needs no new query")
    if start_s is None or end_s is None:
        raise ValueError("a match needs a start and an end in seconds")
    return f"{think} {MATCH_TO_SPAN}{start_s:.1f}</start> <end>{end_s:.1f}</end>"


def parse_answer(text: str, duration_s: float) -> Answer:
    """Read a completion (without its prompt) about a video of `duration_s` seconds. Never raises on any text.

    The first answer tag counts and its span is looked for between it and the next one. Linear in the text's length.
    """
    opened = _find("<answer>", text, 0)
    content, answer_end = _between("answer", text, 0)
    decision = _decision(content)
    next_answer = _find("<answer>", text, answer_end) if opened >= 0 else -1
    rest = text[answer_end:] if next_answer < 0 else text[answer_end:next_answer]
    start_s, end_s = _span(rest, duration_s) if decision == "matched" else (None, None)
    reasoning, _ = _between("think", text, 0)
    return Answer(
        decision=decision,
        start_s=start_s,
        end_s=end_s,
        reasoning=(reasoning if reasoning is not None else text[: max(opened, 0)]).strip(),
        has_refine=decision != "matched" and text.rfind(REFINE_TOKEN) >= answer_end,
        is_well_formed=is_well_formed(text) or is_well_formed(text, writes_query=True),
        new_query=_new_query(rest) if decision != "matched" else None,
    )


def is_well_formed(text: str, writes_query: bool = False) -> bool:
    """Whether `text` is exactly what `answer_text` may write: words, one answer, its span in order, or <REFINE>; in
    place of <REFINE>, a new query for a policy that `writes_query`."""
    match = _MATCH_FORM.fullmatch(text)
    if match:
        start_s, end_s = float(match[2]), float(match[3])
        return bool(match["trace"].strip()) and start_s <= end_s and math.isfinite(end_s)
    mismatch = (_REWRITE_FORM if writes_query else _MISMATCH_FORM).fullmatch(text)
    return mismatch is not None and all(words.strip() for words in mismatch.groups())


def _find(tag: str, text: str, start: int) -> int:
    found = re.compile(re.escape(tag), re.IGNORECASE).search(text, start)
    return found.start() if found else -1


def _between(tag: str, text: str, start: int) -> tuple[str | None, int]:
    """Content of the first `<tag>...</tag>` from `start` on and where it ends; (None, start) when there is none.

    Two plain searches, not one lazy pattern: that one is quadratic in a text of many opening tags.
    """
    opened = _find(f"<{tag}>", text, start)
    closed = _find(f"</{tag}>", text, opened) if opened >= 0 else -1
    if closed < 0:
        return None, start
    return text[opened + len(tag) + 2 : closed], closed + len(tag) + 3


def _decision(content: str | None) -> Decision:
    word = (content or "").strip().lower()
    if word in _MATCHED:
        return "matched"
    return "not_matched" if word in _NOT_MATCHED else "unknown"


def _span(text: str, duration_s: float) -> tuple[float | None, float | None]:
    """Seconds inside [0, duration], swapped if reversed; two None unless both tags hold finite numbers."""
    start_s, end_s = (_seconds(_between(tag, text, 0)[0]) for tag in ("start", "end"))
    if start_s is None or end_s is None:
        return None, None
    low, high = sorted(min(max(value, 0.0), duration_s) for value in (start_s, end_s))
    return low, high


def _new_query(text: str) -> str | None:
    """Words that can be searched for: none of the answer's tags and none of a tokenizer's special tokens in them."""
    words = " ".join((_between("query", text, 0)[0] or "").split())
    return words if words and not re.search(rf"{ANY_TAG}|<\|", words, re.IGNORECASE) else None


def _seconds(content: str | None) -> float | None:
    word = (content or "").strip()
    value = float(word) if _NUMBER.fullmatch(word) else math.nan
    return value if math.isfinite(value) else None
