"""The reasoning traces: what the teacher writes about each pair of the pool. `reasoning.teacher` has the teachers."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from vsr1_core.reasoning.tasks import EventNote, Label, StoredFrames, TeacherTask
from vsr1_core.reasoning.teacher import make_teacher, refusal
from vsr1_core.recipes import Configuration
from vsr1_core.rows.columnar import LazyRows, ids_of, texts
from vsr1_core.rows.frames import regrouped
from vsr1_core.rows.merged import is_among
from vsr1_core.rows.packed import Packed, packed
from vsr1_core.rows.versions import Inputs, fingerprint
from vsr1_core.segments import clipped, touches, video_of
from vsr1_core.stages import columns as c
from vsr1_core.stages.base import Row, RowIds, View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.model_rows import ModelRows
from vsr1_core.stages.moments import IS_TRAIN, TRAIN, moment_version, train_moments
from vsr1_core.stages.opened import OpenedModels
from vsr1_core.stages.readings import Reading
from vsr1_core.stages.reads import found_by, known, row_ids, same


def _told_to_the_teacher(view: View, row_id: str, row: Row) -> RowIds:
    shown = pl.col("video_id") == video_of(row.known["shown_video_id"])
    return [("moments", row_ids(view, "moments", IS_TRAIN & (shown | (pl.col("query_id") == row_id))))]


class ReasoningTraces(ModelRows):
    """What the teacher wrote about each pair of the pool. An unusable trace is a failed row that says why.

    A row of the template teacher depends on the moments of the shown video. A row of a model behind an endpoint depends
    on the frames of the shown video and on the text in its prompt.
    """

    name = "reasoning_traces"
    key = "query_id"
    group = "sft"
    version = 3
    says = "One row per pair of the pool: what the teacher wrote about the shown video. An unusable trace has failed."
    reads = {
        "top1_pool": same("top1_pool"),
        "moments": found_by(_told_to_the_teacher, "moments"),
        "frames": known("frame_tensors", "shown_video_id"),
    }
    imports = "rows"
    is_planned_from_tables = True
    columns = {
        "label": c.LABEL,
        "shown_video_id": c.SHOWN_VIDEO_ID,
        "trace": c.text("Reasoning that the teacher wrote about the shown video."),
        "verdict": c.text("Label that the teacher's own words support; null where they support none."),
        "finish_reason": c.text("Why the teacher stopped: `stop`, or `length` where the text was cut off."),
        "num_tokens": c.integer("Number of tokens that the teacher wrote."),
        "num_prompt_tokens": c.integer("Number of tokens that the teacher read."),
        "num_requests": c.integer("Number of requests that were made, retries included."),
        "request_s": c.number("Seconds that these requests took, without the waits between them."),
    }

    def recipe(self, config: Configuration) -> Any:
        return config.teacher

    def shard_rows(self, view: View, run: Execution) -> int:
        """Each reply of a model is saved as it arrives, because it costs money or seconds of a GPU."""
        return 1 if view.config.teacher.asks_a_model else run.shard_rows

    def plan(self, view: View) -> Mapping[str, Row]:
        versions, tasks = view.versions("top1_pool"), _teacher_tasks(view)
        moments = train_moments(view) if view.imported is not None else None  # only imported rows have this basis
        reads = _read_by_a_model if view.config.teacher.asks_a_model else _read_by_the_template

        def row(query_id: str) -> Row:
            task = tasks[query_id]
            known = {"label": task.label, "shown_video_id": task.shown_video_id}
            basis = {"moment": moment_version(moments[query_id])} if moments is not None else {}
            return Row({"top1_pool": versions[query_id], **reads(task)}, known, basis, facts=task)

        return LazyRows(ids_of(tasks).to_frame(), row)

    def make_with(self, opened: OpenedModels, rows: Mapping[str, Row]) -> Iterator[dict[str, Any]]:
        teacher = make_teacher(opened.view.config.teacher, opened.execution.endpoint)
        asked: dict[str, TeacherTask] = {}
        for reply in teacher.write(_noted(asked, (row.facts for row in rows.values()))):
            task = asked.pop(reply.query_id)
            yield {
                "query_id": task.query_id,
                "label": task.label,
                "shown_video_id": task.shown_video_id,
                "trace": reply.text,
                "verdict": reply.verdict,
                "finish_reason": reply.finish_reason,
                "num_tokens": reply.num_tokens,
                "num_prompt_tokens": reply.num_prompt_tokens,
                "num_requests": reply.num_requests,
                "request_s": reply.request_s,
                "error": refusal(reply, task.label),
            }


def _read_by_the_template(task: TeacherTask) -> Inputs:
    return {"moments": fingerprint([task.query, task.moment, task.events])}


def _read_by_a_model(task: TeacherTask) -> Inputs:
    span = [task.moment.start_s, task.moment.end_s] if task.label == "matched" else None
    return {"moments": fingerprint([task.query, span]), "frames": task.frames.content if task.frames else "none"}


def _noted(asked: dict[str, TeacherTask], tasks: Iterable[TeacherTask]) -> Iterator[TeacherTask]:
    """The tasks, each of which is in `asked` by its query id from then on."""
    for task in tasks:
        asked[task.query_id] = task
        yield task


def _teacher_tasks(view: View) -> Mapping[str, TeacherTask]:
    pool = view.rows("top1_pool", ["query_id", "label", "shown_video_id"])
    asked, shown_events = _told(view, pool)
    of_query = LazyRows(asked, lambda _, *told: told)
    of_video = LazyRows(shown_events.group_by("video_id").agg(_EVENT), _events_of)
    frames = _stored_frames(view) if view.config.teacher.asks_a_model else {}

    @functools.lru_cache(maxsize=1024)
    def events(segment_id: str) -> tuple[EventNote, ...]:
        return _events_in(segment_id, video_of(segment_id), of_video.get(video_of(segment_id), ()))

    def task(query_id: str, label: Label, shown: str) -> TeacherTask:
        *event, query = of_query[query_id]
        note = _event_note(event, shown if label == "matched" else "")
        return TeacherTask(query_id, query, label, shown, note, events(shown), frames.get(shown))

    return LazyRows(pool.filter(is_among("query_id", asked.to_series(0))), task)


_EVENT = ("start_s", "end_s", "words")
"""What happens in a video, and when."""
_Event = Sequence[Any]
"""The values of _EVENT."""
CHOSEN_FROM = 65536
"""Of so many moments at a time those are chosen that are told: a pool of 100,000 of 800,000 queries needs no others."""


def _told(view: View, pool: pl.DataFrame) -> tuple[pl.DataFrame | Packed, pl.DataFrame]:
    """The id, event and text of each query of the pool that has a moment, and the video and event of each train query
    about a shown video. Of a moment in words that is its plain caption, or its query where it has none."""
    shown_videos = map(video_of, texts(pool["shown_video_id"]))
    is_asked, is_shown = is_among("query_id", pool["query_id"]), is_among("video_id", shown_videos)
    words = pl.when(pl.col("plain_query").fill_null("") == "").then("query").otherwise("plain_query").alias("words")
    columns = ("query_id", "video_id", "start_s", "end_s", "plain_query", "query")
    shown = []

    def asked() -> Iterator[pl.DataFrame]:
        read = view.read_batches(Reading.of("moments", "ok", columns, TRAIN))
        for moments in regrouped(read, CHOSEN_FROM):
            told = moments.with_columns(words)
            shown.append(told.filter(is_shown).select("video_id", *_EVENT))
            yield told.filter(is_asked).select("query_id", *_EVENT, "query")

    return packed(asked()), pl.concat(shown)


def _events_of(_: str, *lists: Sequence[Any]) -> list[_Event]:
    """The events of a video, of which each column of _EVENT has a list."""
    return list(zip(*lists, strict=True))


def _events_in(segment_id: str, video_id: str, events: Iterable[_Event]) -> tuple[EventNote, ...]:
    """The events of a video that a segment shows, in the order of time; each is cut to what it shows."""
    shown = (event for event in events if touches(segment_id, video_id, event[0], event[1]))
    return tuple(sorted({_event_note(event, segment_id) for event in shown}))


def _stored_frames(view: View) -> Mapping[str, StoredFrames]:
    """Video id -> its stored frames. While planning, frames that are still to be made have no times yet."""
    return LazyRows(
        view.rows("frame_tensors", ["video_id", "path", "timestamps_s", "content"]),
        lambda _, path, times, content: StoredFrames(path, tuple(times or ()), content),
    )


def _event_note(event: _Event, segment_id: str) -> EventNote:
    """The event as the teacher reads it. Its times are cut to what the segment shows; those of an empty id are not."""
    start_s, end_s, words = event
    return EventNote(*clipped(segment_id, start_s, end_s), " ".join(words.split()).rstrip("."))


STAGES: tuple[type[ModelRows], ...] = (ReasoningTraces,)
