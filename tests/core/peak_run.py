"""Embeds or asks about many videos in a process of its own, and prints by how many bytes its resident set grew.

python -m tests.core.peak_run {videos|answers} NUM_VIDEOS LIMIT
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

NUM_FRAMES, SIDE = 16, 128


def video(seed: int) -> VideoFrames:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 255, (NUM_FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
    return VideoFrames(pixels, [float(i) for i in range(NUM_FRAMES)])


def status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def embed(num_videos: int, budget: Budget) -> None:
    made = embedded_videos(tiny_embedder(), ((f"v{i}", video(i)) for i in range(num_videos)), budget, 32)
    assert len(list(made)) == num_videos


def ask(num_videos: int, budget: Budget) -> None:
    policy = tiny_policy(config=small_config())
    names = [f"v{i}" for i in range(num_videos)]
    layout = policy.encoder.layout(SIDE, SIDE, video(0).timestamps_s)
    store = FeatureStore(
        policy.encoder,
        lambda name: policy.encoder.prepare(video(int(name[1:]))),
        max_bytes=1 << 20,
        budget=budget,
        layout_of=lambda _name: layout,
    )
    pairs = [("a ring moves", name) for name in names]
    assert len(verify(policy, store, dict.fromkeys(names, 16.0), pairs, DecodeSettings(2), 64)) == num_videos


def main() -> None:
    what, num_videos, limit = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    torch.manual_seed(0)
    work = {"videos": embed, "answers": ask}[what]
    work(1, Budget(limit=1))  # imports, tokenizer and kernels are paid once
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    work(num_videos, Budget(limit=limit))
    print(status("VmHWM") - before)


if __name__ == "__main__":
    main()
