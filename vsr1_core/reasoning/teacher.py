"""Who writes the reasoning traces of METHOD 7, what it is given, and which replies are refused.

The template teacher writes from annotations alone; `reasoning.endpoint` asks a model. No tables here, and no answer
tags: `reasoning.conversation` writes those.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Literal, Protocol
from urllib.parse import urlsplit

from vsr1_core.reasoning.conversation import ANY_TAG
from vsr1_core.recipes import EndpointRecipe, TeacherRecipe

Label = Literal["matched", "not_matched"]
_NEIGHBOUR = re.compile(r" (?:before|after) .*", re.DOTALL)
STOP_WORDS = frozenset({"a", "an", "the", "of", "on", "in", "at", "is", "are", "and"})


class ConfigurationError(ValueError):
    """What the configuration asks for is not set up; the message says what to change."""


@dataclass(frozen=True, order=True)
class EventNote:
    """One annotated event of a video, in plain words."""

    start_s: float
    end_s: float
    caption: str

    @property
    def times(self) -> str:
        return f"{self.start_s:.1f}-{self.end_s:.1f}"


@dataclass(frozen=True)
class StoredFrames:
    """Where a video's frames lie (uint8 [T, H, W, 3]), their source times [T], and what changes when the pixels do."""

    path: str
    timestamps_s: tuple[float, ...]
    content: str


@dataclass(frozen=True)
class TeacherTask:
    """One pair of query and shown video. `moment` is the query's own event, in its right video; `events` are those of
    the shown video in time order; `frames` are the shown video's, for a teacher that looks at them."""

    query_id: str
    query: str
    label: Label
    shown_video_id: str
    moment: EventNote
    events: tuple[EventNote, ...]
    frames: StoredFrames | None = None


@dataclass(frozen=True)
class TeacherReply:
    """finish_reason: `stop`, `length` (truncated) or `error`. verdict: the label that the teacher's own words support,
    None where it gives none. num_tokens: as the teacher counts; words for the template.

    What a model's reply cost: num_prompt_tokens and num_tokens as the server counts them, num_requests with all
    retries, request_s seconds in them without the waits between. None from a teacher that asks no one.
    """

    query_id: str
    text: str
    finish_reason: str = "stop"
    num_tokens: int = 0
    verdict: Label | None = None
    error: str = ""
    num_prompt_tokens: int | None = None
    num_requests: int | None = None
    request_s: float | None = None


@dataclass(frozen=True)
class EndpointSettings:
    """Where the model is and how it is asked; what it is asked is EndpointRecipe's. Nothing here changes a trace.

    url: the base of an OpenAI-compatible API, e.g. http://127.0.0.1:8000/v1. api_key is never written anywhere.
    timeout_s: of one request. A failed request is sent again, up to max_requests in all, after a random wait of up to
    first_wait_s, then twice that and so on up to max_wait_s, and at least as long as the server asks for.
    """

    url: str
    api_key: str = field(default="", repr=False)
    concurrency: int = 8
    timeout_s: float = 600.0
    max_requests: int = 8
    first_wait_s: float = 2.0
    max_wait_s: float = 60.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ConfigurationError(
                "the teacher's URL must be the base of an OpenAI-compatible API, such as http://127.0.0.1:8000/v1; a "
                "key belongs into VSR1_TEACHER_API_KEY, not into the URL"
            )
        if self.concurrency < 1 or self.max_requests < 1 or self.timeout_s <= 0:
            raise ConfigurationError("the teacher needs at least one request at a time, one try, and some time for it")


class Teacher(Protocol):
    def write(self, tasks: Sequence[TeacherTask]) -> Iterator[TeacherReply]:
        """One reply a task, in any order."""
        ...


