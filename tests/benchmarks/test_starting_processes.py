"""What it costs to start the processes of two trainings, against fresh interpreters that import the same."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest

from tests.benchmarks.measuring import CHILDREN, in_seconds, interleaved, line
from vsr1_core.rows.forks import can_fork
from vsr1_core.stages.launch import PROGRAM, forks

REPEATS = 2
PROCESSES = 4
"""Two for each training."""


def fresh() -> None:
    for _ in range(PROCESSES):
        subprocess.run([sys.executable, "-c", f"from {PROGRAM} import prepare; prepare()"], check=True)


def forked() -> None:
    with contextlib.closing(forks()) as origin:
        for _ in range(PROCESSES):
            assert origin.start("tests.core.forked:end_with_code", [0]).wait() == 0


def test_the_processes_of_two_trainings() -> None:
    if not can_fork("cpu"):
        pytest.skip("only processes of Linux are forked")
    plain, ours = (min(each.seconds) for each in interleaved(REPEATS, CHILDREN, fresh, forked))
    times, against = in_seconds(plain, ours), f"{PROCESSES} interpreters that import the same"
    print(line(f"{PROCESSES} forks of one process", *times, ours / plain, "at most 0.35", against=against))
