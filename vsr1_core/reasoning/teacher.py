"""Who writes the reasoning traces, what it is given, and which replies are refused.

The template teacher writes from annotations alone; `reasoning.endpoint` asks a model. No tables here, and no answer
tags: `reasoning.conversation` writes those.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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
            "http://127.0.0.1:8000/v1 (and VSR1_TEACHER_API_KEY where it wants a key); or write traces from "
            "the annotations: vsr1 config new NAME --base ... --set teacher.kind=template"
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
