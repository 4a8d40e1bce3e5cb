"""A corpus of made-up vectors and moments as committed upstream tables, for the stages that search and train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vsr1_core.configurations import NANO
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.media.frame_store import write_frames
from vsr1_core.recipes import Configuration
from vsr1_core.rows.increments import Outcome
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.versions import fingerprint
from vsr1_core.stages import base_models, corpus, embeddings, examples, frames, pool, retrieval, traces
from vsr1_core.stages.base import Row, Stage, View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import in_order, plan_graph

STAGES = (*retrieval.STAGES, *pool.STAGES, *traces.STAGES, *examples.STAGES)
COLOURS = ("red", "green", "blue", "yellow", "cyan")
SHAPES = ("circle", "square", "bar")
FRAME_TIMES_S = (0.5, 2.5, 4.5, 6.5, 8.5, 9.5)


class Given(Stage):
    """A real table whose rows are given by the test. What the real stage knows before its work, this one knows."""

    def __init__(self, real: Stage, rows: list[dict[str, Any]]) -> None:
        self.name, self.key, self.group, self.columns, self.says = (
            *(real.name, real.key, real.group),
            *(real.columns, real.says),
        )
        self.given = {row[self.key]: row for row in rows}

    def plan(self, view: View) -> dict[str, Row]:
        plain = {i: {k: v for k, v in row.items() if k not in (self.key, "vector")} for i, row in self.given.items()}
        return {i: Row({"content": fingerprint(row)}, plain[i]) for i, row in self.given.items()}

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        return (self.given[i] for i in rows)


@dataclass
class FakeCorpus:
    """vectors: video id -> unit vector; splits: video id -> its splits; moments: rows of that table, with `vector`,
    the query's unit vector; contents: video id -> what its frames are, where not the same for all;
    models: rows of base_models."""

    home: Path
    config: Configuration = NANO
    vectors: dict[str, Any] = field(default_factory=dict)
    splits: dict[str, list[str]] = field(default_factory=dict)
    moments: list[dict[str, Any]] = field(default_factory=list)
    contents: dict[str, str] = field(default_factory=dict)
    models: list[dict[str, Any]] = field(default_factory=list)

    @property
    def stages(self) -> dict[str, Stage]:
        queries = [
            {k: m[k] for k in ("query_id", "split")} | {"gt_video_id": m["video_id"], "vector": m["vector"].tolist()}
            for m in self.moments
        ]
        videos = [
            {"video_id": v, "splits": self.splits[v], "vector": vector.tolist()} for v, vector in self.vectors.items()
        ]
        moments = [{k: v for k, v in m.items() if k != "vector"} for m in self.moments]
        pictures = [
            {"video_id": v, "path": str(self.frames_path(v)), "content": self.contents.get(v, "drawn"),
             "splits": self.splits[v], "timestamps_s": list(FRAME_TIMES_S)}
            for v in self.vectors
        ]  # fmt: skip
        given = [
            Given(frames.FrameTensors(), pictures),
            Given(corpus.Moments(), moments),
            Given(embeddings.QueryEmbeddings(), queries),
            Given(embeddings.VideoEmbeddings(), videos),
            Given(base_models.BaseModels(), self.models),
        ]
        return in_order([*given, *(stage() for stage in STAGES)])

    @property
    def view(self) -> View:
        return View(Lake(self.home / "lake"), DatasetEntry("toy", "toy"), self.config, self.stages)

    def frames_path(self, video_id: str) -> Path:
        return self.home / "frames" / f"{video_id}.npy"

    def draw_frames(self) -> None:
        """Write the files that the rows of frame_tensors name: frames of one colour each."""
        for number, video_id in enumerate(self.vectors):
            colours = np.random.default_rng(number).integers(0, 256, (len(FRAME_TIMES_S), 1, 1, 3), dtype=np.uint8)
            write_frames(self.frames_path(video_id), np.broadcast_to(colours, (len(FRAME_TIMES_S), 32, 32, 3)))

    def add_video(self, video_id: str, vector: Any, split: str = "train") -> None:
        self.vectors[video_id] = vector / np.linalg.norm(vector)
        self.splits[video_id] = [split]

    def add_moment(self, query_id: str, video_id: str, vector: Any, **changes: Any) -> None:
        row = {
            "query_id": query_id, "split": "train", "query": f"query {query_id}", "plain_query": f"caption {query_id}",
            "video_id": video_id, "start_s": 0.0, "end_s": 5.0, "duration_s": 10.0, "clamped": False,
        }  # fmt: skip
        self.moments.append({**row, **changes, "vector": vector / np.linalg.norm(vector)})

    def write(self) -> None:
        """Commit the given tables as they are now."""
        for name in ("moments", "query_embeddings", "video_embeddings", "frame_tensors", "base_models"):
            self.stages[name].build(self.view, Execution())

    def build(self, *assets: str) -> dict[str, Outcome]:
        names = assets or [make().name for make in STAGES]
        return {name: self.stages[name].build(self.view, Execution()) for name in names}

    def plan(self, *assets: str) -> dict[str, int | str]:
        """How many rows are due, or which asset has to run first."""
        return {
            p.asset: p.waits_for if p.plan is None else len(p.plan.due())
            for p in plan_graph(self.view)
            if p.asset in assets
        }

    def rows(self, asset: str) -> dict[str, dict[str, Any]]:
        table = self.view.table(asset)
        return {row[table.key]: row for row in table.rows().to_dicts()}


def shape_corpus(home: Path, num_videos: int = 24, seed: int = 0, config: Configuration = NANO) -> FakeCorpus:
    """`num_videos` train videos of two events each and 6 test videos; half of the queries point at their video, the
    others at the next one."""
    rng = np.random.default_rng(seed)
    made = FakeCorpus(home, config)
    for split, count in (("train", num_videos), ("test", 6)):
        ids = [f"{split}_{i:02d}" for i in range(count)]
        for video_id in ids:
            made.add_video(video_id, rng.standard_normal(16), split)
        for i, video_id in enumerate(ids):
            for event in range(2):
                aimed_at = video_id if (i + event) % 2 else ids[(i + 1) % count]
                noise = 0.1 * rng.standard_normal(16)
                colour, shape = COLOURS[(i + event) % 5], SHAPES[(i // 5 + event) % 3]
                way = ("left", "right")[i // 15 % 2]
                made.add_moment(
                    f"{split}_{i:02d}_{event}_fig", video_id, made.vectors[aimed_at] + noise / 2,
                    split=split, start_s=5.0 * event, end_s=5.0 * event + 5,
                    plain_query=f"a {colour} {shape} moves {way} on a {('black', 'white')[event]} background",
                )  # fmt: skip
    made.write()
    return made
