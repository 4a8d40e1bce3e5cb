"""Work that needs models, on the nodes of a Ray cluster: a few workers open the models once and make shard after shard.

A worker is a Ray actor with one GPU, or with one CPU where models run on CPUs. A shard is a few rows that it makes
together, in batches of its own. Only rows travel. The unfinished rows of a lost worker go to the others in two halves,
so that a row which ends its worker is found after a few losses.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from vsr1_core.rows import ray_shares
from vsr1_core.rows.ray_cluster import Needed, joined
from vsr1_core.rows.ray_shares import ALIVE, Shares, WorkerIsBroken
from vsr1_core.rows.results import Item, Result

DEADLINE_S = 3600.0
"""Seconds within which a worker has to finish one row more of its shard, or to open its models. A worker that takes
longer is stopped. As its rows go on in halves, hardware that is too slow for a whole shard still makes them."""

ALIVE_EVERY_S = 5.0
"""A worker says that it is alive after so many seconds without a finished row."""

BROKEN = ("AcceleratorError",)
"""Names of errors of torch after which a process can use its GPU no more."""

Answer = str | list[tuple[int, Any, str | None]]
MakeShard = Callable[[list[Any]], Iterator[str | tuple[int, Any, str | None]]]
"""Makes the items of a shard: yields READY when everything that they share is open, then (position in the list, value,
error) for each, in any order."""


@dataclass(frozen=True)
class ModelWorkers:
    """How many workers there are at most (the cluster may have room for fewer), whether each takes a GPU, and how many
    items a shard has at most."""

    count: int
    on_gpu: bool
    shard_size: int


def map_shards_on_ray(
    open_models: Callable[[], MakeShard],
    items: Iterable[Item],
    address: str,
    folders: Sequence[Path],
    workers: ModelWorkers,
    deadline_s: float = DEADLINE_S,
    log: Callable[[str], None] = lambda line: None,
) -> Iterator[Result[Item, Any]]:
    """Make all items by what `open_models`, called once in each worker, returns, and yield the results in the order in
    which they arrive. `open_models`, items and values have to be picklable.

    address: of the cluster, or `ray_cluster.THIS_MACHINE`. Nodes have to see all `folders`, and have to be able to
    write to the first one. deadline_s: the most seconds between two finished rows of a worker. `log` gets a line for
    each lost worker and when all wait for room. Raises ValueError when Ray or the cluster is missing, and when a worker
    cannot do the work at all, so that no row is the cause.
    """
    with joined(address, folders) as (ray, needed):

        def call(actor: Any, rows: list[Item]) -> Any:
            # One answer at a time: the next one is not made before this one was heard.
            work = actor.work.options(num_returns="streaming", _generator_backpressure_num_objects=1)
            return work.remote(open_models, rows, deadline_s, needed)

        actors = _Actors(ray, call, workers)
        try:
            yield from Shares[Item, Any](ray, actors, iter(items), ray_shares.SLACK_S, log).results()
        finally:
            actors.close()


class _Actors:
    """The workers. `call` gives a shard to one of them and returns its stream of answers."""

    def __init__(self, ray: ModuleType, call: Callable[[Any, list[Any]], Any], workers: ModelWorkers) -> None:
        self.waits_for, self.share_size = "GPU" if workers.on_gpu else "CPU", workers.shard_size
        # Ray must not start an actor again by itself: only `Shares` knows which rows are left.
        self._kind = ray.remote(num_cpus=1, num_gpus=int(workers.on_gpu), max_restarts=0, max_task_retries=0)(
            ModelWorker
        )
        self._ray, self._call, self._count = ray, call, workers.count
        self._busy: dict[Any, Any] = {}
        self._idle: list[Any] = []

    def room(self, total: int) -> int:
        return min(self._count, max(1, total))

    def start(self, items: list[Any]) -> tuple[Any, bool]:
        is_running = bool(self._idle)
        actor = self._idle.pop() if is_running else self._kind.remote()
        stream = self._call(actor, items)
        self._busy[stream] = actor
        return stream, is_running

    def has_idle(self) -> bool:
        return bool(self._idle)

    def ended(self, stream: Any) -> None:
        self._idle.append(self._busy.pop(stream))

    def lost(self, stream: Any) -> None:
        self._ray.kill(self._busy.pop(stream), no_restart=True)

    def parts(self, items: list[Any]) -> Sequence[list[Any]]:
        half = len(items) // 2
        return [part for part in (items[half:], items[:half]) if part]

    def close(self) -> None:
        for actor in (*self._busy.values(), *self._idle):
            self._ray.kill(actor, no_restart=True)


class ModelWorker:
    """One worker, in a process of its own on a node. It opens the models for its first shard and keeps them."""

    def __init__(self) -> None:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: see the command line's settings
        self._make: MakeShard | None = None

    def work(
        self, open_models: Callable[[], MakeShard], items: list[Any], deadline_s: float, needed: Needed
    ) -> Iterator[Answer]:
        """The answers of `ray_shares` about `items`."""
        yield ALIVE
        answers = self._answers(open_models, items, needed)
        yield from with_signs_of_life(itertools.islice(answers, 1), deadline_s)
        # This goes on only when the driver has heard READY: a row may end the process at once.
        yield from with_signs_of_life(answers, deadline_s)

    def _answers(self, open_models: Callable[[], MakeShard], items: list[Any], needed: Needed) -> Iterator[Answer]:
        try:
            if self._make is None:
                needed.check()
                self._make = open_models()
            for made in self._make(items):
                yield made if isinstance(made, str) else [made]
        except Exception as error:
            if type(error).__name__ in BROKEN:
                raise WorkerIsBroken(f"a worker's GPU failed ({type(error).__name__})") from error
            raise


def with_signs_of_life(answers: Iterator[Answer], deadline_s: float) -> Iterator[Answer]:
    """The answers, which are made in another thread, with ALIVE where there is none for ALIVE_EVERY_S seconds. Results
    that wait together are one answer. Raises what the answers raise, and WorkerIsBroken after `deadline_s` seconds
    without one."""
    made: queue.SimpleQueue[Answer | BaseException | None] = queue.SimpleQueue()
    threading.Thread(target=_fill, args=(answers, made), daemon=True).start()
    due = time.monotonic() + deadline_s
    while True:
        found = _arrived(made)
        if found:
            due = time.monotonic() + deadline_s
        elif time.monotonic() > due:
            raise WorkerIsBroken(f"a worker finished no row within {deadline_s:g} s")
        yield from (answer for answer in found or [ALIVE] if isinstance(answer, str))
        if results := [result for answer in found if isinstance(answer, list) for result in answer]:
            yield results
        if found and found[-1] is None:
            return
        if found and isinstance(found[-1], BaseException):
            raise found[-1]


def _arrived(made: queue.SimpleQueue[Answer | BaseException | None]) -> list[Answer | BaseException | None]:
    """Everything that waits in `made`; empty where nothing arrives within ALIVE_EVERY_S seconds."""
    try:
        found = [made.get(timeout=ALIVE_EVERY_S)]
        while not made.empty():
            found.append(made.get())
    except queue.Empty:
        return []
    return found


def _fill(answers: Iterator[Answer], made: queue.SimpleQueue[Answer | BaseException | None]) -> None:
    try:
        for answer in answers:
            made.put(answer)
        made.put(None)
    except BaseException as error:  # noqa: BLE001  # raised again by the thread that reads
        made.put(error)
