"""Stores sampled frames on disk, one file per segment, and draws contact sheets of them.

There are two kinds of files, told apart by their suffix: `.npy`, the array as it is, and `.zip`, one JPEG per frame
(`jpeg_archive`). Everything that reads stored frames reads them here.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vsr1_core.media import jpeg_archive
from vsr1_core.recipes import FrameRecipe
from vsr1_core.rows.files import atomic_path

EXACT = ".npy"


def suffix_of(recipe: FrameRecipe) -> str:
    """The suffix of the files in which frames are stored."""
    return jpeg_archive.SUFFIX if recipe.store == "jpeg" else EXACT


def is_decoded(path: Path | str) -> bool:
    """Whether reading stored frames takes a processor's time."""
    return Path(path).suffix == jpeg_archive.SUFFIX


def most_bytes(recipe: FrameRecipe, num_pixels: int) -> int:
    """The size of the largest file that the frames of a segment can take, with at most `num_pixels` in each. JPEGs stay
    below the array but for their tables: of noise, at quality 100, they take 2 bytes per pixel."""
    per_frame = num_pixels * 3 + (jpeg_archive.OVERHEAD_BYTES if recipe.store == "jpeg" else 0)
    return (recipe.max_frames + 1) * per_frame + 4096


def write_frames(path: Path, pixels: np.ndarray, quality: int = 90) -> None:
    """Write frames, uint8 [T, H, W, 3] with T >= 1, as the suffix of `path` says; `quality` is that of JPEGs. The write
    is atomic. Raises ValueError for an array of another type or shape."""
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.shape[0] == 0:
        raise ValueError(f"frames must be uint8 [T, H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
    with atomic_path(path) as temporary:
        if path.suffix == jpeg_archive.SUFFIX:
            jpeg_archive.write_archive(temporary, pixels, quality)
        else:
            np.save(temporary, pixels, allow_pickle=False)


def read_frames(path: Path | str, numbers: Sequence[int] | None = None) -> np.ndarray:
    """Read the stored frames `numbers`, counted from 0, or all: uint8 [T, H, W, 3]. An array is opened as a memory map,
    so that only the frames that are used are read; JPEGs are decoded.

    Raises:
        FileNotFoundError: The file is missing; the message says how to make it again.
        ValueError: It is cut off or damaged.
    """
    path = Path(path)
    try:
        if is_decoded(path):
            return jpeg_archive.read_archive(path, numbers)
        frames = _mapped(path)
        return frames if numbers is None else frames[list(numbers)]
    except FileNotFoundError as error:
        raise _missing(path) from error


def frames_shape(path: Path | str) -> tuple[int, ...]:
    """(T, H, W) of stored frames, without reading or decoding all of them. Errors: as `read_frames`."""
    path = Path(path)
    try:
        return jpeg_archive.archive_shape(path) if is_decoded(path) else _mapped(path).shape[:3]
    except FileNotFoundError as error:
        raise _missing(path) from error


def spread_numbers(num_frames: int, most: int) -> list[int]:
    """The numbers of at most `most` frames, evenly spread from the first to the last."""
    return [int(number) for number in np.linspace(0, num_frames - 1, min(most, num_frames)).round()]


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise jpeg_archive.damaged(path, error) from error


def _missing(path: Path) -> FileNotFoundError:
    return FileNotFoundError(f"the frames {path} are missing: build frame_tensors again")


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

    numbers = spread_numbers(frames_shape(row.path)[0], columns)
    frames = read_frames(row.path, numbers)
    width = max(40, round(height * frames.shape[2] / frames.shape[1]))
    title_height, gap = 16, 2
    strip = Image.new("RGB", (max(300, (width + gap) * len(numbers)), height + title_height + gap), "white")
    draw = ImageDraw.Draw(strip)
    draw.text((2, 2), row.title, fill="black")
    for place, (number, frame) in enumerate(zip(numbers, frames, strict=True)):
        left = place * (width + gap)
        strip.paste(Image.fromarray(frame).resize((width, height)), (left, title_height))
        label = f"{row.timestamps_s[number]:.2f} s"
        draw.rectangle((left, title_height, left + 8 + 6 * len(label), title_height + 13), fill="black")
        draw.text((left + 3, title_height + 1), label, fill="white")
    return strip
