"""What all tests share: the process environment torch needs, and the folder of outside data where there is one."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipelines.resources import prepare_process

prepare_process()  # before anything imports torch
os.environ.setdefault("VSR1_PROCESSES", "1")  # steps of tests are few: starting processes would take longer


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with more slow tests come first, so that of several processes none is left alone with one at the end."""
    num_slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -num_slow[item.path])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of several processes: the tests of a file share what they build and stay together; but the random edits share
    next to nothing and take longest of all, so each part of them goes where there is time."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return nodeid if file.endswith("test_random_edits.py") else file

    return ByFile(config, log)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real annotations, clips and predictions beside the project; tests that need them skip where there are none."""
    folder = Path(__file__).resolve().parents[1] / "../shared/data"
    if not folder.is_dir():
        pytest.skip(f"no outside data at {folder}")
    return folder.resolve()
