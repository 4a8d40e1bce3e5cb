"""The process pool: every item has one result, whatever its worker does."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.workers import misbehave, square, started_process, threads_and_process, wait_for_file
from vsr1_core.rows.files import WriteRefused
from vsr1_core.rows.process_identity import identity_of
from vsr1_core.rows.workers import map_rows
from vsr1_core.stages.execution import Execution


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


def test_a_process_that_reads_videos_starts_without_tables() -> None:
    """They would take as long to import as all else."""
    names = ["vsr1_core.media.decode", "vsr1_core.media.probe", "vsr1_core.media.video_rows"]
    loaded = f"[__import__(name) for name in {names}] and {{'av', 'polars'}} & {{*__import__('sys').modules}}"
    (result,) = Execution(workers=1, is_caged=True).map_rows(eval, [loaded], [])
    assert (result.value, result.error) == ({"av"}, None)


def test_a_crash_fails_only_the_row_in_flight() -> None:
    results = {r.item: r for r in map_rows(misbehave, ["a", "crash", "b", "c", "d"], 2)}
    assert len(results) == 5
    assert "signal 11" in str(results.pop("crash").error)
    assert sorted(str(r.value) for r in results.values()) == ["A", "B", "C", "D"]


@pytest.mark.slow
def test_a_row_past_its_deadline_is_stopped() -> None:
    """The first row of a process has the deadline for the start of the process as well."""
    results = {r.item: r for r in map_rows(misbehave, ["hang", "a"], 2, deadline_s=10)}
    assert "longer than 10 s" in str(results["hang"].error)  # it would end by itself, without an error, after 60 s
    assert results["a"].value == "A"


@pytest.mark.parametrize("workers", [1, 2])
def test_known_errors_keep_their_words_and_bugs_name_their_place(workers: int) -> None:
    results = {r.item: r.error for r in map_rows(misbehave, ["refuse", "bug", "a"], workers)}
    assert results["refuse"] == "the video is not a video"
    assert "unexpected KeyError at workers.py" in str(results["bug"])
    assert results["a"] is None


@pytest.mark.parametrize("workers", [1, 2])
def test_a_refused_write_is_no_items_fault_and_stops_the_run(workers: int) -> None:
    run = Execution(workers=workers)
    with pytest.raises(WriteRefused, match="its disk is full") as raised:
        list(run.map_rows(misbehave, ["a", "full", "b"], []))
    assert raised.value.errno == errno.ENOSPC
    found = {r.item: (r.value, r.error) for r in run.map_rows(misbehave, ["a", "refuse"], [])}
    assert found == {"a": ("A", None), "refuse": (None, "the video is not a video")}


def test_leaving_early_stops_the_workers(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    results = map_rows(wait_for_file, [(0, ""), (1, str(gate)), (2, str(gate))], 2)
    assert next(results).value == 0
    processes = [started_process(gate, number) for number in (1, 2)]
    assert {identity_of(process).state() for process in processes} == {"alive"}
    results.close()
    assert {identity_of(process).state() for process in processes} == {"dead"}
