"""The command line over other stages than those of the product.

Commands import what they need when they run, so modules that keep a reference to `all_stages` are imported here: they
would keep that of the first test that runs such a command.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import pipelines.definitions
import pipelines.resources
import vsr1_core.home.adding
import vsr1_core.stages.graph
import vsr1_core.stages.model_rows
from vsr1_core.stages.base import Stage


def use_stages(patch: pytest.MonkeyPatch, stages: Callable[[], dict[str, Stage]], home: Path) -> None:
    """Let `vsr1` build the graph of `stages` in `home`, on one processor."""
    for module in (pipelines.definitions, pipelines.resources, vsr1_core.stages.graph):
        patch.setattr(module, "all_stages", stages)
    for name, value in {"HOME": home, "DEVICE": "cpu", "WORKERS": 1}.items():
        patch.setenv(f"VSR1_{name}", str(value))
