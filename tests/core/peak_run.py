"""Embeds or asks about videos in a process of its own, and prints by how many bytes its resident set grew in each.

python -m tests.core.peak_run {videos|answers} NUM_VIDEOS,NUM_FRAMES,LIMIT ...
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from tests.core.tiny_models import small_config, tiny_embedder, tiny_policy
from vsr1_core.models.batches import Budget
from vsr1_core.models.feature_store import FeatureStore
from vsr1_core.models.protocols import DecodeSettings, VideoFrames
from vsr1_core.models.video_vectors import embedded_videos
from vsr1_core.search.episodes import verify

SIDE = 128


def video(seed: int, num_frames: int) -> VideoFrames:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 255, (num_frames, SIDE, SIDE, 3), dtype=np.uint8)
    return VideoFrames(pixels, [float(i) for i in range(num_frames)])


def status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def embed(num_videos: int, num_frames: int, budget: Budget) -> None:
    videos = ((f"v{i}", video(i, num_frames)) for i in range(num_videos))
    made = embedded_videos(tiny_embedder(), videos, budget, 32)
    assert len(list(made)) == num_videos


def ask(num_videos: int, num_frames: int, budget: Budget) -> None:
    policy = tiny_policy(config=small_config())
    names = [f"v{i}" for i in range(num_videos)]
    layout = policy.encoder.layout(SIDE, SIDE, range(num_frames))
    store = FeatureStore(
        policy.encoder,
        lambda name: policy.encoder.prepare(video(int(name[1:]), num_frames)),
        max_bytes=1 << 20,
        budget=budget,
        layout_of=lambda _name: layout,
    )
    pairs = [("a ring moves", name) for name in names]
    durations_s = dict.fromkeys(names, float(num_frames))
    assert len(verify(policy, store, durations_s, pairs, DecodeSettings(2), 64)) == num_videos


def main() -> None:
    torch.manual_seed(0)
    work = {"videos": embed, "answers": ask}[sys.argv[1]]
    work(1, 16, Budget(limit=1))  # imports, tokenizer and kernels are paid once
    for case in sys.argv[2:]:
        num_videos, num_frames, limit = map(int, case.split(","))
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        work(num_videos, num_frames, Budget(limit=limit))
        print(status("VmHWM") - before)


if __name__ == "__main__":
    main()
