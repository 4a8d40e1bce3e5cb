"""Row work on all nodes of a running Ray cluster, with the contract of `rows.workers.map_rows`.

A task takes a few rows to one CPU of a node and processes them there as `rows.workers` does on one machine: in a
separate process, so that a crash or hang of a decoder costs one row. Files are written to storage that all nodes share;
only rows travel back. No row is lost when a node dies or is cut off: its unfinished rows go to another node.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from vsr1_core.rows import ray_shares
from vsr1_core.rows.ray_cluster import Needed, joined
from vsr1_core.rows.ray_shares import ALIVE, READY, Shares
from vsr1_core.rows.results import Item, Result, Value
from vsr1_core.rows.workers import map_in_processes

ROWS_PER_TASK = 8
"""Rows per task: few enough to spread a small corpus over the nodes, and enough to be worth the start of a process."""

TASKS_PER_CPU = 2
"""Tasks per CPU: one that runs and one that waits, so that no CPU is idle and an autoscaling cluster sees demand."""


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
    with joined(address, folders) as (ray, needed):
        tasks = _Tasks(ray, lambda task, rows: task.remote(function, rows, deadline_s, needed))
        patience_s = deadline_s + ray_shares.SLACK_S
        yield from Shares[Item, Value](ray, tasks, itertools.chain(first, items), patience_s, log).results()


class _Tasks:
    """Tasks on the CPUs of the nodes, each with a few rows. `call` gives rows to the remote function and returns its
    stream of answers."""

    waits_for = "CPU"
    share_size = ROWS_PER_TASK

    def __init__(self, ray: ModuleType, call: Callable[[Any, list[Any]], Any]) -> None:
        # Ray must not retry a task, because it would start again with the first row.
        self._task = ray.remote(num_cpus=1, max_retries=0, num_returns="streaming")(_work)
        self._ray, self._call = ray, call

    def room(self, total: int) -> int:
        return TASKS_PER_CPU * max(1, total)

    def start(self, items: list[Any]) -> tuple[Any, bool]:
        return self._call(self._task, items), False

    def has_idle(self) -> bool:
        return False

    def ended(self, stream: Any) -> None: ...

    def lost(self, stream: Any) -> None:
        self._ray.cancel(stream, force=True)

    def parts(self, items: list[Any]) -> Sequence[list[Any]]:
        return [[item] for item in items]


def _work(
    function: Callable[[Item], Value], items: list[Item], deadline_s: float, needed: Needed
) -> Iterator[str | list[tuple[int, Value | None, str | None]]]:
    """Runs on a node: the answers of `ray_shares`, with the results in the items' order."""
    yield ALIVE  # from here on the node has to answer in time, because the check can hang on a dead mount
    needed.check()
    yield READY
    for position, result in enumerate(map_in_processes(function, items, 1, deadline_s)):
        yield [(position, result.value, result.error)]
