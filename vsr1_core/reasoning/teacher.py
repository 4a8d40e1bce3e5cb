"""Who writes the reasoning traces of METHOD 7, what it is given, and which replies are refused.

The template teacher writes from annotations alone. A teacher that asks a model has the same interface (`Teacher`) and
is registered in `TEACHERS`. No tables here, and no answer tags: `reasoning.conversation` writes those.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal, Protocol

from vsr1_core.reasoning.conversation import ANY_TAG
from vsr1_core.recipes import TeacherRecipe

Label = Literal["matched", "not_matched"]
ARTICLES = frozenset({"a", "an", "the"})
MAX_MISSING_WORDS = 6


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
class TeacherTask:
    """One pair of query and shown video. `moment` is the query's own event, in its right video; `events` are those of
    the shown video in time order."""

    query_id: str
    query: str
    label: Label
    shown_video_id: str
    moment: EventNote
    events: tuple[EventNote, ...]


@dataclass(frozen=True)
class TeacherReply:
    """finish_reason: `stop`, `length` (truncated) or `error`. verdict: the label that the teacher's own words support,
    None where it gives none. num_tokens: as the teacher counts; words for the template."""

    query_id: str
    text: str
    finish_reason: str = "stop"
    num_tokens: int = 0
    verdict: Label | None = None
    error: str = ""


class Teacher(Protocol):
    def write(self, tasks: Sequence[TeacherTask]) -> Iterator[TeacherReply]:
        """One reply a task, in any order."""
        ...


class TemplateTeacher:
    """Short, regular sentences: every event of the shown video with its times, what the query asks in plain words, then
    the event that answers (and its neighbour), or the closest one and the words it lacks.

    The description comes first, so that it is read off the video: after the query's plain words a small model copied
    those instead. The verdict comes last, so that it can be read off both.
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
        asked = task.moment.caption
        missing = [missing_words(asked, event.caption) for event in task.events]
        shown = [f"{event.times}: {event.caption}." for event in task.events]
        ending = _match_clause(task) if task.label == "matched" else _mismatch_clause(task, missing)
        text = " ".join([*shown, f"Asked: {asked}.", ending])
        verdict: Label = "not_matched" if all(missing) else "matched"
        return TeacherReply(task.query_id, text, "stop", len(text.split()), verdict)


def _match_clause(task: TeacherTask) -> str:
    at = task.events.index(task.moment)
    clause = f"Fits: event {at + 1}, {task.moment.times}"
    if at + 1 < len(task.events):
        return f"{clause}, before event {at + 2}."
    return f"{clause}, after event {at}." if at else f"{clause}."


def _mismatch_clause(task: TeacherTask, missing: Sequence[Sequence[str]]) -> str:
    closest = min(range(len(missing)), key=lambda i: len(missing[i]))
    lacks = ", ".join(missing[closest][:MAX_MISSING_WORDS])
    return f"Closest: event {closest + 1}, {task.events[closest].times}, lacks {lacks}."


def missing_words(asked: str, shown: str) -> list[str]:
    """The words of `asked`, without articles, that `shown` does not have in the same order."""
    wanted, have = (re.findall(r"[\w'-]+", text.lower()) for text in (asked, shown))
    blocks = SequenceMatcher(None, wanted, have, autojunk=False).get_matching_blocks()
    found = {block.a + i for block in blocks for i in range(block.size)}
    left = [word for i, word in enumerate(wanted) if i not in found and word not in ARTICLES]
    return list(dict.fromkeys(left))


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


TEACHERS: Mapping[str, Callable[[TeacherRecipe], Teacher]] = {"template": lambda recipe: TemplateTeacher()}


def make_teacher(
    recipe: TeacherRecipe, teachers: Mapping[str, Callable[[TeacherRecipe], Teacher]] = TEACHERS
) -> Teacher:
    """The teacher that the recipe names. ConfigurationError says what to configure where there is none."""
    if recipe.kind in teachers:
        return teachers[recipe.kind](recipe)
    if recipe.kind == "endpoint":
        raise ConfigurationError(
            f"the configuration asks the teacher {recipe.model or '(no model named)'} at an endpoint, and no endpoint "
            "is set up; set teacher=TeacherRecipe(kind='template') in vsr1_core/configurations.py to write traces from "
            "the annotations, or register an 'endpoint' teacher in vsr1_core.reasoning.teacher.TEACHERS"
        )
    raise ConfigurationError(f"teacher kind {recipe.kind!r} is not one of {', '.join([*teachers, 'endpoint'])}")
