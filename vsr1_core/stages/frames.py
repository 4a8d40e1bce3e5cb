"""The sampled frames of each video: a file on disk and a row about it. `media.decode` decodes the video."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from vsr1_core.media.sampling import RULES
from vsr1_core.media.video_limits import VideoLimits
from vsr1_core.recipes import Configuration, FrameRecipe
from vsr1_core.rows.files import FileStamp, file_stem
from vsr1_core.rows.versions import canonical, fingerprint
from vsr1_core.stages import checks
from vsr1_core.stages import columns as c
from vsr1_core.stages.base import Row, Stage, View
from vsr1_core.stages.columns import Column
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.reads import same


class FrameTensors(Stage):
    """One row and one `.npy` file (uint8 [T, H, W, 3]) per video.

    timestamps_s: the source time of each frame, in seconds from the video's first frame; the file's own clock shows
    start_s at that frame. content: the version of the pixels, which stages that read no splits depend on. height,
    width: the size that models are shown; the array of an imported video may have another size.
    """

    name = "frame_tensors"
    key = "video_id"
    group = "media"
    says = "One uint8 array [T, H, W, 3] of evenly sampled frames per video, with the true time of each in seconds."
    reads = {"video": same("videos"), "splits": same("videos")}
    imports = "rows"
    kept_inputs = ("splits",)
    row_files = "*.npy"
    checks = (checks.SOME_USABLE, checks.SOME_READABLE)
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
        "duration_s": c.DURATION_S,
        "start_s": c.CLOCK_START_S,
        "bytes": c.BYTES,
    }

    def recipe(self, config: Configuration) -> FrameRecipe:
        return config.frames

    def plan(self, view: View) -> dict[str, Row]:
        rows, folder, recipe = {}, view.files(self.name).absolute(), canonical(view.config.frames)
        columns = ["video_id", "content", "splits", "path", "bytes", "mtime_ns"]
        for video_id, source, splits, *stamp in view.rows("videos", columns).iter_rows():
            content = fingerprint([source, recipe, self.version])
            known = {"content": content, "splits": splits, "path": f"{folder}/{file_stem(video_id)}.npy"}
            rows[video_id] = Row({"video": source, "splits": " ".join(splits)}, known, facts=FileStamp(*stamp))
        return rows

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        done = {row["video_id"]: row for row in view.table(self.name).ok_rows().iter_rows(named=True)}
        tasks, limits = [], run.video_limits
        for video_id, row in rows.items():
            known, old = row.known, done.get(video_id)
            if old and old["content"] == known["content"] and Path(known["path"]).is_file():
                yield {**old, **known}  # only the splits changed
            else:
                tasks.append((video_id, row.facts, known["path"], view.config.frames, limits, run.has_own_processes))
        for result in run.map_rows(_sample_video, tasks, view.folders):
            video_id = result.item[0]
            yield {"video_id": video_id, **rows[video_id].known, **(result.value or {"error": result.error})}


def _sample_video(task: tuple[str, FileStamp, str, FrameRecipe, VideoLimits, bool]) -> dict[str, Any]:
    from vsr1_core.media.cage import caged

    _, source, target, recipe, limits, is_own_process = task
    if not is_own_process:
        return _sampled(source, Path(target), recipe, limits)
    with caged(Path(source.path).name, limits, _most_bytes(recipe)):
        return _sampled(source, Path(target), recipe, limits)


def _most_bytes(recipe: FrameRecipe) -> int:
    """The size of the largest file of frames that a recipe can give, with the header of its array."""
    pixels = max(recipe.max_pixels, recipe.size_multiple**2, *(rule.max_pixels for rule in RULES.values()))
    return (recipe.max_frames + 1) * pixels * 3 + 4096


def _sampled(source: FileStamp, target: Path, recipe: FrameRecipe, limits: VideoLimits) -> dict[str, Any]:
    from vsr1_core.media.decode import sample_frames
    from vsr1_core.media.frame_store import write_frames

    frames = sample_frames(Path(source.path), recipe, limits)
    source.check()
    write_frames(target, frames.pixels)
    return {
        "num_frames": len(frames.pixels),
        "height": frames.pixels.shape[1],
        "width": frames.pixels.shape[2],
        "timestamps_s": frames.timestamps_s.tolist(),
        "duration_s": frames.duration_s,
        "start_s": frames.start_s,
        "bytes": target.stat().st_size,
    }


STAGES: tuple[type[Stage], ...] = (FrameTensors,)
