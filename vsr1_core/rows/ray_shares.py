"""Rows on their way through a Ray cluster: which are where, what becomes of those of a lost worker, and when a worker
counts as lost.

Items travel in shares of a few. A worker streams the results of its share, so that a lost worker costs no finished row.
Its unfinished rows go to other workers in smaller shares, because it is not known which of them caused the loss; a
single row that loses one worker after another is given up. What a worker is (a task or an actor) is told by `Places`.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Generic, Protocol

from vsr1_core.rows.results import Item, Result, Value

ALIVE = "alive"
"""Answer of a worker that has nothing else to say. Its first answer is this one, when it begins with a share."""
READY = "ready"
"""Answer of a worker that begins with the rows. What it is lost by before is caused by no row. All other answers are
lists of (position in the share, value, error)."""

MAX_LOSSES = 3
"""A row is given up after this many workers were lost while they worked on it (for example because it needs more memory
than they have)."""

MAX_IDLE_LOSSES = 20
"""After this many workers were lost before they began to work, without an answer in between, the cluster is considered
broken: no row can be the cause."""

SLACK_S = 60.0
"""A node enforces the deadline of a row itself. A node that is silent for this many seconds beyond what it may take is
cut off."""

QUIET_S = 60.0
"""When all shares have waited for a worker for this many seconds, a log line says so."""

COUNT_S = 5.0
"""Seconds between two queries for the size of the cluster."""

LOSSES = (
    *("ActorDiedError", "ActorUnavailableError", "LocalRayletDiedError", "NodeDiedError", "ObjectLostError"),
    *("OutOfMemoryError", "WorkerCrashedError"),
)
"""Errors of Ray after which the same rows may succeed on another node."""


class WorkerIsBroken(Exception):
    """Raised on a worker that cannot go on, where another worker might. The message says why."""


class Places(Protocol):
    """The workers of a cluster.

    waits_for: the resource that one of them takes, by Ray's name. share_size: the most items in one share.
    """

    waits_for: str
    share_size: int

    def room(self, total: int) -> int:
        """How many shares may be on their way, in a cluster that has `total` of the resource."""

    def start(self, items: list[Any]) -> tuple[Any, bool]:
        """Give `items` to a worker. Returns the stream of its answers, and whether the worker was already running."""

    def has_idle(self) -> bool:
        """Whether a worker that is already running has nothing to do."""

    def ended(self, stream: Any) -> None:
        """The worker of this stream has given all its answers."""

    def lost(self, stream: Any) -> None:
        """Stop the worker of this stream, whatever it does."""

    def parts(self, items: list[Any]) -> Sequence[list[Any]]:
        """The smaller shares in which the unfinished items of a lost worker go to others."""


class _Lost(Exception):
    """A worker died or ran out of memory, or its node died or was cut off."""


@dataclass
class _Share(Generic[Item]):
    """The unfinished items of a worker by their position in its share. num_losses: the number of workers that were lost
    while working on them. due: the time by which the worker has to answer; infinite before a new worker has begun."""

    left: dict[int, Item]
    num_losses: int = 0
    due: float = math.inf
    is_at_work: bool = False


class Shares(Generic[Item, Value]):
    """All items on their way through a cluster. patience_s: seconds that a worker may be silent."""

    def __init__(
        self, ray: ModuleType, places: Places, items: Iterator[Item], patience_s: float, log: Callable[[str], None]
    ) -> None:
        self._ray, self._places, self._items, self._patience_s, self._log = ray, places, items, patience_s, log
        self._running: dict[Any, _Share[Item]] = {}
        self._waiting: list[_Share[Item]] = []
        """Shares of lost workers."""
        self._num_idle_losses = 0
        self._total, self._counted_at = 0, -math.inf
        self._heard_at = time.monotonic()

    def results(self) -> Iterator[Result[Item, Value]]:
        """Yield the result of every item, and stop the workers that still run when the caller stops."""
        try:
            while self._fill():
                for stream in self._ready():
                    yield from self._hear(stream)
                self._tell_of_waiting()
        finally:
            for stream in self._running:
                self._places.lost(stream)

    def _fill(self) -> bool:
        """Give out shares until all workers of the cluster, which may come and go, are busy. Returns False when none is
        busy any more."""
        if time.monotonic() - self._counted_at > COUNT_S:
            self._total = int(self._ray.cluster_resources().get(self._places.waits_for, 0))
            self._counted_at = time.monotonic()
        while len(self._running) < self._places.room(self._total):
            share = self._next_share()
            if share is None:
                break
            stream, is_running = self._places.start(list(share.left.values()))
            share.due = time.monotonic() + self._patience_s if is_running else math.inf
            self._running[stream] = share
        return bool(self._running)

    def _next_share(self) -> _Share[Item] | None:
        if self._waiting:
            return self._waiting.pop()
        if items := list(itertools.islice(self._items, self._places.share_size)):
            return _Share(dict(enumerate(items)))
        return self._taken_back() if self._places.has_idle() else None

    def _taken_back(self) -> _Share[Item] | None:
        """A share that waits for a worker to start, which another one, with nothing left to do, can begin with now. The
        cluster may never have room for the worker that it waits for."""
        stream = next((stream for stream, share in self._running.items() if share.due == math.inf), None)
        if stream is None:
            return None
        self._places.lost(stream)
        return self._running.pop(stream)

    def _ready(self) -> list[Any]:
        """Wait for, and return, the streams that have an answer, have ended or are overdue. Returns after COUNT_S
        seconds at the latest, because the cluster may have more room by then."""
        timeout_s = max(0.0, min(COUNT_S, *(share.due - time.monotonic() for share in self._running.values())))
        heard, _ = self._ray.wait(list(self._running), num_returns=1, timeout=timeout_s)
        now = time.monotonic()
        return [stream for stream, share in self._running.items() if stream in heard or share.due <= now]

    def _hear(self, stream: Any) -> Iterator[Result[Item, Value]]:
        share = self._running[stream]
        try:
            answer = self._next(stream)
        except (StopIteration, _Lost) as end:
            del self._running[stream]
            if share.left or isinstance(end, _Lost):
                self._places.lost(stream)
                yield from self._lose(share, str(end) or "a worker ended early")
            else:
                self._places.ended(stream)
        else:
            self._heard_at = time.monotonic()
            share.due = self._heard_at + self._patience_s
            yield from self._read(answer, share)

    def _read(self, answer: Any, share: _Share[Item]) -> Iterator[Result[Item, Value]]:
        if answer == READY:
            share.is_at_work = True
        elif answer != ALIVE:
            self._num_idle_losses = 0
            for position, value, error in answer:
                yield Result(share.left.pop(position), value, error)

    def _next(self, stream: Any) -> Any:
        """The next answer of a worker. Raises StopIteration at its end, _Lost when it was lost, and ValueError when the
        node or the cluster cannot do the work."""
        if not self._ray.wait([stream], timeout=0)[0]:
            raise _Lost(f"a node said nothing for {self._patience_s:g} s")
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(next(stream))
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, WorkerIsBroken):
                raise _Lost(str(error.cause)) from error
            raise ValueError(f"a node of the Ray cluster cannot do this work: {error.cause}") from error
        except tuple(getattr(exceptions, name) for name in LOSSES) as error:
            if getattr(error, "actor_init_failed", False):
                raise ValueError(f"a node of the Ray cluster cannot do this work: {error}") from error
            raise _Lost(f"a worker was lost ({type(error).__name__})") from error
        except exceptions.RayError as error:
            raise ValueError(f"the Ray cluster cannot do this work: {type(error).__name__}: {error}") from error

    def _lose(self, share: _Share[Item], reason: str) -> Iterator[Result[Item, Value]]:
        """Queue the unfinished items of a lost worker again."""
        items = list(share.left.values())
        self._num_idle_losses += not share.is_at_work
        if self._num_idle_losses == MAX_IDLE_LOSSES:
            raise ValueError(f"the Ray cluster does no work: {reason}, {MAX_IDLE_LOSSES} times in a row")
        # Of several rows, any may be the cause, and each has the smaller shares that follow to show that it is not.
        num_losses = share.num_losses + share.is_at_work if len(items) == 1 else int(share.is_at_work)
        if num_losses == MAX_LOSSES:
            yield Result(items[0], None, f"{reason}, {MAX_LOSSES} times with this row")
        else:
            self._log(f"Ray: {reason}; its {len(items)} unfinished rows are started again")
            parts = self._places.parts(items) if share.is_at_work else [items]
            self._waiting += [_Share(dict(enumerate(part)), num_losses) for part in parts]

    def _tell_of_waiting(self) -> None:
        waits = all(share.due == math.inf for share in self._running.values())
        if self._running and waits and time.monotonic() - self._heard_at > QUIET_S:
            self._heard_at = time.monotonic()
            what = self._places.waits_for
            self._log(f"Ray: all work is waiting for a free {what}; the cluster has {self._total} {what}s in total")
