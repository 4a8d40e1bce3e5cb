"""The command line over other stages than those of the product."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import pipelines.definitions
import pipelines.resources
import vsr1_core.stages.graph
from vsr1_core.stages.base import Stage


def use_stages(patch: pytest.MonkeyPatch, stages: Callable[[], dict[str, Stage]], home: Path) -> None:
    """Let `vsr1` build the graph of `stages` in `home`, on one processor."""
    for module in (pipelines.definitions, pipelines.resources, vsr1_core.stages.graph):
        patch.setattr(module, "all_stages", stages)
    for name, value in {"HOME": home, "DEVICE": "cpu", "WORKERS": 1}.items():
        patch.setenv(f"VSR1_{name}", str(value))
