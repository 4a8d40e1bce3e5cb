"""Progress bars on a terminal while a build runs; captured logs never contain them. No Dagster is imported here.

`vsr1_core.rows.progress` decides what is reported, and how often.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@dataclass
class _Bars:
    """One bar for each piece of work that has begun and not ended; log lines are printed above the bars."""

    progress: Progress
    tasks: dict[str, TaskID] = field(default_factory=dict)

    def step(self, name: str, done: int, total: int) -> None:
        if name in self.tasks and done >= total:
            self.progress.remove_task(self.tasks.pop(name))
        elif name in self.tasks:
            self.progress.update(self.tasks[name], completed=done)
        elif done < total:
            self.tasks[name] = self.progress.add_task(name, total=total, completed=done)

    def line(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)


_shown: ContextVar[_Bars | None] = ContextVar("bars", default=None)


@contextmanager
def bars_on_terminal() -> Iterator[None]:
    """Show bars on stderr while the block runs, if stderr is a terminal.

    The bars are written to a copy of stderr: while a step runs, Dagster replaces stderr by a file and shows that file
    in the UI, where a bar would be thousands of lines.
    """
    if not sys.stderr.isatty():
        yield
        return
    with os.fdopen(os.dup(sys.stderr.fileno()), "w") as terminal, bars_on(terminal):
        yield


@contextmanager
def bars_on(terminal: TextIO) -> Iterator[None]:
    """Show bars on `terminal` while the block runs."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(file=terminal, force_terminal=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as progress:
        token = _shown.set(_Bars(progress))
        try:
            yield
        finally:
            _shown.reset(token)


def print_above(text: str) -> bool:
    """Print a line above the bars. Returns False, and prints nothing, if no bars are shown."""
    if (bars := _shown.get()) is not None:
        bars.line(text)
    return bars is not None


def show_step(name: str, done: int, total: int) -> None:
    """Move the bar of `name` to `done` of `total`, if bars are shown."""
    if (bars := _shown.get()) is not None:
        bars.step(name, done, total)
