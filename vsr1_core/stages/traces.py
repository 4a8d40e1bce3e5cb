"""The reasoning traces: what the teacher writes about each pair of the pool. `reasoning.teacher` has the teachers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from vsr1_core.evaluation.row_types import MomentRow, typed_rows
from vsr1_core.reasoning.tasks import EventNote, StoredFrames, TeacherTask
from vsr1_core.reasoning.teacher import make_teacher, refusal
from vsr1_core.recipes import Configuration
from vsr1_core.rows.versions import Inputs, fingerprint
from vsr1_core.segments import clipped, touches, video_of
from vsr1_core.stages import columns as c
from vsr1_core.stages.base import Row, RowIds, View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.model_rows import ModelRows
from vsr1_core.stages.moments import IS_TRAIN, TRAIN, moment_rows, moment_version, train_moments
from vsr1_core.stages.opened import OpenedModels
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

    def plan(self, view: View) -> dict[str, Row]:
        versions, moments = view.versions("top1_pool"), train_moments(view)
        reads = _read_by_a_model if view.config.teacher.asks_a_model else _read_by_the_template
        return {
            task.query_id: Row(
                {"top1_pool": versions[task.query_id], **reads(task)},
                {"label": task.label, "shown_video_id": task.shown_video_id},
                {"moment": moment_version(moments[task.query_id])},
                facts=task,
            )
            for task in _teacher_tasks(view)
        }

    def make_with(self, opened: OpenedModels, rows: Mapping[str, Row]) -> Iterator[dict[str, Any]]:
        teacher = make_teacher(opened.view.config.teacher, opened.execution.endpoint)
        for reply in teacher.write([row.facts for row in rows.values()]):
            task: TeacherTask = rows[reply.query_id].facts
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


def _teacher_tasks(view: View) -> list[TeacherTask]:
    pool = view.rows("top1_pool", ["query_id", "label", "shown_video_id"])
    shown_videos = {segment_id: video_of(segment_id) for segment_id in pool["shown_video_id"]}
    asked, shown_ones = pl.col("query_id").is_in(pool["query_id"]), pl.col("video_id").is_in([*shown_videos.values()])
    moments = list(typed_rows(moment_rows(view, TRAIN).filter(asked | shown_ones), MomentRow))
    of_query = {m["query_id"]: m for m in moments}
    of_video = defaultdict(list)
    for moment in moments:
        of_video[moment["video_id"]].append(moment)
    events = {segment_id: _events_in(segment_id, of_video[of]) for segment_id, of in shown_videos.items()}
    frames = _stored_frames(view) if view.config.teacher.asks_a_model else {}
    return [
        TeacherTask(
            query_id,
            of_query[query_id]["query"],
            label,
            shown,
            _event_note(of_query[query_id], shown if label == "matched" else ""),
            events[shown],
            frames.get(shown),
        )
        for query_id, label, shown in pool.iter_rows()
        if query_id in of_query
    ]


def _events_in(segment_id: str, moments: Sequence[MomentRow]) -> tuple[EventNote, ...]:
    """The events of a video's `moments` that a segment shows, in the order of time; each is cut to what it shows."""
    shown = (m for m in moments if touches(segment_id, m["video_id"], m["start_s"], m["end_s"]))
    return tuple(sorted({_event_note(moment, segment_id) for moment in shown}))


def _stored_frames(view: View) -> dict[str, StoredFrames]:
    """Video id -> its stored frames. While planning, frames that are still to be made have no times yet."""
    rows = view.rows("frame_tensors", ["video_id", "path", "timestamps_s", "content"]).iter_rows()
    return {video_id: StoredFrames(path, tuple(times or ()), content) for video_id, path, times, content in rows}


def _event_note(moment: MomentRow, segment_id: str) -> EventNote:
    """The moment in plain words: its plain caption, or its query where the dataset has no plain captions. Its times are
    cut to what the segment shows; those of an empty id are not."""
    caption = " ".join((moment["plain_query"] or moment["query"]).split()).rstrip(".")
    return EventNote(*clipped(segment_id, moment["start_s"], moment["end_s"]), caption)


STAGES: tuple[type[ModelRows], ...] = (ReasoningTraces,)
