"""What all tests share: the process environment torch needs, and the folder of outside data where there is one."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from pipelines.resources import prepare_process

prepare_process()  # before anything imports torch
os.environ.setdefault("VSR1_PROCESSES", "1")  # steps of tests are few: starting processes would take longer


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with more slow tests come first, so that of several processes none is left alone with one at the end."""
    num_slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -num_slow[item.path])


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real annotations, clips and predictions beside the project; tests that need them skip where there are none."""
    folder = Path(__file__).resolve().parents[1] / "../shared/data"
    if not folder.is_dir():
        pytest.skip(f"no outside data at {folder}")
    return folder.resolve()
