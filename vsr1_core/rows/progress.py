"""Progress of long work: an occasional line for logs, and every single step for progress bars.

This module prints nothing. Lines and steps go to the `Log` that the caller passes; a plain function gets lines only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

SECONDS_BETWEEN_LINES = 10.0
SECONDS_OF_AN_ARRIVAL = 1.0
"""Units that are reported within this many seconds count as one arrival."""


def _nowhere(*_: Any) -> None:
    """No-op: the caller did not ask for progress."""


@dataclass(frozen=True)
class Log:
    """The callbacks that work reports to. `line` gets a sentence. `step` gets (name, done, total) whenever a unit of
    work is done."""

    line: Callable[[str], Any] = _nowhere
    step: Callable[[str, int, int], Any] = _nowhere

    def __call__(self, text: str) -> None:
        self.line(text)


@dataclass
class Progress:
    """Progress of `total` units of work called `name`; an earlier run did `done_before` of them. `log` is a `Log`, or a
    function that takes lines.

    Rates are computed from whole arrivals: units that arrive within one second came together, as the rows of a batch
    do. An arrival that has just begun may still grow, so it is not counted before it is over: otherwise the first of 32
    rows that take 52 s together would predict 52 s for each of the others.
    """

    log: Callable[[str], None]
    name: str
    total: int
    unit: str = "rows"
    done_before: int = 0
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._last_line = self.started
        self._step = self.log.step if isinstance(self.log, Log) else _nowhere
        self._newest = self._complete = self._begun = (self.done_before, self.started)

    def note(self, done: int, values: Mapping[str, float] | None = None) -> None:
        """Report that `done` units are done. `values`, such as losses, are added to the line; with values there is
        always a last line at the end."""
        self._step(self.name, done, self.total)
        now, is_end = time.monotonic(), done >= self.total
        self._arrive(done, now)
        if (is_end and not values) or (not is_end and now - self._last_line < SECONDS_BETWEEN_LINES):
            return
        self._last_line = now
        shown = "".join(f", {name} {value:.3f}" for name, value in (values or {}).items())
        self.log(f"{self.name}: {self._text(done, now - self.started)}{shown}")

    def _arrive(self, done: int, now: float) -> None:
        """Keep (done, time) of the newest report, of the last report of the previous arrival, and of the first report
        of the current arrival."""
        if now - self._begun[1] >= SECONDS_OF_AN_ARRIVAL:
            self._complete, self._begun = self._newest, (done, now)
        self._newest = (done, now)

    def _text(self, done: int, seconds: float) -> str:
        """For example `120 of 400 rows, 3.1 rows/s, about 2 min left`. Slow work is given in seconds per row."""
        counted = f"{done:,} of {self.total:,} {self.unit}"
        known, at = (done, self.started + seconds) if done >= self.total else self._complete
        if known <= self.done_before:
            return f"{counted}, the first after {duration_text(seconds)}"
        rate = (known - self.done_before) / max(at - self.started, 1e-9)
        slow = f"{1 / rate:,.1f} s per {self.unit.removesuffix('s')}"
        speed = slow if rate < 0.95 else f"{rate:,.1f} {self.unit}/s"
        left = f", about {duration_text((self.total - done) / rate)} left" if done < self.total else ""
        return f"{counted}, {speed}{left}"


def duration_text(seconds: float) -> str:
    """A duration for people, such as `40 s`, `12 min` or `3 h 20 min`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
