"""The process pool: every item has one result, whatever its worker does."""

from __future__ import annotations

import os
import time

import pytest

from tests.workers import misbehave, square, threads_and_process
from vsr1_core.rows.workers import map_rows


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_has_one_result(workers: int) -> None:
    results = {r.item: r.value for r in map_rows(square, range(20), workers)}
    assert results == {n: n * n for n in range(20)}


def test_no_items_start_no_worker() -> None:
    assert list(map_rows(square, [], 4)) == []


def test_workers_are_other_processes_with_one_thread_each() -> None:
    results = [r.value for r in map_rows(threads_and_process, range(4), 2)]
    assert {threads for threads, _ in results if threads} == {"1"}
    assert os.getpid() not in {process for _, process in results}


def test_a_crash_fails_only_the_row_in_flight() -> None:
    results = {r.item: r for r in map_rows(misbehave, ["a", "crash", "b", "c", "d"], 2)}
    assert len(results) == 5
    assert "signal 11" in str(results.pop("crash").error)
    assert sorted(str(r.value) for r in results.values()) == ["A", "B", "C", "D"]


@pytest.mark.slow
def test_a_row_past_its_deadline_is_stopped() -> None:
    started = time.monotonic()
    results = {r.item: r for r in map_rows(misbehave, ["hang", "a"], 2, deadline_s=2)}
    assert "longer than 2 s" in str(results["hang"].error)
    assert results["a"].value == "A"
    assert time.monotonic() - started < 55  # it sleeps for 60


@pytest.mark.parametrize("workers", [1, 2])
def test_known_errors_keep_their_words_and_bugs_name_their_place(workers: int) -> None:
    results = {r.item: r.error for r in map_rows(misbehave, ["refuse", "bug", "a"], workers)}
    assert results["refuse"] == "the video is not a video"
    assert "unexpected KeyError at workers.py" in str(results["bug"])
    assert results["a"] is None


def test_leaving_early_stops_the_workers() -> None:
    results = map_rows(misbehave, ["a", "hang", "hang"], 2)
    started = time.monotonic()
    assert next(results).value == "A"
    results.close()
    assert time.monotonic() - started < 55  # it sleeps for 60
