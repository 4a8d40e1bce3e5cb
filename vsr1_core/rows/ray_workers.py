"""Row work on all nodes of a running Ray cluster, with the contract of `rows.workers.map_rows`.

A task takes a few rows to one CPU of a node and processes them there as `rows.workers` does on one machine: in a
separate process, so that a crash or hang of a decoder costs one row. Files are written to storage that all nodes share;
only rows travel back. No row is lost when a node dies or is cut off: its unfinished rows go to another node.
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

ROWS_PER_TASK = 8
"""Rows per task: few enough to spread a small corpus over the nodes, and enough to be worth the start of a process."""

TASKS_PER_CPU = 2
"""Tasks per CPU: one that runs and one that waits, so that no CPU is idle and an autoscaling cluster sees demand."""

MAX_LOSSES = 3
"""A row is given up after this many workers were lost while they worked on it (for example because it needs more memory
than they have)."""

MAX_IDLE_LOSSES = 20
"""After this many workers were lost before they began to work, without an answer in between, the cluster is considered
broken: no row can be the cause."""

SLACK_S = 60.0
"""A node enforces the deadline of a row itself. A node that is silent for this many seconds beyond it is cut off."""

QUIET_S = 60.0
"""When all tasks have waited for a CPU for this many seconds, a log line says so."""

COUNT_S = 5.0
"""Seconds between two queries for the number of CPUs of the cluster."""

LOSSES = ("LocalRayletDiedError", "NodeDiedError", "ObjectLostError", "OutOfMemoryError", "WorkerCrashedError")
"""Errors of Ray after which the same rows may succeed on another node."""


def map_rows_on_ray(
    function: Callable[[Item], Value],
    items: Iterable[Item],
    address: str,
    folders: Sequence[Path],
    deadline_s: float = 900.0,
    log: Callable[[str], None] = lambda line: None,
) -> Iterator[Result[Item, Value]]:
    """Apply `function` to each item on the Ray cluster at `address` (`auto`, or HOST:PORT of its head node) and yield
    the results in the order in which they finish. This machine has to be a node of the cluster.

    The contract is that of `workers.map_rows`; each item may take `deadline_s` seconds. Nodes have to see all
    `folders`, and have to be able to write to the first one, which is created if it is missing. `log` gets a line for
    each lost worker and when all tasks wait for a CPU. Raises ValueError when Ray or the cluster is missing, and when a
    node cannot do the work at all, so that no row is the cause.
    """
    items = iter(items)
    first = list(itertools.islice(items, 1))
    if not first:
        return
    folders[0].mkdir(parents=True, exist_ok=True)
    seen = [folder.absolute() for folder in folders[1:] if folder.is_dir()]
    with connected(address) as ray, tempfile.NamedTemporaryFile(dir=folders[0].absolute(), prefix=".ray-") as sign:
        needed = _Needed(Path(sign.name), seen, code_digest())
        # Results are streamed: each row comes back when it is done, so that a lost node costs no finished row. Ray must
        # not retry a task, because it would start again with the first row.
        task = ray.remote(num_cpus=1, max_retries=0, num_returns="streaming")(_work)

        def start(rows: Sequence[Item]) -> Any:
            return task.remote(function, list(rows), deadline_s, needed)

        yield from _Tasks(ray, start, itertools.chain(first, items), deadline_s + SLACK_S, log).results()


@contextlib.contextmanager
def connected(address: str) -> Iterator[ModuleType]:
    """Yield Ray, connected to the cluster at `address`. A connection that this process already has is used and stays
    open. Raises ValueError when Ray is not installed or the cluster cannot be joined."""
    try:
        import ray
    except ModuleNotFoundError:
        raise ValueError('VSR1_RAY needs Ray: pip install -c constraints.txt -e ".[ray]"') from None
    if ray.is_initialized():
        yield ray
        return
    try:
        if address != "auto":  # without this check Ray would try to connect for minutes
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
    """What a node needs. sign: a file that the node has to see, in a folder that it has to be able to write to.
    folders: other folders that it has to see. code: the digest of this library's Python files."""

    sign: Path
    folders: Sequence[Path]
    code: str

    def check(self) -> None:
        """Raise ValueError, which says what is missing, when this node does not have everything."""
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
    """Runs on a node. Yields None when the task begins, None when the node can do the work, and then (value, error) for
    each item, in the items' order."""
    yield None  # from here on the node has to answer in time, because the check can hang on a dead mount
    needed.check()
    yield None
    for result in map_in_processes(function, items, 1, deadline_s):
        yield result.value, result.error


class _Lost(Exception):
    """A worker died or ran out of memory, or its node died or was cut off."""


@dataclass
class _Rows(Generic[Item]):
    """The unfinished rows of a task. num_losses: the number of workers that were lost while working on them. due: the
    time by which the task has to answer; infinite before the task has begun."""

    items: deque[Item]
    num_losses: int = 0
    due: float = math.inf
    is_at_work: bool = False


class _Tasks(Generic[Item, Value]):
    """All rows on their way through a cluster. `start` begins a task for some rows and returns its stream of
    answers."""

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
        """Yield the result of every item, and cancel the tasks that still run when the caller stops."""
        try:
            while self._fill():
                for stream in self._ready():
                    yield from self._hear(stream)
                self._tell_of_waiting()
        finally:
            for stream in self._running:
                self._ray.cancel(stream, force=True)

    def _fill(self) -> bool:
        """Start tasks until all CPUs of the cluster, which may come and go, are busy. Returns False when no task is
        running any more."""
        if time.monotonic() - self._counted_at > COUNT_S:
            self._num_cpus = int(self._ray.cluster_resources().get("CPU", 0))
            self._counted_at = time.monotonic()
        while len(self._running) < TASKS_PER_CPU * max(1, self._num_cpus):
            rows = self._left.pop() if self._left else _Rows(deque(itertools.islice(self._items, ROWS_PER_TASK)))
            if not rows.items:
                break
            self._running[self._start(rows.items)] = rows
        return bool(self._running)

    def _ready(self) -> list[Any]:
        """Wait for, and return, the streams that have an answer, have ended or are overdue. Returns after COUNT_S
        seconds at the latest, because the cluster may have more CPUs by then."""
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
        """The next answer of a task. Raises StopIteration at its end, _Lost when its worker was lost, and ValueError
        when the node or the cluster cannot do the work."""
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
        """Queue the rows of a lost worker again, each in a task of its own, because it is not known which of them
        caused the loss."""
        self._num_idle_losses += not rows.is_at_work
        if self._num_idle_losses == MAX_IDLE_LOSSES:
            raise ValueError(f"the Ray cluster does no work: {reason}, {MAX_IDLE_LOSSES} times in a row")
        num_losses = rows.num_losses + rows.is_at_work
        if num_losses == MAX_LOSSES:
            yield from (Result(item, None, f"{reason}, {MAX_LOSSES} times with this row") for item in rows.items)
        elif rows.items:
            self._log(f"Ray: {reason}; its {len(rows.items)} unfinished rows are started again")
            self._left += [_Rows(deque([item]), num_losses) for item in rows.items]

    def _tell_of_waiting(self) -> None:
        waits = all(rows.due == math.inf for rows in self._running.values())
        if self._running and waits and time.monotonic() - self._heard_at > QUIET_S:
            self._heard_at = time.monotonic()
            self._log(f"Ray: all tasks are waiting for a free CPU; the cluster has {self._num_cpus} CPUs in total")
