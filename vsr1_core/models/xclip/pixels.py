"""Makes the input of X-CLIP's vision tower from stored frames: a fixed number of frames, resized, cut to a square and
normalised. No weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vsr1_core.models.protocols import VideoFrames
from vsr1_core.rows.files import read_json


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation per channel, of values in [0, 1]. The defaults are those of ImageNet, with which
    X-CLIP was published."""

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


def normalisation(folder: Path) -> Normalisation:
    """The normalisation in the checkpoint's preprocessor_config.json; the defaults if there is no such file."""
    path = folder / "preprocessor_config.json"
    if not path.exists():
        return Normalisation()
    settings = read_json(path)
    return Normalisation(tuple(settings["image_mean"]), tuple(settings["image_std"]))


def pixel_values(frames: VideoFrames, num_frames: int, size: int, scale: Normalisation) -> Tensor:
    """Make float32 [num_frames, 3, size, size] from frames uint8 [T, H, W, 3].

    Frames are chosen evenly from the first to the last, some of them twice if there are fewer than `num_frames`. The
    shorter side is resized to `size`, and the middle of the longer side is kept. Raises ValueError for a video without
    frames.
    """
    count, height, width = frames.pixels.shape[:3]
    if not count:
        raise ValueError("a video without frames cannot be embedded; build frame_tensors again")
    chosen = np.linspace(0, count - 1, num_frames).round().astype(int)
    pixels = torch.from_numpy(np.array(frames.pixels[chosen])).permute(0, 3, 1, 2).float() / 255
    factor = size / min(height, width)
    shape = (max(size, round(height * factor)), max(size, round(width * factor)))
    if shape != (height, width):
        pixels = F.interpolate(pixels, shape, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    square = pixels[:, :, top : top + size, left : left + size]
    mean, std = (torch.tensor(values)[:, None, None] for values in (scale.mean, scale.std))
    return (square - mean) / std
