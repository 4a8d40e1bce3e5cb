"""Converts a video into a file that every browser plays: h264 in mp4, upright, 8 bit, without sound."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from av.video.frame import VideoFrame

from vsr1_core.media.container import VideoError, decoded_frames, open_video
from vsr1_core.media.encode import CLOCK_HZ
from vsr1_core.media.orientation import orientation_of
from vsr1_core.media.packets import read_index, timed_frames
from vsr1_core.media.video_limits import DEFAULT_LIMITS
from vsr1_core.rows.files import atomic_path

MAX_HEIGHT = 720
PLAYED_EVERYWHERE = {".mp4": {"h264", "av1", "vp9"}, ".m4v": {"h264"}, ".webm": {"vp8", "vp9", "av1"}}
"""Suffix -> FFmpeg's names of the codecs that browsers play in such a file, in 8 bit 4:2:0."""
CLOCK = Fraction(1, CLOCK_HZ)


def plays_in_browsers(path: Path, codec: str | None) -> bool:
    """Whether browsers play the file, by what the tables say of it. A codec that is not known may play."""
    codecs = PLAYED_EVERYWHERE.get(path.suffix.lower())
    return codecs is not None and (codec is None or codec in codecs)


def convert_for_browsers(source: Path, target: Path, max_height: int = MAX_HEIGHT) -> None:
    """Write `source` as h264 mp4 whose shorter side has at most `max_height` pixels. The first frame is at time 0, as
    in all tables; the others keep their true times, in milliseconds. Raises VideoError where no frame can be decoded.
    """
    import av

    index = read_index(source, DEFAULT_LIMITS)
    opened = open_video(source, index.stream_index, DEFAULT_LIMITS)
    with atomic_path(target) as temporary, opened as (container, stream):
        stream.thread_type = "AUTO"
        # The header goes to the front, so that a browser can seek before it has the whole file.
        with av.open(str(temporary), "w", format="mp4", options={"movflags": "faststart"}) as out:
            encoder: Any = None
            for tick, frame in _on_clock(timed_frames(decoded_frames(container, stream), index)):
                pixels = upright_pixels(frame, max_height)
                encoder = encoder or h264_stream(out, *pixels.shape[:2])
                picture = VideoFrame.from_ndarray(pixels, format="rgb24")
                picture.pts, picture.time_base = tick, CLOCK
                out.mux(encoder.encode(picture))
            if encoder is None:
                raise VideoError(f"{source.name}: not one frame of its video can be decoded")
            out.mux(encoder.encode())


def _on_clock(frames: Iterator[tuple[float, VideoFrame]]) -> Iterator[tuple[int, VideoFrame]]:
    """(milliseconds from the first frame, frame), increasing: the times of a damaged stream may go backwards."""
    first_s, last = None, -1
    for time_s, frame in frames:
        first_s = time_s if first_s is None else first_s
        tick = round((time_s - first_s) * CLOCK_HZ)
        if tick > last:
            last = tick
            yield tick, frame


def upright_pixels(frame: VideoFrame, max_height: float = math.inf) -> np.ndarray:
    """The frame, uint8 [H, W, 3], with even sides, as h264 stores colour at half the size; the shorter side has at most
    `max_height` pixels."""
    scale = min(1.0, max_height / min(frame.height, frame.width))
    width, height = (max(2, round(size * scale) // 2 * 2) for size in (frame.width, frame.height))
    pixels = frame.reformat(width, height, format="rgb24").to_ndarray()
    return orientation_of(frame).upright(pixels)


def h264_stream(out: Any, height: int, width: int, crf: int = 23) -> Any:
    """A new stream of an opened output file, whose clock counts milliseconds. A lower `crf` loses less."""
    encoder = out.add_stream("libx264", rate=Fraction(CLOCK_HZ))
    encoder.height, encoder.width, encoder.pix_fmt = height, width, "yuv420p"
    encoder.codec_context.time_base = encoder.time_base = CLOCK
    encoder.options = {"crf": str(crf), "preset": "veryfast", "g": "48"}
    return encoder
