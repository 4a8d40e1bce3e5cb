"""Row work on a Ray cluster that is already there: the contract of `rows.workers.map_rows`, on all of its nodes.

A task takes a few rows to one CPU of a node and works there as `engine` does on one machine: in a process of its own,
so that a decoder's crash or hang costs one row. Files go to storage that all nodes share; what travels back is a row.
A node that dies or is cut off takes no row with it: what it had not finished goes to another one.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Generic

from vsr1_core.rows.versions import code_digest
from vsr1_core.rows.workers import Item, Result, Value, map_in_processes

ROWS_A_TASK = 8
"""Few enough to share a small corpus out, enough to be worth the start of a process."""

TASKS_A_CPU = 2
"""One that runs, one that waits: no CPU idles, and a cluster that can grow sees that it should."""

MAX_LOSSES = 3
"""A row with which that many workers were lost (it needs more memory than they have, say) is given up."""

MAX_IDLE_LOSSES = 20
"""So many lost before they could work, with no answer between them: the cluster is broken, and no row is to blame."""

SLACK_S = 60.0
"""A node keeps a row's deadline itself. One that says nothing for so much longer is cut off."""

QUIET_S = 60.0
"""Seconds for which all tasks may wait for a CPU before a log line says so."""

COUNT_S = 5.0
"""How often the cluster is asked for its CPUs."""

LOSSES = ("LocalRayletDiedError", "NodeDiedError", "ObjectLostError", "OutOfMemoryError", "WorkerCrashedError")
"""Ray's errors after which the same rows may do elsewhere."""


def map_rows_on_ray(
    function: Callable[[Item], Value],
    items: Iterable[Item],
    address: str,
    folders: Sequence[Path],
    deadline_s: float = 900.0,
    log: Callable[[str], None] = lambda line: None,
) -> Iterator[Result[Item, Value]]:
    """Apply `function` to each item on the cluster at `address`: `auto`, or HOST:PORT of its head; yield results in the
    order they are done. This machine has to be one of its nodes.

    As `workers.map_rows`, an item having `deadline_s` seconds. `folders` are what nodes have to see; to the first one
    they have to write, and it is made where it is missing. `log` is told of losses and of waiting. ValueError where
    there is no Ray or no cluster, and for a node that cannot do the work: then no row is to blame.
    """
    items = iter(items)
    first = list(itertools.islice(items, 1))
    if not first:
        return
    folders[0].mkdir(parents=True, exist_ok=True)
    seen = [folder.absolute() for folder in folders[1:] if folder.is_dir()]
    with connected(address) as ray, tempfile.NamedTemporaryFile(dir=folders[0].absolute(), prefix=".ray-") as sign:
        needed = _Needed(Path(sign.name), seen, code_digest())
        # Streaming: each row comes back when it is done, so a lost node costs no finished row. Never retried by Ray,
        # which would begin again with the first row.
        task = ray.remote(num_cpus=1, max_retries=0, num_returns="streaming")(_work)

        def start(rows: Sequence[Item]) -> Any:
            return task.remote(function, list(rows), deadline_s, needed)

        yield from _Tasks(ray, start, itertools.chain(first, items), deadline_s + SLACK_S, log).results()


