"""The sampled frames of each segment: a file on disk and a row about it. `media.decode` decodes the video, and
`media.frame_store` writes the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from vsr1_core.media.frame_store import suffix_of
from vsr1_core.media.video_rows import half_hours, sample_video
from vsr1_core.recipes import Configuration, FrameRecipe, effective
from vsr1_core.rows.columnar import LazyRows
from vsr1_core.rows.files import FileStamp, file_stem
from vsr1_core.rows.versions import canonical, fingerprint
from vsr1_core.segments import video_of, window_id, window_of, windows_of
from vsr1_core.stages import checks
from vsr1_core.stages import columns as c
from vsr1_core.stages.base import Row, Stage, View
from vsr1_core.stages.columns import Column, failed
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.reads import of_video

DEADLINE_S = 900.0
"""Seconds that sampling may take; as `VideoLimits.cpu_s`, for each half hour of a video that is sampled in windows."""


class FrameTensors(Stage):
    """One row and one file of frames (uint8 [T, H, W, 3]) per segment: a whole video, or a window of a long one. The
    file is an array or an archive of JPEGs (`frames.store`).

    All windows of a file are sampled in one pass over it. timestamps_s: the source time of each frame, in seconds from
    the video's first frame; the file's own clock shows start_s at that frame. content: the version of the pixels, which
    stages that read no splits depend on. height, width: the size that models are shown; the array of an imported video
    may have another size.
    """

    name = "frame_tensors"
    key = "video_id"
    key_says = c.SEGMENT_SAYS
    group = "media"
    says = (
        "One file of evenly sampled frames per video, or per window of a long one, with the true time of each in "
        "seconds: a uint8 array [T, H, W, 3], or an archive of JPEGs."
    )
    reads = {"video": of_video("videos"), "splits": of_video("videos")}
    imports = "rows"
    kept_inputs = ("splits",)
    row_files = "*-*.*"
    checks = (checks.SOME_USABLE, checks.SOME_READABLE)
    is_planned_from_tables = True
    columns = {
        "path": c.PATH,
        "content": c.CONTENT,
        "splits": c.SPLITS,
        "num_frames": c.integer("Number of sampled frames, which is even."),
        "height": c.integer("Height in pixels of the frames that models are shown."),
        "width": c.integer("Width in pixels of the frames that models are shown."),
        "timestamps_s": Column(
            pl.List(pl.Float64), "Source time of each sampled frame, in seconds from the video's first frame."
        ),
        "duration_s": c.number("Length of the video, or of the window, in seconds."),
        "start_s": c.CLOCK_START_S,
        "bytes": c.BYTES,
    }

    def recipe(self, config: Configuration) -> FrameRecipe:
        return effective(config.frames)

    def plan(self, view: View) -> Mapping[str, Row]:
        suffix = suffix_of(view.config.frames)
        folder, recipe = view.files(self.name).absolute(), canonical(self.recipe(view.config))

        def row(segment_id: str, source: str, splits: list[str], *stamp: Any) -> Row:
            content = fingerprint([source, recipe, self.version, *(window_of(segment_id) or ())])
            known = {"content": content, "splits": splits, "path": f"{folder}/{file_stem(segment_id)}{suffix}"}
            return Row(_inputs(source, splits), known, facts=FileStamp(*stamp))

        columns = ["video_id", "content", "splits", "path", "bytes", "mtime_ns"]
        if not view.config.segments.window_s:
            return LazyRows(view.rows("videos", columns), row)
        return self._of_windows(view, columns, row)

    def _of_windows(self, view: View, columns: Sequence[str], row: Callable[..., Row]) -> dict[str, Row]:
        """The rows where long videos are divided. Raises NotYetKnown while a length is still to be read."""
        rows: dict[str, Row] = {}
        imported, segments = view.imported_rows(self.name), view.config.segments
        videos = view.results("videos", [*columns, "duration_s"])
        for video_id, source, splits, *stamp, duration_s in videos.iter_rows():
            is_whole = video_id in imported or duration_s is None
            try:
                windows = windows_of(0.0 if is_whole else duration_s, segments.window_s, segments.overlap)
            except ValueError as error:
                reason = f"{Path(stamp[0]).name}: {error}"
                rows[video_id] = Row(_inputs(source, splits), {"splits": splits, **failed(reason)})
                continue
            for segment_id in [window_id(video_id, *window) for window in windows] or [video_id]:
                rows[segment_id] = row(segment_id, source, splits, *stamp)
        return rows

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        done = {row["video_id"]: row for row in view.table(self.name).ok_rows().iter_rows(named=True)}
        targets: dict[str, dict[str, str]] = {}
        for segment_id, row in rows.items():
            known, old = row.known, done.get(segment_id)
            if "error" in known:
                yield {"video_id": segment_id, "splits": known["splits"], "error": known["error"]}
            elif old and old["content"] == known["content"] and Path(known["path"]).is_file():
                yield {**old, **known}  # only the splits changed
            else:
                targets.setdefault(video_of(segment_id), {})[segment_id] = known["path"]
        how = (view.config.frames, run.video_limits, run.has_own_processes)
        tasks = [(video_id, rows[next(iter(of))].facts, of, *how) for video_id, of in targets.items()]
        deadline_s = DEADLINE_S * max((half_hours(of) for of in targets.values()), default=1)
        for result in run.map_rows(sample_video, tasks, view.folders, deadline_s):
            for segment_id in result.item[2]:
                made = result.value[segment_id] if result.value else {"error": result.error}
                yield {"video_id": segment_id, **rows[segment_id].known, **made}


def _inputs(source: str, splits: Sequence[str]) -> dict[str, str]:
    return {"video": source, "splits": " ".join(splits)}


STAGES: tuple[type[Stage], ...] = (FrameTensors,)
