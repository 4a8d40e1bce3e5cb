"""The conversation with the policy: the prompt, the answer text, and the parser of answers (docs/method.md, What the
policy writes).

SFT, GRPO and inference all build their conversations here. This module uses no tokenizer and no torch;
`vsr1_core.models` renders the messages with a chat template.
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
"""The system prompt of policies that refine a query in words. A checkpoint stores its own prompt."""

MATCH_TO_SPAN = "<answer>matched</answer> <start>"
"""The text of a match between its trace and its first number."""

_MATCHED = re.compile(r"match(?:ed)?")
_NOT_MATCHED = re.compile(r"not[\s_-]*match(?:ed)?|mismatch(?:ed)?")
_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?"
_WITH_COMMA = r"[+-]?\d+,\d{1,2}"  # three digits after a comma may be thousands
_CLOCK = r"(?:(?P<hours>\d{1,3}):(?=[0-5]\d:))?(?P<minutes>\d{1,3}):(?P<rest>[0-5]\d(?:[.,]\d+)?)"
_SPAN_NUMBER = re.compile(
    rf"(?:(?P<number>{_NUMBER}|{_WITH_COMMA})|{_CLOCK})(?:\s*s(?:ec(?:ond)?s?)?)?", re.ASCII | re.IGNORECASE
)
ANY_TAG = r"</?(?:think|answer|start|end|query)>|<REFINE>"
_THINK = rf"\s*<think>(?P<trace>(?:(?!{ANY_TAG}).)*)</think>\s*"
_SECONDS = r"(\d+(?:\.\d+)?)"
_MATCH_FORM = re.compile(
    rf"{_THINK}<answer>matched</answer>\s*<start>{_SECONDS}</start>\s*<end>{_SECONDS}</end>\s*(?P<refine><REFINE>\s*)?",
    re.DOTALL | re.ASCII,
)
_MISMATCH_FORM = re.compile(rf"{_THINK}<answer>not_matched</answer>\s*<REFINE>\s*", re.DOTALL | re.ASCII)
_REFINE_AFTER_MATCH = re.compile(r"</end>\s*`?<REFINE>")
_SPAN_TAG = re.compile(r"</?(?:start|end)>", re.IGNORECASE)
_REWRITE_FORM = re.compile(
    rf"{_THINK}<answer>not_matched</answer>\s*<query>(?P<query>(?:(?!{ANY_TAG}).)*)</query>\s*", re.DOTALL | re.ASCII
)


@dataclass(frozen=True)
class Answer:
    """The parsed content of one completion. `start_s` and `end_s` are in seconds, inside the video, with start <= end;
    both are None unless the decision is `matched` and both numbers can be read."""

    decision: Decision
    start_s: float | None
    end_s: float | None
    reasoning: str
    new_query: str | None = None
    """The query to search for instead, on one line; None for a match, and when no query can be read."""


def user_text(query: str) -> str:
    """The text of the user turn. The video follows it."""
    return f'Query: "{query}"\nRetrieved video: '


def build_messages(query: str, system_prompt: str = "") -> list[dict[str, Any]]:
    """Build the system and the user turn in the chat format of Hugging Face processors, with one placeholder for a
    video.

    `system_prompt` is the prompt that the checkpoint stores; SYSTEM_PROMPT is used when it is empty.
    """
    return [
        {"role": "system", "content": [{"type": "text", "text": system_prompt or SYSTEM_PROMPT}]},
        {"role": "user", "content": [{"type": "text", "text": user_text(query)}, {"type": "video"}]},
    ]


def answer_text(
    trace: str, matched: bool, start_s: float | None = None, end_s: float | None = None, new_query: str | None = None
) -> str:
    """The assistant's text for a trace and a label. Seconds are written with one decimal. A mismatch ends with
    `new_query` if there is one, and with <REFINE> otherwise.

    Raises ValueError when a match has no span or has a new query, when a mismatch has a span, and when the trace or the
    new query is blank or contains tags of an answer.
    """
    for what, words in (("reasoning trace", trace), ("new query", new_query)):
        if words is not None and (not words.strip() or re.search(ANY_TAG, words)):
            raise ValueError(f"a {what} must contain words and no tags of an answer, got {words[:80]!r}")
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


def parse_answer(text: str, last_s: float, first_s: float = 0.0) -> Answer:
    """Parse a completion (without its prompt) about what a video shows from `first_s` to `last_s` seconds. No text
    raises an error.

    The first answer tag counts, and its span has to be between this tag and the next answer tag. Decisions and seconds
    are read in several spellings (docs/method.md). The time is linear in the length of the text.
    """
    opened = _find("<answer>", text, 0)
    content, answer_end = _between("answer", text, 0)
    decision = _decision(content)
    next_answer = _find("<answer>", text, answer_end) if opened >= 0 else -1
    rest = text[answer_end:] if next_answer < 0 else text[answer_end:next_answer]
    start_s, end_s = _span(rest, first_s, last_s) if decision == "matched" else (None, None)
    reasoning, _ = _between("think", text, 0)
    return Answer(
        decision=decision,
        start_s=start_s,
        end_s=end_s,
        reasoning=(reasoning if reasoning is not None else text[: max(opened, 0)]).strip(),
        new_query=_new_query(rest) if decision != "matched" else None,
    )


def asks_to_refine(text: str, is_forced: bool = True) -> bool:
    """Whether soft tokens follow the completion `text`: it is not a match, and <REFINE> follows its answer or
    `is_forced` (`InputForm.force_refine`)."""
    if parse_answer(text, 0.0).decision == "matched":
        return False
    _, answer_end = _between("answer", text, 0)
    return is_forced or text.rfind(REFINE_TOKEN) >= answer_end


def is_well_formed(text: str, system_prompt: str = "") -> bool:
    """Whether `text` has exactly the form that the policy's own prompt asks for: a trace with words, one answer, and
    then an ordered span for a match, or <REFINE> for a mismatch.

    A prompt that names <query> asks for a new query after a mismatch instead of <REFINE>. A prompt that shows <REFINE>
    after </end>, as those of released checkpoints do, lets a match end with it. An empty prompt means SYSTEM_PROMPT.
    """
    prompt = system_prompt or SYSTEM_PROMPT
    match = _MATCH_FORM.fullmatch(text)
    if match:
        start_s, end_s = float(match[2]), float(match[3])
        is_ended = match["refine"] is None or _REFINE_AFTER_MATCH.search(prompt) is not None
        return bool(match["trace"].strip()) and start_s <= end_s and math.isfinite(end_s) and is_ended
    mismatch = (_REWRITE_FORM if "<query>" in prompt else _MISMATCH_FORM).fullmatch(text)
    return mismatch is not None and all(words.strip() for words in mismatch.groups())


def writes_span(text: str) -> bool:
    """Whether `text` contains a tag of a span, in any letter case."""
    return _SPAN_TAG.search(text) is not None


def _find(tag: str, text: str, start: int) -> int:
    """The position of the first `tag` from `start` on, in any letter case; -1 when there is none."""
    found = re.compile(re.escape(tag), re.IGNORECASE).search(text, start)
    return found.start() if found else -1


def _between(tag: str, text: str, start: int) -> tuple[str | None, int]:
    """The content of the first `<tag>...</tag>` from `start` on, and the position where it ends; (None, start) when
    there is none.

    This uses two plain searches because one lazy pattern takes quadratic time in a text with many opening tags.
    """
    opened = _find(f"<{tag}>", text, start)
    closed = _find(f"</{tag}>", text, opened) if opened >= 0 else -1
    if closed < 0:
        return None, start
    return text[opened + len(tag) + 2 : closed], closed + len(tag) + 3


def _decision(content: str | None) -> Decision:
    word = (content or "").strip().lower()
    if _MATCHED.fullmatch(word):
        return "matched"
    return "not_matched" if _NOT_MATCHED.fullmatch(word) else "unknown"


def _span(text: str, first_s: float, last_s: float) -> tuple[float | None, float | None]:
    """(start, end) in seconds, clamped to [first_s, last_s] and swapped if reversed; (None, None) unless both tags
    contain finite numbers."""
    start_s, end_s = (_seconds(_between(tag, text, 0)[0]) for tag in ("start", "end"))
    if start_s is None or end_s is None:
        return None, None
    low, high = sorted(min(max(value, first_s), last_s) for value in (start_s, end_s))
    return low, high


def _new_query(text: str) -> str | None:
    """The new query on one line. None when it is blank, or contains tags of an answer or special tokens of a
    tokenizer."""
    words = " ".join((_between("query", text, 0)[0] or "").split())
    return words if words and not re.search(rf"{ANY_TAG}|<\|", words, re.IGNORECASE) else None


def _seconds(content: str | None) -> float | None:
    """The seconds of `5.0`, `5,0`, `5.0s`, `5 seconds`, `1:02.5` or `1:00:05`; None for anything else, for infinity,
    and for a comma before three digits."""
    found = _SPAN_NUMBER.fullmatch((content or "").strip())
    if found is None:
        return None
    value = float((found["number"] or found["rest"]).replace(",", "."))
    if found["number"] is None:
        value += 60 * int(found["minutes"]) + 3600 * int(found["hours"] or 0)
    return value if math.isfinite(value) else None