@contextlib.contextmanager
def connected(address: str) -> Iterator[ModuleType]:
    """Ray, connected to the cluster at `address`; a connection that this process has already is used and left."""
    try:
        import ray
    except ModuleNotFoundError:
        raise ValueError('VSR1_RAY needs Ray: pip install -c constraints.txt -e ".[ray]"') from None
    if ray.is_initialized():
        yield ray
        return
    try:
        if address != "auto":  # Ray would try for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError) as error:
        hint = "Is it running, with this Python and this Ray, and is this machine one of its nodes (`ray start`)?"
        raise ValueError(f"cannot join the Ray cluster of VSR1_RAY={address}: {error}. {hint}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class _Needed:
    """What a node has to have. sign: a file beside which it can write; code: the digest of this library's files."""

    sign: Path
    folders: Sequence[Path]
    code: str

    def check(self) -> None:
        """ValueError says what is missing."""
        for path in (self.sign, *self.folders):
            if not path.exists():
                place = path.parent if path == self.sign else path
                raise ValueError(f"it does not see {place}, which has to be on storage that all nodes share")
        with tempfile.NamedTemporaryFile(dir=self.sign.parent, prefix=".ray-"):
            pass
        if code_digest() != self.code:
            raise ValueError("it has another version of this project")


def _work(
    function: Callable[[Item], Value], items: list[Item], deadline_s: float, needed: _Needed
) -> Iterator[tuple[Value | None, str | None] | None]:
    """On a node: None for a beginning, None when it can work, then (value, error) of each item in its order."""
    yield None  # from here on it has to speak in time: a dead mount hangs
    needed.check()
    yield None
    for result in map_in_processes(function, items, 1, deadline_s):
        yield result.value, result.error


class _Lost(Exception):
    """A worker died or ran out of memory, or its node died or was cut off."""


@dataclass
class _Rows(Generic[Item]):
    """What is left of a task's rows. num_losses: workers lost at work on them; due: when the task has to have spoken,
    which only one that has begun has to."""

    items: deque[Item]
    num_losses: int = 0
    due: float = math.inf
    is_at_work: bool = False


class _Tasks(Generic[Item, Value]):
    """Rows on their way through a cluster. `start` begins a task, which gives a stream of answers."""

    def __init__(
        self,
        ray: ModuleType,
        start: Callable[[Sequence[Item]], Any],
        items: Iterator[Item],
        patience_s: float,
        log: Callable[[str], None],
    ) -> None:
        self._ray, self._start, self._items, self._patience_s, self._log = ray, start, items, patience_s, log
        self._running: dict[Any, _Rows[Item]] = {}
        self._left: list[_Rows[Item]] = []
        """Rows of lost workers."""
        self._num_idle_losses = 0
        self._num_cpus, self._counted_at = 0, -math.inf
        self._heard_at = time.monotonic()

    def results(self) -> Iterator[Result[Item, Value]]:
        try:
            while self._fill():
                for stream in self._ready():
                    yield from self._hear(stream)
                self._tell_of_waiting()
        finally:
            for stream in self._running:
                self._ray.cancel(stream, force=True)

    def _fill(self) -> bool:
        """Keep the cluster's CPUs, which may come and go, in work. False when all is done."""
        if time.monotonic() - self._counted_at > COUNT_S:
            self._num_cpus = int(self._ray.cluster_resources().get("CPU", 0))
            self._counted_at = time.monotonic()
        while len(self._running) < TASKS_A_CPU * max(1, self._num_cpus):
            rows = self._left.pop() if self._left else _Rows(deque(itertools.islice(self._items, ROWS_A_TASK)))
            if not rows.items:
                break
            self._running[self._start(rows.items)] = rows
        return bool(self._running)

    def _ready(self) -> list[Any]:
        """Streams with an answer, at their end, or overdue; waits until there is one, or CPUs may have come."""
        timeout_s = max(0.0, min(COUNT_S, *(rows.due - time.monotonic() for rows in self._running.values())))
        heard, _ = self._ray.wait(list(self._running), num_returns=1, timeout=timeout_s)
        now = time.monotonic()
        return [stream for stream, rows in self._running.items() if stream in heard or rows.due <= now]

    def _hear(self, stream: Any) -> Iterator[Result[Item, Value]]:
        rows = self._running[stream]
        try:
            answer = self._next(stream)
        except StopIteration:
            del self._running[stream]
            if rows.items:
                yield from self._lose(rows, "a task ended early")
        except _Lost as lost:
            del self._running[stream]
            self._ray.cancel(stream, force=True)
            yield from self._lose(rows, str(lost))
        else:
            self._heard_at = time.monotonic()
            rows.is_at_work = rows.due < math.inf
            rows.due = self._heard_at + self._patience_s
            if answer is not None:
                self._num_idle_losses = 0
                yield Result(rows.items.popleft(), *answer)

    def _next(self, stream: Any) -> Any:
        """What a task says next; StopIteration at its end."""
        if not self._ray.wait([stream], timeout=0)[0]:
            raise _Lost(f"a node said nothing for {self._patience_s:g} s")
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(next(stream))
        except exceptions.RayTaskError as error:
            raise ValueError(f"a node of the Ray cluster cannot do this work: {error.cause}") from error
        except tuple(getattr(exceptions, name) for name in LOSSES) as error:
            raise _Lost(f"a worker was lost ({type(error).__name__})") from error
        except exceptions.RayError as error:
            raise ValueError(f"the Ray cluster cannot do this work: {type(error).__name__}: {error}") from error

    def _lose(self, rows: _Rows[Item], reason: str) -> Iterator[Result[Item, Value]]:
        """Rows that were together when their worker was lost go on alone: which of them is to blame is not known."""
        self._num_idle_losses += not rows.is_at_work
        if self._num_idle_losses == MAX_IDLE_LOSSES:
            raise ValueError(f"the Ray cluster does no work: {reason}, {MAX_IDLE_LOSSES} times in turn")
        num_losses = rows.num_losses + rows.is_at_work
        if num_losses == MAX_LOSSES:
            yield from (Result(item, None, f"{reason}, {MAX_LOSSES} times with this row") for item in rows.items)
        elif rows.items:
            self._log(f"Ray: {reason}; what it had not finished ({len(rows.items)} rows) begins anew")
            self._left += [_Rows(deque([item]), num_losses) for item in rows.items]

    def _tell_of_waiting(self) -> None:
        waits = all(rows.due == math.inf for rows in self._running.values())
        if self._running and waits and time.monotonic() - self._heard_at > QUIET_S:
            self._heard_at = time.monotonic()
            self._log(f"Ray: waits for a free CPU; the cluster has {self._num_cpus} in all")
