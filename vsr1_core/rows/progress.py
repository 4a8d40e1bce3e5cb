"""How far a long piece of work is: a line now and then for logs, and every step for whoever draws a bar.

Nothing is written here: lines and steps go to the `Log` that the caller gave, or lines alone to a plain function.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

SECONDS_BETWEEN_LINES = 10.0


def _nowhere(*_: Any) -> None:
    """Where nobody listens."""


@dataclass(frozen=True)
class Log:
    """Where work tells of itself. line: a sentence. step: (name, done, total), as often as something is done."""

    line: Callable[[str], Any] = _nowhere
    step: Callable[[str, int, int], Any] = _nowhere

    def __call__(self, text: str) -> None:
        self.line(text)


@dataclass
class Progress:
    """`total` units of work called `name`, `done_before` of them by an earlier run. `log`: a `Log`, or a function that
    takes lines.
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

    def note(self, done: int, values: Mapping[str, float] | None = None) -> None:
        """`done` units are done. `values`, as losses, stand in the line, and are worth a last line at the end."""
        self._step(self.name, done, self.total)
        now, is_end = time.monotonic(), done >= self.total
        if (is_end and not values) or (not is_end and now - self._last_line < SECONDS_BETWEEN_LINES):
            return
        self._last_line = now
        shown = "".join(f", {name} {value:.3f}" for name, value in (values or {}).items())
        self.log(f"{self.name}: {self._text(done, now - self.started)}{shown}")

    def _text(self, done: int, seconds: float) -> str:
        """`120 of 400 rows, 3.1 rows/s, about 2 min left`; slow work is said in seconds a row."""
        rate = (done - self.done_before) / max(seconds, 1e-9)
        slow = f"{1 / max(rate, 1e-9):,.1f} s a {self.unit.removesuffix('s')}"
        speed = slow if rate < 0.95 else f"{rate:,.1f} {self.unit}/s"
        left = f", about {duration_text((self.total - done) / max(rate, 1e-9))} left" if done < self.total else ""
        return f"{done:,} of {self.total:,} {self.unit}, {speed}{left}"


def duration_text(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 20 min`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
