"""Which times of a video are looked at, and at what size (docs/method.md, data). Pure arithmetic."""

from __future__ import annotations

import math

import numpy as np

from vsr1_core.recipes import FrameRecipe


def num_frames(duration_s: float, recipe: FrameRecipe) -> int:
    """min(max_frames, max(1, floor(duration * fps))), made even.

    The video models merge frames in pairs. An odd count gets one frame more, or one less where `max_frames` does not
    allow it; where a video has fewer frames than are asked for, its frames repeat.
    """
    count = min(recipe.max_frames, max(1, math.floor(duration_s * recipe.fps + 1e-6)))
    if count % 2 == 0:
        return count
    return count + 1 if count < recipe.max_frames or count == 1 else count - 1


def sample_times(last_frame_s: float, count: int) -> np.ndarray:
    """`count` times, evenly spread from 0 to the time of the last frame. float64 [count]."""
    return np.linspace(0.0, max(0.0, last_frame_s), count)


def output_size(width: int, height: int, recipe: FrameRecipe) -> tuple[int, int]:
    """(width, height) to scale to: multiples of `size_multiple`, at most `max_pixels`, at least one multiple a side.

    A frame is never enlarged beyond rounding. Of all sizes that fit, the aspect nearest to the source's among the
    large ones is taken: rounding each side by itself would make 16:9 into 3:1 at 4,096 pixels.
    """
    unit = recipe.size_multiple
    scale = min(1.0, math.sqrt(recipe.max_pixels / (width * height)))
    ideal_w, ideal_h = width * scale / unit, height * scale / unit
    around = [
        (w, h)
        for w in {max(1, math.floor(ideal_w)), max(1, math.ceil(ideal_w))}
        for h in {max(1, math.floor(ideal_h)), max(1, math.ceil(ideal_h))}
        if w * h * unit * unit <= recipe.max_pixels
    ]
    if not around:  # a very long or very small frame: one side is a single multiple, the other takes what is left
        room = max(1, recipe.max_pixels // (unit * unit))
        around = [(min(room, max(1, round(ideal_w))), 1), (1, min(room, max(1, round(ideal_h))))]
    best = min(around, key=lambda s: _misfit(s[0] / ideal_w, s[1] / ideal_h))
    return best[0] * unit, best[1] * unit


def _misfit(width_ratio: float, height_ratio: float) -> float:
    """0 for the ideal size; a changed aspect counts as much as a changed size."""
    return abs(math.log(width_ratio / height_ratio)) + abs(math.log(width_ratio * height_ratio)) / 2
