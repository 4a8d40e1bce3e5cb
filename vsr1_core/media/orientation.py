"""Which way up a stored picture is shown: the eight ways of a display matrix, turned and mirrored."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame


@dataclass(frozen=True)
class Orientation:
    """How the stored picture becomes upright: mirrored left to right first where `is_mirrored`, then turned by
    `quarters` (0 to 3) counter-clockwise quarter turns."""

    quarters: int = 0
    is_mirrored: bool = False

    def upright(self, pixels: np.ndarray) -> np.ndarray:
        """Turn a stored picture, [H, W, 3], upright."""
        mirrored = pixels[:, ::-1] if self.is_mirrored else pixels
        return np.ascontiguousarray(np.rot90(mirrored, self.quarters))

    def swapped(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the upright picture from those of the stored one, and the other way round."""
        return (height, width) if self.quarters % 2 else (width, height)


def orientation_of(frame: VideoFrame) -> Orientation:
    """Read the display matrix of a frame. An angle between two quarter turns counts as the nearer one.

    The matrix maps a stored point to a shown one, with y downwards: x' = a x + c y, y' = b x + d y. A negative
    determinant means that it mirrors; its first column is then that of a turn, with the sign changed.
    """
    side_data: Any = frame.side_data
    data = next((found for found in side_data if found.type == Type.DISPLAYMATRIX), None)
    if data is None:
        return Orientation()
    a, b, _, c, d = np.frombuffer(data, np.int32, 5).tolist()
    is_mirrored = a * d - b * c < 0
    sign = -1 if is_mirrored else 1
    clockwise = math.atan2(sign * b, sign * a)
    return Orientation(round(-clockwise / (math.pi / 2)) % 4, is_mirrored)
