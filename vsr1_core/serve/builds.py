"""Builds that the page starts: one at a time, in a thread, with their last lines kept for the page.

What a build runs is a function that the command line passes in: the library knows no Dagster.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from vsr1_core.home.correcting import Conflict
from vsr1_core.serve.errors import without_folders

BuildHook = Callable[[str, Callable[[str], None]], str]
"""Builds a dataset: (its name, called with each line of progress) -> why it stopped; empty where it ended well."""
MAX_LINES = 100


@dataclass
class Build:
    """One build. state: `running`, `done` or `failed`. problem: why it failed."""

    dataset: str
    state: str = "running"
    problem: str = ""
    seconds: float = 0.0
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_LINES))


class Builds:
    """Starts builds and remembers the last one of each dataset. hook: None where this machine cannot build. end: ends
    the build that the hook runs, and lets it start no other."""

    def __init__(self, hook: BuildHook | None = None, end: Callable[[], object] = lambda: None) -> None:
        self._hook, self._end = hook, end
        self._last: dict[str, Build] = {}
        self._lock = threading.Lock()

    @property
    def can_build(self) -> bool:
        """Whether `start` does anything."""
        return self._hook is not None

    def last(self, dataset: str) -> Build | None:
        """The build that runs, or that ran last; None before the first one."""
        return self._last.get(dataset)

    def start(self, dataset: str) -> Build:
        """Start a build. Conflict: one runs already. ValueError: this machine cannot build."""
        if self._hook is None:
            raise ValueError(f"this server cannot build; run: vsr1 build --dataset {dataset}")
        with self._lock:
            running = next((build for build in self._last.values() if build.state == "running"), None)
            if running is not None:
                raise Conflict(f"a build of {running.dataset} runs already; wait until it has ended")
            build = self._last[dataset] = Build(dataset)
        threading.Thread(target=self._run, args=(self._hook, build), name="vsr1-build", daemon=True).start()
        return build

    def close(self) -> None:
        """End the build that runs: nobody would see how it goes."""
        self._end()

    @staticmethod
    def _run(hook: BuildHook, build: Build) -> None:
        begun = time.monotonic()

        def told(line: str) -> None:
            build.lines.append(without_folders(line))
            build.seconds = time.monotonic() - begun

        try:
            problem = hook(build.dataset, told)
        except Exception as error:  # noqa: BLE001  # whatever ends a build is its result
            problem = str(error) or type(error).__name__
        build.seconds = time.monotonic() - begun
        build.problem = without_folders(problem)
        build.state = "failed" if problem else "done"
