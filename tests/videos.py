"""Small videos whose frames carry their number, for tests: frame k is a flat picture of level 12 + 4 k."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

TICKS = 1000  # time stamps are written in milliseconds


def level(number: int) -> int:
    return 12 + 4 * number


def number_of(pixels: np.ndarray) -> int:
    """The number of the frame that `pixels` [H, W, 3] shows."""
    return round((float(pixels.mean()) - 12) / 4)


def flat_frames(count: int, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    return np.stack([np.full((size[1], size[0], 3), level(k), np.uint8) for k in range(count)])


def write_video(
    path: Path, times_s: Sequence[float], frames: np.ndarray | None = None, *, gop: int = 8, codec: str = "libx264"
) -> Path:
    """Frame k begins at `times_s[k]`, whatever the steps between them are."""
    frames = flat_frames(len(times_s)) if frames is None else frames
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(TICKS))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS)
        if codec == "libx264":
            stream.options = {"crf": "4", "g": str(gop), "keyint_min": str(gop), "sc_threshold": "0", "threads": "1"}
        for pixels, time_s in zip(frames, times_s, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time_s * TICKS), Fraction(1, TICKS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def turn_clockwise(path: Path, quarters: int) -> Path:
    """Let an mp4 say that its picture is shown turned: rewrites the matrix in its (only) track header."""
    one, minus = 0x00010000, 0xFFFF0000
    a, b, c, d = {1: (0, one, minus, 0), 2: (minus, 0, 0, minus), 3: (0, minus, one, 0)}[quarters]
    data = bytearray(path.read_bytes())
    begin = data.index(b"tkhd") + 4 + 40
    data[begin : begin + 36] = struct.pack(">9I", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(data)
    return path


def ffmpeg(*arguments: str | Path) -> bytes:
    """Run ffmpeg and return what it writes to its standard output; the test is skipped where there is none."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    command = ["ffmpeg", "-v", "error", "-nostdin", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, timeout=300).stdout


def ffprobe_times_s(path: Path, stream: str = "v:0") -> list[float]:
    """When each frame of a video stream is shown, as ffprobe tells it from the packets (no decoding)."""
    if shutil.which("ffprobe") is None:
        pytest.skip("ffprobe is not installed")
    command = [
        "ffprobe",
        "-v",
        "error",
        "-select_streams",
        stream,
        "-show_entries",
        "packet=pts_time",
        "-of",
        "csv=p=0",
    ]
    out = subprocess.run([*command, str(path)], check=True, capture_output=True, text=True, timeout=300).stdout
    return sorted(float(line.strip(",")) for line in out.split() if line.strip(","))
