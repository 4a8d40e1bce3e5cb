"""Long made videos with known events, each of which shows a colour of its own, and vectors that know the colours."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BACKGROUND = (40, 40, 40)
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (230, 20, 20),
    "green": (20, 230, 20),
    "blue": (20, 20, 230),
    "yellow": (230, 230, 20),
    "magenta": (230, 20, 230),
    "cyan": (20, 230, 230),
    "white": (250, 250, 250),
}
Events = Mapping[str, tuple[float, float]]
"""Colour -> the seconds from which, and until which, it is shown."""


def write_film(path: Path, duration_s: int, events: Events, size: int = 32, fps: int = 1, codec: str = "mpeg4") -> Path:
    """An mp4 of `duration_s` seconds and `size` x `size` pixels; outside of events it is grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = {
        name: np.full((size, size, 3), colour, np.uint8) for name, colour in {**COLOURS, "": BACKGROUND}.items()
    }
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps))
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = size, size, "yuv420p", 1_000_000
        for number in range(duration_s * fps):
            frame = av.VideoFrame.from_ndarray(pictures[_shown(number / fps, events)], format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _shown(time_s: float, events: Events) -> str:
    return next((name for name, (start_s, end_s) in events.items() if start_s <= time_s < end_s), "")


def colours_of(pixels: np.ndarray) -> list[str]:
    """The colour that each frame of `pixels` [T, H, W, 3] shows; an empty text for the background."""
    known = {**COLOURS, "": BACKGROUND}
    means = pixels.reshape(len(pixels), -1, 3).mean(axis=1)
    distances = np.abs(means[:, None] - np.array(list(known.values()))[None]).sum(axis=2)
    return [list(known)[number] for number in distances.argmin(axis=1)]


def vector_of_frames(pixels: np.ndarray) -> np.ndarray:
    """A unit vector: how many of the frames show each colour, and the background."""
    shown = colours_of(pixels)
    counts = np.array([shown.count(name) for name in (*COLOURS, "")], np.float32)
    return counts / np.linalg.norm(counts)


def vector_of_text(text: str) -> np.ndarray:
    """A unit vector in the direction of the colour that the text names."""
    vector = np.array([name in text for name in (*COLOURS, "nothing")], np.float32)
    return vector / np.linalg.norm(vector)
