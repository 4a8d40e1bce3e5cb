"""The teachers that write reasoning traces, and the check that refuses unusable replies.

The template teacher writes traces from annotations alone; `reasoning.endpoint` asks a model. Traces contain no answer
tags; `reasoning.conversation` adds them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher

from vsr1_core.reasoning.conversation import ANY_TAG
from vsr1_core.reasoning.tasks import (
    ConfigurationError,
    EndpointSettings,
    EventNote,
    Label,
    Teacher,
    TeacherReply,
    TeacherTask,
)
from vsr1_core.recipes import EndpointRecipe, TeacherRecipe

_NEIGHBOUR = re.compile(r" (?:before|after) .*", re.DOTALL)
STOP_WORDS = frozenset({"a", "an", "the", "of", "on", "in", "at", "is", "are", "and"})


class TemplateTeacher:
    """Writes short, regular sentences: every event of the shown video with its times, the query in plain words, then
    the event that answers the query or comes closest to it, and for each plain word of the query whether that event has
    it.

    The description comes first, so that it is based on the video: when it came after the plain words of the query, a
    small model copied these words instead. Each word is judged by itself, so that the verdict only has to look for a
    "no".
    """

    def write(self, tasks: Iterable[TeacherTask]) -> Iterator[TeacherReply]:
        """Yield one reply per task, in the order of the tasks."""
        for task in tasks:
            yield self._reply(task)

    def _reply(self, task: TeacherTask) -> TeacherReply:
        if not task.events:
            error = f"video {task.shown_video_id} has no annotated moment, so the template has nothing to describe"
            return TeacherReply(task.query_id, "", "error", error=error)
        if task.label == "matched" and task.moment not in task.events:
            error = f"the label is matched, but video {task.shown_video_id} does not have the query's moment"
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
    """The beginning of a template trace: what the video shows and when, and then the query `asked`, in plain words."""
    lines = [f"{event.times}: {caption}." for event, caption in zip(events, own_captions(events), strict=True)]
    return " ".join([*lines, f"Asked: {asked}."])


def own_captions(events: Sequence[EventNote]) -> list[str]:
    """The captions of a video's events. If there are several events, the part of a caption that describes a
    neighbouring event is cut off, because that event has its own caption."""
    return [_NEIGHBOUR.sub("", event.caption) if len(events) > 1 else event.caption for event in events]


def judge_words(asked: str, shown: str) -> list[tuple[str, bool]]:
    """(word, whether `shown` has it in the same order) for each word of `asked` that is not a stop word."""
    wanted, have = (re.findall(r"[\w'-]+", text.lower()) for text in (asked, shown))
    blocks = SequenceMatcher(None, wanted, have, autojunk=False).get_matching_blocks()
    found = {block.a + i for block in blocks for i in range(block.size)}
    return [(word, i in found) for i, word in enumerate(wanted) if word not in STOP_WORDS]


def refusal(reply: TeacherReply, label: Label) -> str | None:
    """Why a reply cannot be used as a training trace; None when it can."""
    if reply.error:
        return f"the teacher failed: {reply.error}"
    if reply.finish_reason == "length":
        return f"the trace was cut off after {reply.num_tokens} tokens; raise the teacher's token limit"
    if reply.finish_reason != "stop":
        return f"the teacher stopped before the end of the trace, with reason {reply.finish_reason!r}"
    if not reply.text.strip():
        return "the teacher wrote nothing"
    if re.search(ANY_TAG, reply.text):
        return "the trace contains tags that only an answer may have"
    if reply.verdict is not None and reply.verdict != label:
        return f"the trace contradicts the label: it supports {reply.verdict}, but the label is {label}"
    return None


def _ask_a_model(recipe: TeacherRecipe, endpoint: EndpointSettings | None) -> Teacher:
    from vsr1_core.reasoning.endpoint import EndpointTeacher

    if not isinstance(recipe, EndpointRecipe):
        raise ConfigurationError("a teacher at an endpoint needs a recipe of type EndpointRecipe(model=...)")
    if endpoint is None:
        raise ConfigurationError(
            f"the configuration's teacher is the model {recipe.model or '(no model named)'} at an endpoint, and no "
            "endpoint is set up: serve that model behind an OpenAI-compatible API and set VSR1_TEACHER_URL to its "
            "base, such as http://127.0.0.1:8000/v1 (and VSR1_TEACHER_API_KEY if it needs a key); or write traces from "
            "the annotations: vsr1 config new NAME --base ... --set teacher.kind=template"
        )
    return EndpointTeacher(recipe, endpoint)


TEACHERS: Mapping[str, Callable[[TeacherRecipe, EndpointSettings | None], Teacher]] = {
    "template": lambda recipe, endpoint: TemplateTeacher(),
    "endpoint": _ask_a_model,
}


def make_teacher(recipe: TeacherRecipe, endpoint: EndpointSettings | None = None) -> Teacher:
    """Make the teacher that the recipe names. Raises ConfigurationError, which says what to configure, when the teacher
    is unknown or its endpoint is not set up."""
    if recipe.kind not in TEACHERS:
        raise ConfigurationError(f"teacher kind {recipe.kind!r} is not one of {', '.join(TEACHERS)}")
    return TEACHERS[recipe.kind](recipe, endpoint)
