"""The sampled frames of each video, on disk and as a row. How they are decoded is `media.decode`'s."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import polars as pl

from vsr1_core.recipes import STAGE_VERSIONS, Configuration, FrameRecipe
from vsr1_core.rows.files import file_stem
from vsr1_core.rows.versions import canonical, fingerprint
from vsr1_core.stages.base import Execution, Row, Stage, View


class FrameTensors(Stage):
    """One row and one `.npy` (uint8 [T, H, W, 3]) a video.

    timestamps_s: each frame's source time, counted from the video's first frame, which the file's own clock shows at
    start_s. content: changes when, and only when, the pixels may: what reads no splits depends on this one. height,
    width: as models are shown them; the array of an imported video may have another size.
    """

    name: ClassVar[str] = "frame_tensors"
    key: ClassVar[str] = "video_id"
    group: ClassVar[str] = "media"
    upstream: ClassVar[tuple[str, ...]] = ("videos",)
    kept_inputs: ClassVar[tuple[str, ...]] = ("splits",)
    row_files: ClassVar[str] = "*.npy"
    columns: ClassVar[Mapping[str, Any]] = {
        "path": pl.String,
        "content": pl.String,
        "splits": pl.List(pl.String),
        "num_frames": pl.Int64,
        "height": pl.Int64,
        "width": pl.Int64,
        "timestamps_s": pl.List(pl.Float64),
        "duration_s": pl.Float64,
        "start_s": pl.Float64,
        "bytes": pl.Int64,
    }

    def recipe(self, config: Configuration) -> FrameRecipe:
        return config.frames

    def wanted(self, view: View) -> dict[str, Row]:
        rows, folder, recipe = {}, view.files(self.name).absolute(), canonical(view.config.frames)
        for video_id, source, splits in view.rows("videos", ["video_id", "content", "splits"]).iter_rows():
            content = fingerprint([source, recipe, STAGE_VERSIONS[self.name]])
            known = {"content": content, "splits": splits, "path": f"{folder}/{file_stem(video_id)}.npy"}
            rows[video_id] = Row({"video": source, "splits": " ".join(splits)}, known)
        return rows

    def process(self, view: View, ids: Sequence[str], execution: Execution) -> Iterator[dict[str, Any]]:
        wanted = self.wanted(view)
        done = {row["video_id"]: row for row in view.table(self.name).ok_rows().iter_rows(named=True)}
        sources = dict(view.rows("videos", ["video_id", "path"]).iter_rows())
        tasks = []
        for video_id in ids:
            known = wanted[video_id].known
            old = done.get(video_id)
            if old and old["content"] == known["content"] and Path(known["path"]).is_file():
                yield {**old, **known}  # only the splits changed
            else:
                tasks.append((video_id, sources[video_id], known["path"], view.config.frames))
        for result in execution.map_rows(_sample_video, tasks, view):
            video_id = result.item[0]
            row = result.value or {"error": result.error}
            yield {"video_id": video_id, **wanted[video_id].known, **row}


def _sample_video(task: tuple[str, str, str, FrameRecipe]) -> dict[str, Any]:
    from vsr1_core.media.decode import sample_frames
    from vsr1_core.media.frame_store import write_frames

    _, source, target, recipe = task
    frames = sample_frames(Path(source), recipe)
    write_frames(Path(target), frames.pixels)
    return {
        "num_frames": len(frames.pixels),
        "height": frames.pixels.shape[1],
        "width": frames.pixels.shape[2],
        "timestamps_s": frames.timestamps_s.tolist(),
        "duration_s": frames.duration_s,
        "start_s": frames.start_s,
        "bytes": Path(target).stat().st_size,
    }


STAGES: tuple[type[Stage], ...] = (FrameTensors,)
