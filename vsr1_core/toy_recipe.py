"""The recipe of the rendered toy corpus. This module does not import torch, because plans are made without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from vsr1_core.limits import Ascending, Count, Range, Share, Whole


@dataclass(frozen=True)
class ToyRecipe:
    """The rendered toy corpus, which `vsr1_core.datasets.toy` draws."""

    num_train: Whole = 1500
    num_val: Whole = 150
    num_test: Whole = 300
    size: Annotated[int, Range(16)] = 64
    """Width and height of a frame in pixels."""
    source_fps: Count = 4
    seconds_per_event: Annotated[tuple[int, int], Ascending()] = (3, 5)
    num_events: Annotated[tuple[int, int], Ascending()] = (2, 2)
    moments_per_train_video: Count = 2
    moments_per_eval_video: Count = 1
    near_duplicate_share: Share = 0.1
    """Share of the videos that copy another video of their split and change one attribute: of one event, or the
    background."""
    synonym_probability: Share = 0.5
    seed: Whole = 42
