"""Plots that are made and not drawn, for builds of which a test looks at something else.

To draw those of one report takes 3 s, and those of a whole build 5 of its 20 s. What is drawn is tested by
`test_report`, and with a build by `test_nano_build`.
"""

from __future__ import annotations

import functools
import io

import pytest
from PIL import Image

from vsr1_core.evaluation import plots


@functools.cache
def _picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), "white").save(out, format="PNG")
    return out.getvalue()


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Let each plot be the same small PNG."""
    patch.setattr(plots, "png", lambda figure: _picture())
