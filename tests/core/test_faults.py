"""A build that is cut off anywhere is completed by the next one, as if nothing had been."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fault_states import is_same

KINDS = ("kill", "full", "broken", "names_lost", "data_lost")
NUM_PARTS = {"first": 20, "edit": 12, "deltas": 16, "adopt": 6, "correct": 6, "import": 8}
"""Each takes under two minutes of one core."""


def results(scenario: str, *options: str) -> list[dict[str, Any]]:
    """What `tests.fault_sweep` found, strike by strike. It says first how many points there are, and last how many
    homes were completed."""
    command = [sys.executable, "-m", "tests.fault_sweep", scenario, ",".join(KINDS), *options]
    # One thread: of several, most of the time would go by in handing tiny tables from one to the other.
    run = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "POLARS_MAX_THREADS": "1"}, check=False
    )
    assert run.returncode == 0, run.stderr
    first, *found, last = map(json.loads, run.stdout.splitlines())
    assert first["num_chosen"] > 200, "so many places write"
    assert [(r["at"], r["kind"]) for r in found] == [(at, kind) for at in first["here"] for kind in KINDS]
    assert 0 < last["num_completed"] <= last["num_left"] <= len(found)
    return found


@pytest.mark.long
@pytest.mark.slow
def test_a_build_that_is_cut_off_at_a_sample_of_its_writes_is_completed() -> None:
    found = results("deltas", "--every", "200")
    assert len(found) >= 2 * len(KINDS)
    assert [result for result in found if result["problems"]] == []


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.parametrize(("scenario", "part"), [(name, part) for name, num in NUM_PARTS.items() for part in range(num)])
def test_a_build_that_is_cut_off_at_any_write_is_completed(scenario: str, part: int) -> None:
    found = results(scenario, "--part", f"{part}/{NUM_PARTS[scenario]}")
    assert [result for result in found if result["problems"]] == []


def test_a_killed_process_leaves_what_the_sweep_takes_for_it(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.fault_check", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    assert said["differ"] == []
    assert {point.partition(" ")[0] for point in said["points"]} >= {
        "open",
        "write",
        "fsync",
        "rename",
        "unlink",
        "mkdir",
    }


def test_only_the_last_bits_of_numbers_may_differ() -> None:
    assert is_same([0.5, {"a": 1.0}], [0.5 + 1e-7, {"a": 1.0}])
    for one, other in ((0.5, 0.50001), (1, 2), ("a", "b"), ([0.5], [0.5, 0.5]), ({"a": 1}, {"b": 1}), (0.5, None)):
        assert not is_same(one, other)
