"""A film for the benchmarks of decoding: a picture that moves, with grain, so that frames are not cheap to predict."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

NUM_GRAINS = 7


def write_grainy_film(path: Path, seconds: int, size: tuple[int, int], fps: int, gop: int) -> Path:
    """H.264 of `size` (width, height) pixels with a key frame every `gop` frames."""
    width, height = size
    rng, (y, x) = np.random.default_rng(seconds), np.mgrid[: 2 * height, : 2 * width]
    waves = [np.sin(x / (11 + 5 * c)) + np.cos((y - x) / 23) + np.sin(y / (5 + 2 * c)) for c in range(3)]
    picture = 127 + 35 * np.stack(waves, axis=-1)
    grains = rng.normal(0, 3, (NUM_GRAINS, height, width, 1))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "23", "g": str(gop), "threads": "1"}
        for number in range(seconds * fps):
            top, left = number % height, 2 * number % width
            pixels = picture[top : top + height, left : left + width] + grains[number % NUM_GRAINS]
            frame = av.VideoFrame.from_ndarray(np.clip(pixels, 0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
