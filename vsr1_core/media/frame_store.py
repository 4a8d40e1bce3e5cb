"""Stores sampled frames on disk, with one `.npy` file per video, and draws contact sheets of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vsr1_core.rows.files import atomic_path


def write_frames(path: Path, pixels: np.ndarray) -> None:
    """Write frames, uint8 [T, H, W, 3] with T >= 1, as `.npy`. The write is atomic. Raises ValueError for an array of
    another type or shape."""
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.shape[0] == 0:
        raise ValueError(f"frames must be uint8 [T, H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
    with atomic_path(path) as temporary:
        np.save(temporary, pixels, allow_pickle=False)


def read_frames(path: Path | str) -> np.ndarray:
    """Open stored frames, uint8 [T, H, W, 3], as a memory map, so that only the frames that are used are read. Raises
    FileNotFoundError, which says how to make the file again, when it is missing."""
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the frames {path} are missing: build frame_tensors again") from error


def resized(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize frames, uint8 [T, H, W, 3], to `height` x `width` pixels. Frames that have this size already are returned
    unchanged."""
    from PIL import Image

    if frames.shape[1:3] == (height, width):
        return frames
    pictures = (Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC) for frame in frames)
    return np.stack([np.asarray(picture) for picture in pictures])


@dataclass(frozen=True)
class SheetRow:
    """One video on a contact sheet. path: its stored frames. timestamps_s: [T], the times of these frames."""

    title: str
    path: Path | str
    timestamps_s: Sequence[float]


def contact_sheet(rows: Sequence[SheetRow], columns: int = 8, height: int = 96) -> bytes:
    """Draw a PNG with one strip per video: up to `columns` evenly spread frames, each `height` pixels high and labelled
    with its time. Raises ValueError when there are no videos, and FileNotFoundError when stored frames are missing."""
    from PIL import Image

    if not rows:
        raise ValueError("a contact sheet needs at least one video")
    strips = [_strip(row, columns, height) for row in rows]
    sheet = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()


def _strip(row: SheetRow, columns: int, height: int):  # type: ignore[no-untyped-def]  # PIL is imported when drawn
    from PIL import Image, ImageDraw

    frames = read_frames(row.path)
    numbers = np.unique(np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int))
    width = max(40, round(height * frames.shape[2] / frames.shape[1]))
    title_height, gap = 16, 2
    strip = Image.new("RGB", (max(300, (width + gap) * len(numbers)), height + title_height + gap), "white")
    draw = ImageDraw.Draw(strip)
    draw.text((2, 2), row.title, fill="black")
    for place, number in enumerate(numbers):
        left = place * (width + gap)
        strip.paste(Image.fromarray(frames[number]).resize((width, height)), (left, title_height))
        label = f"{row.timestamps_s[number]:.2f} s"
        draw.rectangle((left, title_height, left + 8 + 6 * len(label), title_height + 13), fill="black")
        draw.text((left + 3, title_height + 1), label, fill="white")
    return strip
