"""Reads a picture file that someone searches with, as one frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vsr1_core.media.frame_store import resized
from vsr1_core.media.sampling import output_size
from vsr1_core.media.video_limits import DEFAULT_LIMITS
from vsr1_core.recipes import FrameRecipe

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""What is opened at all, by Pillow's names."""


def read_picture(path: Path, recipe: FrameRecipe, max_pixels: int = DEFAULT_LIMITS.frame_pixels) -> np.ndarray:
    """The picture upright, in the size in which `recipe` samples frames: uint8 [1, H, W, 3].

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no picture, it is damaged, or it has more than `max_pixels` pixels.
    """
    from PIL import Image, ImageOps

    if not path.is_file():
        raise FileNotFoundError(f"the picture {path} does not exist or is not a file")
    try:
        with Image.open(path, formats=FORMATS) as opened:
            if opened.width * opened.height > max_pixels:
                raise ValueError(f"it has more than {max_pixels:,} pixels; make it smaller")
            pixels = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture ({', '.join(FORMATS)}): {error}") from error
    width, height = output_size(pixels.shape[1], pixels.shape[0], recipe)
    return resized(pixels[None], height, width)
