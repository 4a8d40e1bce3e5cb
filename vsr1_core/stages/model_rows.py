"""The base class of stages whose rows are what a model says: in this process, in forks of a process of the build, or by
model workers on a Ray cluster.

`rows.ray_actors` has the workers. Trainings are no such rows; `stages.launch` runs them in several processes.
"""

from __future__ import annotations

import dataclasses
import functools
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.recipes import Configuration
from vsr1_core.rows.boundary import parts, results_in_halves
from vsr1_core.rows.forks import Forks, can_fork
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.progress import Log
from vsr1_core.rows.ray_actors import MakeShard, ModelWorkers, map_shards_on_ray
from vsr1_core.rows.ray_cluster import THIS_MACHINE
from vsr1_core.rows.ray_shares import READY
from vsr1_core.rows.results import Result
from vsr1_core.rows.workers import map_in_processes
from vsr1_core.stages.base import Row, Stage, View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import all_stages
from vsr1_core.stages.launch import threads_of
from vsr1_core.stages.loading import one_row
from vsr1_core.stages.opened import OpenedModels

SHARDS_PER_WORKER = 4
"""At least so many shards for each worker, so that they end at about the same time; a shard never has more rows than
one pass of decoding."""


FEWEST_ROWS = 64
"""A fork is worth its while where it makes so many rows: it opens the models for about a second."""
MOST_ROWS = 256
"""A share of a fork has no more rows, so that a killed build keeps what was made."""
SMALL_BYTES = 1 << 28
"""So many bytes of weights are small: their passes gain little from threads, and each fork has a copy of them."""
DEADLINE_S = 3600.0
"""Seconds that a share may take in a fork."""