class TemplateTeacher:
    """Short, regular sentences: every event of the shown video with its times, what the query asks in plain words, then
    the event that answers, or comes closest, and for each plain word of the query whether that event has it.

    The description comes first, so that it is read off the video: after the plain words of the query a small model
    copied these instead. Each word is judged by itself, so that the verdict only has to look for a "no".
    """

    def write(self, tasks: Sequence[TeacherTask]) -> Iterator[TeacherReply]:
        for task in tasks:
            yield self._reply(task)

    def _reply(self, task: TeacherTask) -> TeacherReply:
        if not task.events:
            error = f"video {task.shown_video_id} has no annotated moment, so the template has nothing to describe"
            return TeacherReply(task.query_id, "", "error", error=error)
        if task.label == "matched" and task.moment not in task.events:
            error = f"the label is matched, but the query's moment is not among those of {task.shown_video_id}"
            return TeacherReply(task.query_id, "", "error", error=error)
        judged = [judge_words(task.moment.caption, event.caption) for event in task.events]
        at = min(range(len(judged)), key=lambda i: sum(not is_there for _, is_there in judged[i]))
        if task.label == "matched":
            at = task.events.index(task.moment)
        words = " ".join(f"{word} {'yes' if is_there else 'no'}" for word, is_there in judged[at])
        text = f"{observation(task.moment.caption, task.events)} Closest {task.events[at].times}: {words}."
        verdict: Label = "matched" if any(all(there for _, there in words) for words in judged) else "not_matched"
        return TeacherReply(task.query_id, text, "stop", len(text.split()), verdict)


def observation(asked: str, events: Sequence[EventNote]) -> str:
    """What the video shows and when, and what is asked, in plain words: how the template's traces begin."""
    lines = [f"{event.times}: {caption}." for event, caption in zip(events, own_captions(events), strict=True)]
    return " ".join([*lines, f"Asked: {asked}."])


def own_captions(events: Sequence[EventNote]) -> list[str]:
    """A video's captions; of several events, each without its neighbours, which have captions of their own."""
    return [_NEIGHBOUR.sub("", event.caption) if len(events) > 1 else event.caption for event in events]


def judge_words(asked: str, shown: str) -> list[tuple[str, bool]]:
    """The words of `asked` without those that carry no meaning, each with whether `shown` has it, in the same order."""
    wanted, have = (re.findall(r"[\w'-]+", text.lower()) for text in (asked, shown))
    blocks = SequenceMatcher(None, wanted, have, autojunk=False).get_matching_blocks()
    found = {block.a + i for block in blocks for i in range(block.size)}
    return [(word, i in found) for i, word in enumerate(wanted) if word not in STOP_WORDS]


def refusal(reply: TeacherReply, label: Label) -> str | None:
    """Why a reply cannot be a training trace; None when it can."""
    if reply.error:
        return f"the teacher failed: {reply.error}"
    if reply.finish_reason == "length":
        return f"the trace was cut off after {reply.num_tokens} tokens; raise the teacher's token limit"
    if reply.finish_reason != "stop":
        return f"the teacher ended with {reply.finish_reason!r} instead of a whole trace"
    if not reply.text.strip():
        return "the teacher wrote nothing"
    if re.search(ANY_TAG, reply.text):
        return "the trace holds tags that only an answer may have"
    if reply.verdict is not None and reply.verdict != label:
        return f"the trace contradicts the label: it supports {reply.verdict}, the label is {label}"
    return None


def _ask_a_model(recipe: TeacherRecipe, endpoint: EndpointSettings | None) -> Teacher:
    from vsr1_core.reasoning.endpoint import EndpointTeacher

    if not isinstance(recipe, EndpointRecipe):
        raise ConfigurationError("a teacher at an endpoint is configured with EndpointRecipe(model=...)")
    if endpoint is None:
        raise ConfigurationError(
            f"the configuration asks the teacher {recipe.model or '(no model named)'} at an endpoint, and no endpoint "
            "is set up: serve that model behind an OpenAI-compatible API and set VSR1_TEACHER_URL to its base, such as "
            "http://127.0.0.1:8000/v1 (and VSR1_TEACHER_API_KEY where it wants a key); or set "
            "teacher=TeacherRecipe(kind='template') in vsr1_core/configurations.py to write traces from the annotations"
        )
    return EndpointTeacher(recipe, endpoint)


TEACHERS: Mapping[str, Callable[[TeacherRecipe, EndpointSettings | None], Teacher]] = {
    "template": lambda recipe, endpoint: TemplateTeacher(),
    "endpoint": _ask_a_model,
}


def make_teacher(recipe: TeacherRecipe, endpoint: EndpointSettings | None = None) -> Teacher:
    """The teacher that the recipe names. ConfigurationError says what to configure where there is none."""
    if recipe.kind not in TEACHERS:
        raise ConfigurationError(f"teacher kind {recipe.kind!r} is not one of {', '.join(TEACHERS)}")
    return TEACHERS[recipe.kind](recipe, endpoint)
