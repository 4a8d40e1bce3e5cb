"""Lines about long work: seldom, with rate and time left; steps as often as they are noted."""

from __future__ import annotations

import itertools

import pytest

from vsr1_core.rows import progress
from vsr1_core.rows.progress import Log, Progress, duration_text


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> itertools.count[int]:
    """A second passes at each look at the clock."""
    ticks = itertools.count()
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(ticks)))
    return ticks


def test_lines_are_ten_seconds_apart_and_steps_are_all_told(clock: itertools.count[int]) -> None:
    lines: list[str] = []
    steps: list[tuple[str, int, int]] = []
    work = Progress(Log(lines.append, lambda *step: steps.append(step)), "frames", 35, started=float(next(clock)))
    for done in range(1, 36):
        work.note(done)
    assert [line.split(",")[0] for line in lines] == [
        "frames: 10 of 35 rows",
        "frames: 20 of 35 rows",
        "frames: 30 of 35 rows",
    ]
    assert lines[0] == "frames: 10 of 35 rows, 1.0 rows/s, about 25 s left"
    assert steps == [("frames", done, 35) for done in range(1, 36)]


def test_losses_stand_in_the_line_and_are_worth_a_last_one(clock: itertools.count[int]) -> None:
    lines: list[str] = []
    work = Progress(lines.append, "stage 1", 2, "steps", started=float(next(clock)))
    for done in (1, 2):
        work.note(done, {"text_loss": 0.5})
    assert lines == ["stage 1: 2 of 2 steps, 1.0 steps/s, text_loss 0.500"]


@pytest.mark.parametrize(
    ("done_before", "done", "total", "line"),
    [
        (0, 2, 100, "work: 2 of 100 rows, 30.0 s a row, about 49 min left"),
        (0, 6000, 12000, "work: 6,000 of 12,000 rows, 100.0 rows/s, about 60 s left"),
        (40, 100, 160, "work: 100 of 160 rows, 1.0 rows/s, about 60 s left"),
    ],
)
def test_rates_are_of_what_this_run_did(
    monkeypatch: pytest.MonkeyPatch, done_before: int, done: int, total: int, line: str
) -> None:
    monkeypatch.setattr(progress.time, "monotonic", lambda: 60.0)
    lines: list[str] = []
    work = Progress(lines.append, "work", total, done_before=done_before, started=0.0)
    work._last_line = 0.0
    work.note(done)
    assert lines == [line]


def test_durations_are_rounded_to_what_one_reads() -> None:
    assert [duration_text(s) for s in (4.4, 99, 100, 5999, 12000)] == [
        "4 s",
        "99 s",
        "2 min",
        "1 h 40 min",
        "3 h 20 min",
    ]
