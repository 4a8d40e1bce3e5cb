"""A build that is cut off anywhere is completed by the next one, as if nothing had been."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.fault_sweep import is_same

KINDS = ("kill", "full", "broken", "names_lost", "data_lost")
NUM_PARTS = 4


def results(scenario: str, kinds: str, part: str) -> list[dict[str, Any]]:
    """What `tests.fault_sweep` found, point by point; it says first how many points there are."""
    command = [sys.executable, "-m", "tests.fault_sweep", scenario, kinds, "--part", part]
    # One thread: of several, most of the time would go by in handing tiny tables from one to the other.
    run = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "POLARS_MAX_THREADS": "1"}, check=False
    )
    assert run.returncode == 0, run.stderr
    first, *found = map(json.loads, run.stdout.splitlines())
    assert first["num_chosen"] > 200, "so many places write"
    return found


@pytest.mark.slow
def test_a_build_that_is_cut_off_at_a_sample_of_its_writes_is_completed() -> None:
    found = results("deltas", ",".join(KINDS), "97/200")
    assert {result["kind"] for result in found} == set(KINDS)
    assert len(found) >= 2 * len(KINDS)
    assert [result for result in found if result["problems"]] == []


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.parametrize("part", range(NUM_PARTS))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scenario", ["first", "edit", "deltas", "adopt", "correct", "import"])
def test_a_build_that_is_cut_off_at_any_write_is_completed(scenario: str, kind: str, part: int) -> None:
    found = results(scenario, kind, f"{part}/{NUM_PARTS}")
    assert [result for result in found if result["problems"]] == []


def test_only_the_last_bits_of_numbers_may_differ() -> None:
    assert is_same([0.5, {"a": 1.0}], [0.5 + 1e-7, {"a": 1.0}])
    for one, other in ((0.5, 0.50001), (1, 2), ("a", "b"), ([0.5], [0.5, 0.5]), ({"a": 1}, {"b": 1}), (0.5, None)):
        assert not is_same(one, other)
