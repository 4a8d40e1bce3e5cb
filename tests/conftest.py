"""What all tests share: the process environment torch needs, and the folder of outside data where there is one."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import shutil
import sys
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer.testing

from pipelines.settings import prepare_process

prepare_process()  # before anything imports torch
os.environ.setdefault("VSR1_PROCESSES", "1")  # steps of tests are few: starting processes would take longer

# Tables of tests have a few rows: to wake a second thread for a step over them costs more than the step, in all a tenth
# of the processor time. Tables of many rows are the benchmarks'.
os.environ.setdefault("POLARS_MAX_THREADS", "1")

# A test runner makes all commands anew from their signatures each time that it invokes one: 25 ms, some 300 times.
typer.testing._get_command = functools.cache(typer.testing._get_command)

for name in ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "TTY_COMPATIBLE", "COLUMNS", "TERMINAL_WIDTH"):
    os.environ.pop(name, None)  # what commands print is looked at as it is without a terminal

MEMORY = Path("/dev/shm")  # of Linux
ROOM = 8 << 30
"""Bytes; the tests write about 1 GiB."""
if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM:
    # The tests' homes are in memory: a build calls fsync thousands of times, and a disk that others use as well takes
    # milliseconds for each. pytest removes all but what failed (`tmp_path_retention_policy`).
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

LONGEST = (
    "test_daemon.py",
    "test_nano_build.py",
    "test_experiment_command.py",
    "test_random_edits.py",
    "test_staleness.py",
    "test_ray_workers.py",
    "test_ray_actors.py",
    "test_run_commands.py",
)
"""By what `make test PYTEST_ARGS=--durations=30` says."""
OF_THE_REAL_TOKENIZER = ("test_embedder.py", "test_text_tokens.py", "test_vllm_writer.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first, so that of several processes none is left alone with one at the end."""
    slow = {item.path.name for item in items if item.get_closest_marker("slow")}
    order = {name: place for place, name in enumerate([*LONGEST, *sorted(slow - set(LONGEST))])}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported here stays, and is 800,000 objects (torch, transformers, Dagster, ray). Each full garbage
    collection went over them in 0.6 s, which was a fifth of the tests' processor time. What is left of one takes 0.1 s,
    and accelerate asks for one before each training; Python does them where there is something to collect."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        if memory := sys.modules.get("accelerate.utils.memory"):
            memory.gc = SimpleNamespace(collect=lambda: 0)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """Of several processes on Linux: they begin with their imports done."""
    if sys.platform == "linux" and len(specs) > 1:
        from tests.forked_interpreter import forked_interpreters

        running = contextlib.ExitStack()
        config.add_cleanup(running.close)
        command = running.enter_context(forked_interpreters())
        for spec in specs:
            if spec.popen and not spec.python:
                spec.python = command


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of several processes: the tests of a file share what they build and stay together, and so do the files that read
    the real tokenizer, which takes 4 s to make; but the random edits share next to nothing and take longest of all, so
    each part of them goes where there is time."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            name = Path(file := nodeid.partition("::")[0]).name
            if name in OF_THE_REAL_TOKENIZER:
                return "the real tokenizer"
            return nodeid if name == "test_random_edits.py" else file

    return ByFile(config, log)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real annotations, clips and predictions beside the project; tests that need them skip where there are none."""
    folder = Path(__file__).resolve().parents[1] / "../shared/data"
    if not folder.is_dir():
        pytest.skip(f"no outside data at {folder}")
    return folder.resolve()
