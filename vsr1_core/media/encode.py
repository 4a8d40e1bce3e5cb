"""Encodes frames as the bytes of a picture or a clip, for APIs that take files and not arrays. No file is written."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np

JPEG_QUALITY = 90
CLOCK_HZ = 1000
"""Ticks per second of a clip's clock."""


def jpeg_bytes(pixels: np.ndarray, quality: int = JPEG_QUALITY) -> bytes:
    """Encode one frame, uint8 [H, W, 3], as a JPEG of `quality` (1 to 100) whose colour has half the size (4:2:0)."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality, subsampling="4:2:0")
    return out.getvalue()


def mp4_bytes(pixels: np.ndarray, timestamps_s: Sequence[float]) -> bytes:
    """Encode frames, uint8 [T, H, W, 3], as an h264 mp4 whose first frame is at time 0. `timestamps_s` [T] are the
    start times of the frames in seconds; they are rounded to milliseconds.

    An odd last row or column of pixels is dropped, because h264 stores colour at half the size. Raises ValueError when
    the number of times differs from the number of frames, or when the times do not increase.
    """
    import av

    ticks = [round((t - timestamps_s[0]) * CLOCK_HZ) for t in timestamps_s]
    if len(ticks) != len(pixels) or any(b <= a for a, b in pairwise(ticks)):
        raise ValueError(f"{len(pixels)} frames need as many increasing times, got {list(timestamps_s)}")
    height, width = (size // 2 * 2 for size in pixels.shape[1:3])
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(CLOCK_HZ))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, CLOCK_HZ)
        stream.codec_context.thread_count = 1
        stream.options = {"crf": "18", "preset": "veryfast", "bf": "0"}
        for tick, frame in zip(ticks, pixels, strict=True):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            picture.pts, picture.time_base = tick, Fraction(1, CLOCK_HZ)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return out.getvalue()
