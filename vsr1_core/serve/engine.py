"""The queue of searches and the one thread that runs them: what waits for the same models goes through the decoding
loop together. Nothing here knows HTTP, tables or models.

Models are used by this thread alone, as they are not safe to share between threads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vsr1_core.home.search import SearchRequest, Told
from vsr1_core.home.search_result import Found, ShownTurn

Run = Callable[[str, Sequence[SearchRequest], Told], list[Found]]
"""Searches a dataset for requests with the same `together`, in one batch."""
LOG = logging.getLogger(__name__)


class Busy(Exception):
    """So many searches wait that no more are taken."""


@dataclass(frozen=True)
class Failed:
    """The end of a search that has no result."""

    error: Exception


@dataclass(eq=False)
class Job:
    """One search that waits or runs. told: called, by the engine's thread, with each turn and at last with the result
    or the failure. deadline: when it is given up before it started, on the clock of `time.monotonic`."""

    dataset: str
    request: SearchRequest
    told: Callable[[ShownTurn | Found | Failed], None]
    deadline: float = float("inf")
    is_cancelled: bool = False

    @property
    def together(self) -> tuple[object, ...]:
        """Jobs with the same value run in one batch."""
        return (self.dataset, *self.request.together)


@dataclass
class EngineCounts:
    """What the engine did since it started."""

    num_searches: int = 0
    num_failed: int = 0
    num_batches: int = 0
    num_refused: int = 0
    largest_batch: int = 0
    seconds: float = 0.0


class Engine:
    """Runs jobs in the order in which they came, except that jobs which can go together do.

    Args:
        run: Searches.
        max_waiting: How many jobs may wait; `submit` refuses the next one.
        max_batch: How many jobs run together.
    """

    def __init__(self, run: Run, max_waiting: int = 64, max_batch: int = 32) -> None:
        self._run = run
        self.max_waiting, self.max_batch = max_waiting, max_batch
        self.counts = EngineCounts()
        self._waiting: list[Job] = []
        self._changed = threading.Condition()
        self._is_open = True
        self._thread = threading.Thread(target=self._work, name="vsr1-engine", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Let the job wait for its turn. Raises Busy where too many wait."""
        with self._changed:
            if len(self._waiting) >= self.max_waiting or not self._is_open:
                self.counts.num_refused += 1
                raise Busy(f"{len(self._waiting)} searches wait already; try again in a moment")
            self._waiting.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Take no more jobs, fail those that wait, and end the thread after the batch that runs."""
        with self._changed:
            self._is_open = False
            left, self._waiting = self._waiting, []
            self._changed.notify()
        for job in left:
            job.told(Failed(Busy("the server stops")))
        self._thread.join(timeout=5)

    def _work(self) -> None:
        while batch := self._take():
            self._search(batch)

    def _take(self) -> list[Job]:
        """The next jobs that go together; empty when the engine is closed."""
        with self._changed:
            while True:
                self._drop_late()
                if self._waiting:
                    key = self._waiting[0].together
                    batch = [job for job in self._waiting if job.together == key][: self.max_batch]
                    self._waiting = [job for job in self._waiting if job not in batch]
                    return batch
                if not self._is_open:
                    return []
                self._changed.wait()

    def _drop_late(self) -> None:
        """Forget jobs that nobody waits for, and fail those whose time is over."""
        now = time.monotonic()
        for job in [job for job in self._waiting if job.is_cancelled or job.deadline < now]:
            self._waiting.remove(job)
            if not job.is_cancelled:
                self.counts.num_failed += 1
                job.told(Failed(TimeoutError("the search waited too long for its turn; try again")))

    def _search(self, batch: Sequence[Job]) -> None:
        begun = time.monotonic()
        try:
            found = self._run(batch[0].dataset, [j.request for j in batch], lambda n, turn: batch[n].told(turn))
        except Exception as error:  # noqa: BLE001  # one search must not end the server
            self._after_failure(batch, error)
            return
        finally:
            self.counts.seconds += time.monotonic() - begun
        self.counts.num_batches += 1
        self.counts.largest_batch = max(self.counts.largest_batch, len(batch))
        for job, result in zip(batch, found, strict=True):
            self.counts.num_searches += 1
            job.told(result)

    def _after_failure(self, batch: Sequence[Job], error: Exception) -> None:
        """Fail a single job; run several again one by one, so that only the one that cannot run fails."""
        if len(batch) > 1:
            for job in batch:
                self._search([job])
            return
        if not isinstance(error, LookupError | ValueError):
            LOG.error("a search of %s failed", batch[0].dataset, exc_info=error)
        self.counts.num_failed += 1
        batch[0].told(Failed(error))


@dataclass(frozen=True)
class Limits:
    """What a server takes on. body_bytes: of one request. search_s: how long a search may take, waiting included."""

    body_bytes: int = 64 * 1024
    body_s: float = 15.0
    search_s: float = 300.0
    num_waiting: int = 64
    converted_bytes: int = 4 << 30
    conversion_s: float = 1800.0