class ModelRows(Stage):
    """A stage whose rows are made by running models.

    A row whose work raises is a failed row with that reason: rows that were made together with it are made again
    without it. This boundary is here and not around `make`, so that models stay open while rows are halved.
    """

    stops_at_errors = True
    models: tuple[tuple[str, str], ...] = ()
    """(asset, row id) of each model that makes the rows. Where they are small and run on the CPU, as many forks make
    the rows as train one model. Empty: this process makes them, because trainings read these rows, and which rows are
    in a batch decides rounding."""

    def open(self, opened: OpenedModels, rows: Mapping[str, Row]) -> None:
        """Open what the rows share, such as models. An error here stops the build, because no row is the cause."""

    @abstractmethod
    def make_with(self, opened: OpenedModels, rows: Mapping[str, Row]) -> Iterator[dict[str, Any]]:
        """`make`, with the models and settings of `opened`. What raises here concerns the rows that are missing yet."""

    def results(self, opened: OpenedModels, rows: Mapping[str, Row]) -> Iterator[Result[str, dict[str, Any]]]:
        """The finished rows by their ids, and the reason of each row that cannot be made."""
        self.open(opened, rows)
        make = lambda some: ((row[self.key], row) for row in self.make_with(opened, some))  # noqa: E731
        return results_in_halves(make, rows)

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        for result in self._results(view, rows, run):
            row = result.value or {**rows[result.item].known, "error": result.error}
            yield {self.key: result.item, **row}

    def _results(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[Result[str, dict[str, Any]]]:
        if run.model_workers:
            return self._by_workers(view, rows, run)
        forks = self._num_forks(view, len(rows), run)
        if run.forks is not None and forks > 1:
            return self._in_forks(view, rows, run, run.forks, forks)
        return self.results(OpenedModels(view, run), rows)

    def _num_forks(self, view: View, num_rows: int, run: Execution) -> int:
        """How many forks make so many rows; fewer than 2: none does."""
        if not self.models or not can_fork(run.device) or run.text_writer != "in-process":
            return 0
        forks = min(run.processes, num_rows // FEWEST_ROWS)
        return forks if forks > 1 and sum(weight_bytes(view, *model) for model in self.models) <= SMALL_BYTES else 0

    def _in_forks(
        self, view: View, rows: Mapping[str, Row], run: Execution, forks: Forks, count: int
    ) -> Iterator[Result[str, dict[str, Any]]]:
        """The rows of a share with which a fork ends, or cannot go on, are made in this process."""
        rounds = -(-len(rows) // (count * MOST_ROWS))
        shares = (list(some.items()) for some in parts(rows, -(-len(rows) // (count * rounds))))
        make = _Share(self._work(view, run), threads_of(count))
        start = lambda fileno: forks.start("vsr1_core.rows.workers:attend", [], [fileno])  # noqa: E731
        for share in map_in_processes(make, shares, count, DEADLINE_S, start):
            if share.value is None:
                run.log(f"{self.name}: {share.error}; its {len(share.item)} rows are made without a fork")
            yield from share.value or self.results(OpenedModels(view, run), dict(share.item))

    def _work(self, view: View, run: Execution) -> ShardWork:
        return ShardWork(self.name, view.lake, view.entry, view.config, view.home, _on_a_worker(run))

    def _by_workers(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[Result[str, dict[str, Any]]]:
        even = -(-len(rows) // (SHARDS_PER_WORKER * run.model_workers))
        workers = ModelWorkers(run.model_workers, run.device != "cpu", min(even, run.batch_size * 2))
        work = self._work(view, run)
        address = run.ray or THIS_MACHINE
        for result in map_shards_on_ray(work.open, rows.items(), address, view.folders, workers, log=run.log):
            yield Result(result.item[0], result.value, result.error)


def _on_a_worker(run: Execution) -> Execution:
    """The settings of one of several workers: its GPU is the only one that it sees, and requests to an endpoint are
    divided among them."""
    endpoint = run.endpoint
    if endpoint is not None and run.model_workers:
        endpoint = dataclasses.replace(endpoint, concurrency=max(1, endpoint.concurrency // run.model_workers))
    device = run.device.partition(":")[0]
    return dataclasses.replace(run, device=device, endpoint=endpoint, model_workers=0, ray="", forks=None, log=Log())


def weight_bytes(view: View, asset: str, row_id: str) -> int:
    """The size of the weights that a row of `asset` points to."""
    return sum(path.stat().st_size for path in Path(one_row(view, asset, row_id)["path"]).glob("*.safetensors"))


@dataclass(frozen=True)
class ShardWork:
    """What a worker needs to make rows of the stage `asset`, besides the rows: which tables there are, and how work
    runs. The configuration travels along, as the rows were planned with it."""

    asset: str
    lake: Lake
    entry: DatasetEntry
    config: Configuration
    home: Path | None
    run: Execution

    def open(self) -> MakeShard:
        """Runs once in each worker."""
        stage, opened = self.opened()
        return lambda items: _made(stage, opened, dict(items))

    def opened(self) -> tuple[ModelRows, OpenedModels]:
        view = View(self.lake, self.entry, self.config, all_stages(), home=self.home)
        return cast(ModelRows, view.stages[self.asset]), OpenedModels(view, self.run)


@dataclass
class _Share:
    """What a fork does with the rows of a share. It keeps the models for the next one."""

    work: ShardWork
    threads: int

    def __call__(self, items: list[tuple[str, Row]]) -> list[Result[str, dict[str, Any]]]:
        stage, models = self._opened
        return list(stage.results(models, dict(items)))

    @functools.cached_property
    def _opened(self) -> tuple[ModelRows, OpenedModels]:
        import torch

        torch.set_num_threads(self.threads)
        return self.work.opened()


def _made(
    stage: ModelRows, opened: OpenedModels, rows: Mapping[str, Row]
) -> Iterator[str | tuple[int, dict[str, Any] | None, str | None]]:
    positions = {row_id: position for position, row_id in enumerate(rows)}
    results = stage.results(opened, rows)
    yield READY
    for result in results:
        yield positions[result.item], result.value, result.error
