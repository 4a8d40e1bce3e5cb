"""Computes at which times a video is sampled, and in which size (docs/method.md, Data). No file is read.

There are three rules. `ours` makes an odd number of frames even by one more (or fewer) frame, and never enlarges a
frame. `official` is that of Qwen3-VL's own utilities, and `paper` is that of the VideoSearch-R1 authors. `RULES` has
the numbers of the latter two; how they round is written in `num_frames`, `frame_times` and `ruled_size`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vsr1_core.recipes import FrameRecipe


@dataclass(frozen=True)
class FrameRule:
    """The limits of one frame in pixels (both are counted after rounding), and the smallest number of frames."""

    min_pixels: int
    max_pixels: int
    min_frames: int = 1


UNIT = 32
"""Both sides of a frame are multiples of this by the rules of Qwen and of the authors: one token is UNIT x UNIT."""
RULES: Mapping[str, FrameRule] = {
    "official": FrameRule(min_pixels=128 * UNIT**2, max_pixels=768 * UNIT**2, min_frames=4),
    "paper": FrameRule(min_pixels=128 * 28**2, max_pixels=768 * 28**2),
}
"""`official`: 128 to 768 tokens per pair of frames. `paper`: the same numbers of 28 x 28 pixels, which the authors kept
from an earlier model; their frames were stored with at most `FrameRecipe.max_pixels` before."""


def num_frames(duration_s: float, recipe: FrameRecipe) -> int:
    """The number of frames of a video, which is even because the video models merge frames in pairs.

    `ours` and `paper`: min(max_frames, max(1, floor(duration * fps))), made even. `ours` increases an odd number by
    one, or decreases it if `max_frames` does not allow more; `paper` repeats the last frame. `official`:
    duration * fps, at least 4 and at most `max_frames`, rounded down to an even number. If a video has fewer frames
    than this, its frames repeat.
    """
    if recipe.rule == "official":
        wanted = math.floor(min(max(duration_s * recipe.fps + 1e-6, RULES["official"].min_frames), recipe.max_frames))
        return max(2, wanted - wanted % 2)
    count = _count(duration_s, recipe)
    if count % 2 == 0:
        return count
    return count + 1 if recipe.rule == "paper" or count < recipe.max_frames or count == 1 else count - 1


def _count(duration_s: float, recipe: FrameRecipe) -> int:
    return min(recipe.max_frames, max(1, math.floor(duration_s * recipe.fps + 1e-6)))


def frame_times(duration_s: float, last_frame_s: float, recipe: FrameRecipe) -> np.ndarray:
    """The sample times of a video in seconds, ascending: float64 [num_frames]. They are spread evenly from 0 to the
    time of the last frame; with `paper`, the time that makes an odd number even is the last one again."""
    count = num_frames(duration_s, recipe)
    if recipe.rule != "paper":
        return sample_times(last_frame_s, count)
    times = sample_times(last_frame_s, _count(duration_s, recipe))
    return np.concatenate([times, times[-1:]])[:count]


def sample_times(last_frame_s: float, count: int) -> np.ndarray:
    """Return `count` times in seconds, evenly spread from 0 to the time of the last frame: float64 [count]."""
    return np.linspace(0.0, max(0.0, last_frame_s), count)


def output_size(width: int, height: int, recipe: FrameRecipe) -> tuple[int, int]:
    """Return the (width, height) in pixels to which frames are scaled. Both are multiples of `size_multiple`, at least
    one multiple each, and the frame has at most `max_pixels` pixels.

    By the rules `official` and `paper`, small frames are enlarged (`ruled_size`). `paper` first shrinks a frame to
    `max_pixels`, as the authors store it, and then rounds it, as they show it, so that it may get a little larger.

    By the rule `ours`, a frame is never enlarged beyond rounding. Of the sizes around the ideal one, the one with the
    smallest deviation in aspect and area is taken: rounding each side by itself would turn 16:9 into 3:1 at 4,096
    pixels.
    """
    if recipe.rule == "official":
        return ruled_size(width, height, "official", recipe.max_pixels)
    if recipe.rule == "paper":
        return ruled_size(*_shrunk(width, height, recipe.max_pixels), "paper")
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


def ruled_size(width: int, height: int, rule: str, max_pixels: int | None = None) -> tuple[int, int]:
    """The (width, height) in which a frame is shown by a rule of `RULES`; `max_pixels` may lower the rule's own limit.

    Each side is rounded to the nearest multiple of UNIT (halves to the even multiple). Only if the frame is then too
    large or too small, it is scaled to the limit, and its sides are rounded down or up. A size that this function
    returns stays as it is if it is given again.
    """
    limits = RULES[rule]
    most = min(limits.max_pixels, max_pixels or limits.max_pixels)
    sides = [max(UNIT, round(side / UNIT) * UNIT) for side in (width, height)]
    if sides[0] * sides[1] > most:
        scale = math.sqrt(width * height / most)
        sides = [max(UNIT, math.floor(side / scale / UNIT) * UNIT) for side in (width, height)]
    elif sides[0] * sides[1] < limits.min_pixels:
        scale = math.sqrt(limits.min_pixels / (width * height))
        sides = [math.ceil(side * scale / UNIT) * UNIT for side in (width, height)]
    return sides[0], sides[1]


def _shrunk(width: int, height: int, max_pixels: int) -> tuple[int, int]:
    """The size in which the authors store a frame: at most `max_pixels`, not rounded to multiples."""
    scale = min(1.0, math.sqrt(max_pixels / (width * height)))
    return max(1, int(width * scale)), max(1, int(height * scale))


def _misfit(width_ratio: float, height_ratio: float) -> float:
    """The deviation from the ideal size, which is 0 for the ideal size itself. A changed aspect counts as much as a
    changed side length."""
    return abs(math.log(width_ratio / height_ratio)) + abs(math.log(width_ratio * height_ratio)) / 2
