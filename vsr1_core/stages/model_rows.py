"""The base class of stages whose rows are what a model says, in this process or by model workers on a Ray cluster.

`rows.ray_actors` has the workers. Trainings are no such rows; `stages.launch` runs them in several processes.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.recipes import Configuration
from vsr1_core.rows.boundary import Result, results_in_halves
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.progress import Log
from vsr1_core.rows.ray_actors import MakeShard, ModelWorkers, map_shards_on_ray
from vsr1_core.rows.ray_cluster import THIS_MACHINE
from vsr1_core.rows.ray_shares import READY
from vsr1_core.stages.base import Row, Stage, View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import all_stages
from vsr1_core.stages.opened import OpenedModels

SHARDS_PER_WORKER = 4
"""At least so many shards for each worker, so that they end at about the same time; a shard never has more rows than
one pass of decoding."""


class ModelRows(Stage):
    """A stage whose rows are made by running models.

    A row whose work raises is a failed row with that reason: rows that were made together with it are made again
    without it. This boundary is here and not around `make`, so that models stay open while rows are halved.
    """

    stops_at_errors = True

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
        results = (
            self._by_workers(view, rows, run) if run.model_workers else self.results(OpenedModels(view, run), rows)
        )
        for result in results:
            row = result.value or {**rows[result.item].known, "error": result.error}
            yield {self.key: result.item, **row}

    def _by_workers(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[Result[str, dict[str, Any]]]:
        even = -(-len(rows) // (SHARDS_PER_WORKER * run.model_workers))
        workers = ModelWorkers(run.model_workers, run.device != "cpu", min(even, run.batch_size * 2))
        work = ShardWork(self.name, view.lake, view.entry, view.config, view.home, _on_a_worker(run))
        address = run.ray or THIS_MACHINE
        for result in map_shards_on_ray(work.open, rows.items(), address, view.folders, workers, log=run.log):
            yield Result(result.item[0], result.value, result.error)


def _on_a_worker(run: Execution) -> Execution:
    """The settings of one of several workers: its GPU is the only one that it sees, and requests to an endpoint are
    divided among them."""
    endpoint = run.endpoint
    if endpoint is not None:
        endpoint = dataclasses.replace(endpoint, concurrency=max(1, endpoint.concurrency // run.model_workers))
    device = run.device.partition(":")[0]
    return dataclasses.replace(run, device=device, endpoint=endpoint, model_workers=0, ray="", log=Log())


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
        view = View(self.lake, self.entry, self.config, all_stages(), home=self.home)
        stage, opened = cast(ModelRows, view.stages[self.asset]), OpenedModels(view, self.run)
        return lambda items: _made(stage, opened, dict(items))


def _made(
    stage: ModelRows, opened: OpenedModels, rows: Mapping[str, Row]
) -> Iterator[str | tuple[int, dict[str, Any] | None, str | None]]:
    positions = {row_id: position for position, row_id in enumerate(rows)}
    results = stage.results(opened, rows)
    yield READY
    for result in results:
        yield positions[result.item], result.value, result.error
