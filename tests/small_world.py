"""A small corpus on disk that edits change: real clips of a few frames, annotations in the FIG schema.

Its dataset is called `small`, of the kind `verified`, and trains its own models. Which stages build it is the test's
choice: the real ones, or those of `tests.cheap_stages`.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.videos import write_video
from vsr1_core.datasets.registry import DatasetEntry, save_entry
from vsr1_core.recipes import Configuration
from vsr1_core.rows.increments import Outcome, Plan
from vsr1_core.rows.lake import Lake
from vsr1_core.stages.base import Stage, View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import plan_graph

DURATION_S = 6.0
NOT_A_VIDEO = b"\0" * 100


@functools.cache
def clip(picture: int) -> bytes:
    """An mp4 of 6 s in 32 x 32 pixels; each number is another picture."""
    frames = np.full((6, 32, 32, 3), 16 + 7 * (picture % 32), np.uint8)
    frames[:, : 8 + picture % 16, : 4 + picture % 23] = 250
    with tempfile.TemporaryDirectory() as folder:
        path = write_video(Path(folder, "clip.mp4"), [float(second) for second in range(6)], frames)
        return path.read_bytes()


@dataclass
class SmallWorld:
    """What is annotated, in memory and on disk. `rows`: split -> rows of the FIG schema."""

    home: Path
    name: str = "small"
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"train": [], "test": []})
    clock: int = 0

    @property
    def entry(self) -> DatasetEntry:
        return DatasetEntry(self.name, "verified", str(self.videos), str(self.annotations), "nano")

    @property
    def videos(self) -> Path:
        return self.home / "data" / self.name / "videos"

    @property
    def annotations(self) -> Path:
        return self.home / "data" / self.name

    def annotation_path(self, split: str) -> Path:
        return self.annotations / f"{self.name}_fig_{split}.jsonl"

    def video_path(self, video_id: str) -> Path:
        return self.videos / f"{video_id}.mp4"

    def register(self) -> SmallWorld:
        save_entry(self.home, self.entry)
        return self

    def write_annotations(self, split: str) -> None:
        self.annotations.mkdir(parents=True, exist_ok=True)
        self.annotation_path(split).write_text("".join(json.dumps(row) + "\n" for row in self.rows[split]))

    def put_video(self, video_id: str, content: bytes) -> None:
        self.videos.mkdir(parents=True, exist_ok=True)
        self.video_path(video_id).write_bytes(content)
        self.touch(self.video_path(video_id))

    def touch(self, path: Path) -> None:
        """Give a file a time of its own: two writes within the clock's resolution would look the same."""
        self.clock += 1
        os.utime(path, (1_700_000_000 + self.clock,) * 2)

    def delete_video(self, video_id: str) -> None:
        self.video_path(video_id).unlink(missing_ok=True)

    def add_query(self, split: str, desc_id: int, video_id: str, **changes: Any) -> None:
        """A query about a video; not written yet."""
        row = {
            "video": video_id,
            "time": [1.0, 4.0],
            "desc_id": desc_id,
            "duration": DURATION_S,
            "cog_desc": f"thing {desc_id} moves",
            "fig_desc": f"the thing called {desc_id} moves along",
            "fig_desc_score": 1.0,
        }
        self.rows[split].append({**row, **changes})

    def find(self, desc_id: int) -> tuple[str, dict[str, Any]]:
        """A query's split and row, to be changed in place."""
        found = [(split, row) for split, rows in self.rows.items() for row in rows if row["desc_id"] == desc_id]
        return found[0]

    def view(self, stages: Mapping[str, Stage], config: Configuration, root: Path | None = None) -> View:
        """The tables below `root`, by default those of the home."""
        return View(Lake(root or self.home / "lake"), self.entry, config, stages, home=self.home)


def fill(world: SmallWorld, num_train: int = 6, num_test: int = 3) -> SmallWorld:
    """Videos `train_0`, `test_0`, ... with two queries each: 100, 101, 110, ... (train), 900, 901, 910, ... (test)."""
    for split, count, base in (("train", num_train, 100), ("test", num_test, 900)):
        for number in range(count):
            video_id = f"{split}_{number}"
            world.put_video(video_id, clip(base + number))
            for event in range(2):
                span = [3.0 * event, 3.0 * event + 3.0]
                world.add_query(split, base + 10 * number + event, video_id, time=span)
        world.write_annotations(split)
    return world


def build(view: View, execution: Execution | None = None) -> dict[str, Outcome]:
    """Every stage in order, without Dagster."""
    execution = execution or Execution(workers=1)
    return {name: stage.build(view, execution) for name, stage in view.stages.items()}


def plans(view: View) -> dict[str, Plan | None]:
    """Asset -> plan; None where it depends on results that are not there yet."""
    fresh = View(view.lake, view.entry, view.config, view.stages, home=view.home)
    return {plan.asset: plan.plan for plan in plan_graph(fresh)}
