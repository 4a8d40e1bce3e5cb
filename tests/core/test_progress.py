"""Lines about long work: seldom, with rate and time left; steps as often as they are noted."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from vsr1_core.rows import progress
from vsr1_core.rows.progress import Log, Progress, duration_text


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> itertools.count[int]:
    """A second passes at each look at the clock."""
    ticks = itertools.count()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))  # for no other thread
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


class Clock:
    """What the clock shows is the test's choice."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: self.now))

    def lines_of(self, arrivals: list[tuple[float, int]], total: int, done_before: int = 0) -> list[str]:
        """arrivals: (seconds, how many are done by then), noted one unit at a time."""
        lines: list[str] = []
        work = Progress(lines.append, "work", total, done_before=done_before, started=0.0)
        done = done_before
        for self.now, until in arrivals:
            while done < until:
                done += 1
                work.note(done)
        return lines


@pytest.mark.parametrize(
    ("done_before", "arrivals", "total", "line"),
    [
        (0, [(60.0, 2), (120.0, 4)], 100, "work: 3 of 100 rows, 30.0 s per row, about 48 min left"),
        (0, [(60.0, 6000), (120.0, 6001)], 12000, "work: 6,001 of 12,000 rows, 100.0 rows/s, about 60 s left"),
        (40, [(60.0, 100), (120.0, 101)], 160, "work: 101 of 160 rows, 1.0 rows/s, about 59 s left"),
    ],
)
def test_rates_are_of_what_this_run_did(
    monkeypatch: pytest.MonkeyPatch, done_before: int, arrivals: list[tuple[float, int]], total: int, line: str
) -> None:
    assert Clock(monkeypatch).lines_of(arrivals, total, done_before)[1:] == [line]


def test_rows_of_a_batch_are_not_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 rows in batches of 256, the first after 52 s: the whole takes 61 s, and no line says hours."""
    assert Clock(monkeypatch).lines_of([(52.0, 256), (61.0, 300)], 300) == ["work: 1 of 300 rows, the first after 52 s"]
    lines = Clock(monkeypatch).lines_of([(20.0 * n, 32 * n) for n in range(1, 10)], 288)
    assert lines[0] == "work: 1 of 288 rows, the first after 20 s"
    assert lines[1] == "work: 33 of 288 rows, 1.6 rows/s, about 3 min left"
    assert {line.split(", ")[1] for line in lines[1:]} == {"1.6 rows/s"}


def test_a_line_in_the_middle_of_a_batch_is_about_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = Clock(monkeypatch).lines_of([(5.0, 32), (9.9, 40), (10.1, 64), (15.2, 96)], 320)
    assert lines == ["work: 41 of 320 rows, 6.4 rows/s, about 44 s left"]


def test_fast_rows_have_a_rate_although_none_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = Clock(monkeypatch).lines_of([(n / 100, n) for n in range(1, 1200)], 6000)
    assert lines == ["work: 1,000 of 6,000 rows, 100.0 rows/s, about 50 s left"]


def test_durations_are_rounded_to_what_one_reads() -> None:
    assert [duration_text(s) for s in (4.4, 99, 100, 5999, 12000)] == [
        "4 s",
        "99 s",
        "2 min",
        "1 h 40 min",
        "3 h 20 min",
    ]
