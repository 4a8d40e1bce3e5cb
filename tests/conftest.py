"""What all tests share: the process environment torch needs, and the folder of outside data where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.resources import prepare_process

prepare_process()  # before anything imports torch


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real annotations, clips and predictions beside the project; tests that need them skip where there are none."""
    folder = Path(__file__).resolve().parents[1] / "../shared/data"
    if not folder.is_dir():
        pytest.skip(f"no outside data at {folder}")
    return folder.resolve()
