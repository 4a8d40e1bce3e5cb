"""What the benchmarks search: random frames of any size. The toy dataset's own test split is in `toy_corpus`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from transformers import Qwen3VLConfig

from tests.core.tiny_models import query_text
from vsr1_core.models.qwen3_vl.inputs import VideoPatches, video_patches
from vsr1_core.search.turns import EpisodeQuery


@dataclass(frozen=True)
class Corpus:
    """Videos and durations by id, and what is asked of them."""

    name: str
    videos: dict[str, VideoPatches]
    durations_s: dict[str, float]
    queries: list[EpisodeQuery]


def random_corpus(config: Qwen3VLConfig, count: int, num_frames: int, side: int) -> Corpus:
    """As many queries as videos of random frames, a frame a second."""
    videos = {f"v{seed}": random_frames(seed, num_frames, side, side, config) for seed in range(count)}
    queries = [EpisodeQuery(f"q{i}", f"{query_text(i)} at {i % 60}.{i // 60} seconds", f"v{i}") for i in range(count)]
    return Corpus(f"random frames, {side}x{side}", videos, dict.fromkeys(videos, float(num_frames)), queries)


def random_frames(seed: int, count: int, height: int, width: int, config: Qwen3VLConfig) -> VideoPatches:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return video_patches(pixels, [float(t) for t in range(count)], config)
