"""Odd files from outside the project; skipped where they are not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.videos import ffmpeg
from vsr1_core.media.container import VideoError
from vsr1_core.media.decode import sample_frames
from vsr1_core.media.probe import probe
from vsr1_core.recipes import FrameRecipe

REASONS = {
    "mp4parse_rust__sine-3s-xhe-aac-44khz-mono.mp4": "no video stream",
    "mp4parse_rust__invalid_userdata.mp4": "holds no video data, though its header promises 231.2 s",
}


def odd(shared_data: Path, name: str) -> Path:
    return shared_data / "odd_videos" / name


@pytest.mark.timeout(300)
def test_each_odd_file_is_decoded_or_refused_with_a_reason(shared_data: Path) -> None:
    for path in sorted(odd(shared_data, "").iterdir()):
        if path.suffix == ".csv":
            continue
        if path.name in REASONS:
            with pytest.raises(VideoError, match=REASONS[path.name]):
                sample_frames(path, FrameRecipe())
        else:
            frames = sample_frames(path, FrameRecipe())
            assert frames.timestamps_s[0] == 0
            assert frames.timestamps_s[-1] < frames.duration_s
            assert probe(path).duration_s == pytest.approx(frames.duration_s)


def test_the_rotated_clip_is_upright(shared_data: Path) -> None:
    path = odd(shared_data, "torchcodec__nasa_13013_rotated.mp4")
    info = probe(path)
    assert (info.width, info.height, info.rotation) == (270, 480, 90)
    raw = ffmpeg("-i", path, "-frames:v", "1", "-vf", "scale=256:480", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    shown = np.frombuffer(raw, np.uint8).reshape(480, 256, 3).astype(int)
    assert np.abs(shown - sample_frames(path, FrameRecipe()).pixels[0]).mean() < 3


def test_a_container_without_duration_has_one(shared_data: Path) -> None:
    assert probe(odd(shared_data, "moviepy__no_duration.webm")).duration_s == pytest.approx(4.94, abs=0.07)


def test_a_late_start_is_taken_off_and_kept(shared_data: Path) -> None:
    frames = sample_frames(odd(shared_data, "torchcodec__test_non_zero_start.mp4"), FrameRecipe())
    assert frames.start_s == pytest.approx(8.333, abs=1e-3)
    assert frames.duration_s == pytest.approx(0.4, abs=1e-3)
    np.testing.assert_allclose(frames.timestamps_s, [0, 11 / 30], atol=1e-3)
