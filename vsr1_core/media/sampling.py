"""Computes at which times a video is sampled, and in which size (docs/method.md, Data). No file is read."""

from __future__ import annotations

import math

import numpy as np

from vsr1_core.recipes import FrameRecipe


def num_frames(duration_s: float, recipe: FrameRecipe) -> int:
    """The number of frames to sample: min(max_frames, max(1, floor(duration * fps))), made even.

    The count has to be even because the video models merge frames in pairs. An odd count is increased by one, or
    decreased by one if `max_frames` does not allow more. If a video has fewer frames than this, its frames repeat.
    """
    count = min(recipe.max_frames, max(1, math.floor(duration_s * recipe.fps + 1e-6)))
    if count % 2 == 0:
        return count
    return count + 1 if count < recipe.max_frames or count == 1 else count - 1


def sample_times(last_frame_s: float, count: int) -> np.ndarray:
    """Return `count` times in seconds, evenly spread from 0 to the time of the last frame: float64 [count]."""
    return np.linspace(0.0, max(0.0, last_frame_s), count)


def output_size(width: int, height: int, recipe: FrameRecipe) -> tuple[int, int]:
    """Return the (width, height) in pixels to which frames are scaled. Both are multiples of `size_multiple`, at least
    one multiple each, and the frame has at most `max_pixels` pixels.

    A frame is never enlarged beyond rounding. Of the sizes around the ideal one, the one with the smallest deviation in
    aspect and area is taken: rounding each side by itself would turn 16:9 into 3:1 at 4,096 pixels.
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
    if not around:  # a very long or very small frame: one side is a single multiple, the other side gets the rest
        room = max(1, recipe.max_pixels // (unit * unit))
        around = [(min(room, max(1, round(ideal_w))), 1), (1, min(room, max(1, round(ideal_h))))]
    best = min(around, key=lambda s: _misfit(s[0] / ideal_w, s[1] / ideal_h))
    return best[0] * unit, best[1] * unit


def _misfit(width_ratio: float, height_ratio: float) -> float:
    """The deviation from the ideal size, which is 0 for the ideal size itself. A changed aspect counts as much as a
    changed side length."""
    return abs(math.log(width_ratio / height_ratio)) + abs(math.log(width_ratio * height_ratio)) / 2
