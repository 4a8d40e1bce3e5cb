"""A pool of local processes for row work, which survives crashes and hangs. `rows.ray_workers` is its cluster version.

A worker is a fresh interpreter and not a fork: torch, BLAS and decoders hold threads and locks, and a fork would copy
these in an arbitrary state. A worker imports neither the caller's main script nor tables, so that it starts in 0.1 s
under any program; what decodes videos takes 0.2 s more.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, Generic, Protocol

from vsr1_core.rows.results import Item, Result, Value, reason_of


def map_rows(
    function: Callable[[Item], Value], items: Iterable[Item], workers: int, deadline_s: float = 900.0
) -> Iterator[Result[Item, Value]]:
    """Apply `function` to each item in `workers` processes and yield the results in the order in which they finish.

    `function` has to be importable by name; items and values have to be picklable. An exception becomes the error of
    its item. So does a crash of the worker (such as a segmentation fault of a decoder) and an item that takes more than
    `deadline_s` seconds; a fresh worker then continues with the next item. With `workers` <= 1 everything runs in this
    process, where crashes and overlong items are not caught.
    """
    if workers <= 1:
        return (_outcome(function, item) for item in items)
    return map_in_processes(function, items, workers, deadline_s)


class Process(Protocol):
    """A process that runs `serve` or `attend`."""

    def kill(self) -> None: ...

    def wait(self) -> int: ...


def interpreter(fileno: int) -> Process:
    """A fresh interpreter, as a worker that is told at the descriptor `fileno` what to do."""
    call = f"serve({fileno}, {os.getpid()})"
    code = f"import sys; sys.path[:] = {sys.path!r}; from vsr1_core.rows.workers import serve; {call}"
    return subprocess.Popen([sys.executable, "-c", code], pass_fds=[fileno], stdin=subprocess.DEVNULL)


def map_in_processes(
    function: Callable[[Item], Value],
    items: Iterable[Item],
    workers: int,
    deadline_s: float,
    start: Callable[[int], Process] = interpreter,
) -> Iterator[Result[Item, Value]]:
    """Like `map_rows`, but always in separate processes, even with `workers=1`. A single worker keeps the items'
    order. start: starts a worker that is told at a descriptor what to do."""
    queue = iter(items)
    busy = [_Worker(function, item, deadline_s, start) for item in itertools.islice(queue, workers)]
    try:
        while busy:
            for worker in _ready(busy):
                result = worker.take()
                following = list(itertools.islice(queue, 1))
                if following and worker.is_alive:
                    worker.give(following[0])
                else:
                    worker.stop()
                    busy.remove(worker)
                    busy.extend(_Worker(function, item, deadline_s, start) for item in following)
                yield result
    finally:
        for worker in busy:
            worker.stop()


def _outcome(function: Callable[[Item], Value], item: Item) -> Result[Item, Value]:
    """Call `function` and turn any exception into the error of this item, so that it stops no other item."""
    try:
        return Result(item, function(item), None)
    except Exception as error:  # noqa: BLE001
        return Result(item, None, reason_of(error))


class _Worker(Generic[Item, Value]):
    """One process, and the item that it is working on."""

    def __init__(
        self, function: Callable[[Item], Value], item: Item, deadline_s: float, start: Callable[[int], Process]
    ) -> None:
        self._deadline_s = deadline_s
        self.connection, theirs = Pipe()
        with theirs:
            self._process = start(theirs.fileno())
        self._send(function)
        self.give(item)

    def _send(self, value: Any) -> None:
        """Send `value` to the worker. If the worker is dead already, `take` notices it."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(value)

    def give(self, item: Item) -> None:
        self._item = item
        self.due = time.monotonic() + self._deadline_s
        self._send(item)

    def take(self) -> Result[Item, Value]:
        """The result that has arrived, or an error result when there is none: the worker died, or it ran out of time
        and is killed here."""
        if not self.connection.poll():
            self.stop()
            return Result(self._item, None, f"took longer than {self._deadline_s:g} s and was stopped")
        try:
            value, error = self.connection.recv()
            return Result(self._item, value, error)
        except (EOFError, ConnectionResetError):
            code = self._process.wait()
            self.connection.close()
            reason = f"signal {-code}" if code < 0 else f"exit code {code}"
            return Result(self._item, None, f"the worker process died ({reason}), probably in a native library")

    @property
    def is_alive(self) -> bool:
        return not self.connection.closed

    def stop(self) -> None:
        self.connection.close()
        self._process.kill()
        self._process.wait()


def _ready(pool: list[_Worker[Item, Value]]) -> list[_Worker[Item, Value]]:
    """Wait for, and return, the workers that have a result, have died, or are past their deadline."""
    timeout_s = max(0.0, min(w.due for w in pool) - time.monotonic())
    heard = wait([w.connection for w in pool], timeout_s)
    now = time.monotonic()
    return [w for w in pool if w.connection in heard or w.due <= now]


def serve(fileno: int, parent: int) -> None:
    """`attend`, in a process that ends with `parent`. Numeric libraries use one thread per worker."""
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    attend(fileno)


def attend(fileno: int) -> None:
    """The main loop of a worker: receive a function, then an item at a time, and send back (value, error), until the
    other side closes the connection."""
    connection = Connection(fileno)
    function = None
    while True:
        try:
            received = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        if function is None:
            function = received
            continue
        result = _outcome(function, received)
        connection.send((result.value, result.error))


def end_with(parent: int) -> None:
    """End this process, whatever it is doing, when its parent process was killed."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
