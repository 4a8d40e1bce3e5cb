"""The annotations and the clips of the stand-in: real ids and texts, real lengths, made-up pictures."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vsr1_core.datasets.benchmarks import BENCHMARKS
from vsr1_core.datasets.toy_files import clip_mark, encode_clip
from vsr1_core.rows.files import atomic_path, read_jsonl, write_jsonl

CHARADES = BENCHMARKS["charades"]
SIZE, FPS = 64, 2


@dataclass(frozen=True)
class Clip:
    """One video to make. duration_s: whole steps."""

    video_id: str
    duration_s: float
    path: Path

    @property
    def mark(self) -> str:
        return f"stand-in {self.video_id} {self.duration_s:g} s {SIZE} {FPS}"


def place_annotations(source: Path, target: Path, num_videos: int | None) -> dict[str, float]:
    """Write the annotation files, as they are or with the rows of `num_videos` videos. Video id -> annotated seconds.

    Videos are chosen by a hash of their id: asking for more keeps those that were there.
    """
    lines = {f.name: [text for _, text in read_jsonl(source / f.name)] for f in CHARADES.files}
    durations: dict[str, float] = {}
    for text in (text for texts in lines.values() for text in texts):
        row = json.loads(text)
        durations[row["video"]] = max(durations.get(row["video"], 0.0), row["duration"])
    chosen = set(sorted(durations, key=lambda v: hashlib.sha256(v.encode()).hexdigest())[:num_videos])
    for name, texts in lines.items():
        with atomic_path(target / name) as temporary:
            temporary.write_text("".join(text for text in texts if json.loads(text)["video"] in chosen))
    return {video_id: durations[video_id] for video_id in sorted(chosen)}


def change_annotations(folder: Path, share: float, offset: int = 0) -> int:
    """Give one row in `1 / share` another text and another span, beginning with row `offset`. Returns how many."""
    changed, step = 0, round(1 / share)
    for file in CHARADES.files:
        rows = [json.loads(text) for _, text in read_jsonl(folder / file.name)]
        for row in rows[offset % step :: step]:
            row["fig_desc"] += " again"
            row["time"] = [row["time"][0] / 2, row["time"][1]]
            changed += 1
        write_jsonl(folder / file.name, rows)
    return changed


def clips(durations: dict[str, float], folder: Path, step_s: float) -> Iterator[Clip]:
    for video_id, duration_s in durations.items():
        yield Clip(video_id, step_s * math.ceil(duration_s / step_s), folder / f"{video_id}.mp4")


def make_clip(clip: Clip) -> bool:
    """Encode one clip unless it is there. Whether it had to be made."""
    if clip_mark(clip.path) == clip.mark:
        return False
    encode_clip(clip.path, picture_of(clip), FPS, clip.mark)
    return True


def picture_of(clip: Clip) -> np.ndarray:
    """uint8 [T, 64, 64, 3]: coloured blocks that drift, others for every id."""
    rng = np.random.default_rng(int(hashlib.sha256(clip.video_id.encode()).hexdigest()[:8], 16))
    blocks = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    dx, dy = rng.integers(-4, 5, 2)
    return np.stack([np.roll(blocks, (n * dy, n * dx), (0, 1)) for n in range(round(clip.duration_s * FPS))])
