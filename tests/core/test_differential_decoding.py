"""Made files against the ffmpeg program: the times and the pictures of all frames are equal."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.videos import ffmpeg, turn_clockwise
from vsr1_core.media.decode import sample_frames
from vsr1_core.recipes import FrameRecipe

WIDTH, HEIGHT = 96, 64
CONTAINERS = {
    "libx264": ("mp4", "mkv", "ts", "avi", "mov", "flv"),
    "mpeg4": ("mp4", "mkv", "avi", "ts"),
    "mpeg2video": ("mpg", "ts", "mkv"),
    "libvpx": ("webm", "mkv"),
    "mjpeg": ("mov", "avi", "mkv"),
}
OPTIONS = {
    "libx264": ("-preset", "ultrafast", "-crf", "10", "-bf", "2"),
    "mpeg4": ("-q:v", "2", "-bf", "2"),
    "mpeg2video": ("-q:v", "2", "-bf", "2"),
    "libvpx": ("-deadline", "realtime", "-cpu-used", "8", "-b:v", "1M"),
    "mjpeg": ("-q:v", "2"),
}
STARTS_LATE = ("mp4", "mov", "mkv", "ts")
"""The containers that can say when the picture starts. AVI fills the time before with empty frames."""
MADE = [
    pytest.param(codec, container, rate, gop, is_turned, start_s, marks=pytest.mark.sweep if rate == "30" else ())
    for codec, containers in CONTAINERS.items()
    for container in containers
    for rate, gop, is_turned, start_s in (
        *(("25", 9, False, 0.0), ("24000/1001", 9, True, 3.5), ("50", 12, False, 0.0)),
        *(("30", 1, False, 0.0), ("30", 4, False, 3.5), ("30", 250, False, 0.0)),
    )
    if not start_s or container in STARTS_LATE
]
"""(codec, container, frames per second, frames from one key frame to the next, whether it is turned, its start)."""


def make(folder: Path, codec: str, container: str, rate: str, gop: int, is_turned: bool, start_s: float) -> Path:
    """24 frames of a moving test picture; only mp4 and mov have a display matrix that turns it."""
    path = folder / f"a.{container}"
    picture = f"testsrc2=s={WIDTH}x{HEIGHT}:r={rate}:d=10"
    coded = ("-frames:v", "24", "-c:v", codec, "-pix_fmt", "yuvj420p" if codec == "mjpeg" else "yuv420p")
    late = ("-output_ts_offset", str(start_s)) if start_s else ()
    ffmpeg("-f", "lavfi", "-i", picture, *coded, *OPTIONS[codec], "-g", str(gop), "-threads", "1", *late, path)
    return turn_clockwise(path, 1) if is_turned and container in ("mp4", "mov") else path


def shown_by_ffmpeg(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Times [T] in seconds from the first frame, and pictures [T, H, W, 3], of all frames of a file."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    command = ["ffmpeg", "-v", "info", "-nostdin", "-i", str(path), "-fps_mode", "passthrough", "-vf", "showinfo"]
    done = subprocess.run(
        [*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], check=True, capture_output=True, timeout=300
    )
    log = done.stderr.decode()
    times = np.array([float(t) for t in re.findall(r"pts_time:([0-9.]+)", log)])
    width, height = map(int, re.findall(r" s:(\d+)x(\d+) ", log)[0])
    return times - times[0], np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)


@pytest.mark.slow
@pytest.mark.parametrize(("codec", "container", "rate", "gop", "is_turned", "start_s"), MADE)
def test_times_and_pictures_are_those_of_ffmpeg(
    tmp_path: Path, codec: str, container: str, rate: str, gop: int, is_turned: bool, start_s: float
) -> None:
    path = make(tmp_path, codec, container, rate, gop, is_turned, start_s)
    times, pictures = shown_by_ffmpeg(path)
    recipe = FrameRecipe(fps=1000.0, max_frames=96, max_pixels=WIDTH * HEIGHT)
    frames = sample_frames(path, recipe)
    assert frames.pixels.shape[1:] == pictures.shape[1:]
    known = sorted(set(frames.timestamps_s.round(4)))
    np.testing.assert_allclose(known, times, atol=2e-3)
    few = sample_frames(path, dataclasses.replace(recipe, max_frames=4))  # by jumps from key frame to key frame
    assert len(few.pixels) == 4
    for time_s, picture in zip([*frames.timestamps_s, *few.timestamps_s], [*frames.pixels, *few.pixels], strict=True):
        number = int(np.abs(times - time_s).argmin())
        assert abs(times[number] - time_s) < 2e-3
        assert np.abs(picture.astype(int) - pictures[number]).mean() < 1, f"frame {number} at {time_s:.3f} s"


def test_neighbouring_test_pictures_differ_by_more_than_decoders_do(tmp_path: Path) -> None:
    _, pictures = shown_by_ffmpeg(make(tmp_path, "libx264", "mp4", "25", 9, False, 0.0))
    assert len(pictures) == 24
    assert min(np.abs(a.astype(int) - b).mean() for a, b in itertools.pairwise(pictures)) > 1.5
