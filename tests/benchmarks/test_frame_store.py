"""Reading stored frames for a model, as JPEGs and as arrays in the same run: `make bench`.

What a model reads are patches; making them from frames costs the same either way.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.measuring import PROCESSOR, interleaved, line, milliseconds
from vsr1_core.media import jpeg_archive
from vsr1_core.media.frame_store import read_frames, write_frames
from vsr1_core.models.qwen3_vl.inputs import video_patches
from vsr1_core.models.qwen3_vl.sizes import published_config

NUM_FRAMES, SIZE, REPEATS = 16, 448, 5
MOST_TIME, LEAST_ROOM = "at most 1.5", "at least 8"


def frames_with_grain(seed: int = 0) -> np.ndarray:
    """Waves that move, with the grain of a camera: uint8 [T, H, W, 3]."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:SIZE, :SIZE]
    waves = [
        np.sin((x + 9 * t) / (11 + 5 * c)) + np.cos((y - x + 5 * t) / 23) for t in range(NUM_FRAMES) for c in range(3)
    ]
    smooth = 127 + 50 * np.array(waves).reshape(NUM_FRAMES, 3, SIZE, SIZE).transpose(0, 2, 3, 1)
    return np.clip(smooth + rng.normal(0, 2, smooth.shape), 0, 255).astype(np.uint8)


def test_jpegs_take_a_fraction_of_the_room_and_little_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = published_config("Qwen/Qwen3-VL-2B-Instruct")
    assert config is not None
    monkeypatch.setattr(jpeg_archive, "THREADS", 1)
    frames, times = frames_with_grain(), [float(second) for second in range(NUM_FRAMES)]
    paths = [tmp_path / "a.npy", tmp_path / "a.zip"]
    for path in paths:
        write_frames(path, frames)
    plain, packed = interleaved(
        REPEATS,
        PROCESSOR,
        *(lambda path=path: video_patches(read_frames(path), times, config) for path in paths),  # type: ignore[misc]
    )
    ratio = packed.median / plain.median
    room = paths[0].stat().st_size / paths[1].stat().st_size
    per_frame = milliseconds(plain.median / NUM_FRAMES, packed.median / NUM_FRAMES)
    sizes = (f"{path.stat().st_size / NUM_FRAMES / 1e3:,.0f} kB" for path in paths)
    of = f"of {SIZE} x {SIZE} pixels"
    print(line(f"reading a JPEG frame {of}, and its patches", *per_frame, ratio, MOST_TIME, against="raw .npy"))
    print(line(f"a JPEG frame {of} on disk", *sizes, room, LEAST_ROOM, against="raw .npy"))
