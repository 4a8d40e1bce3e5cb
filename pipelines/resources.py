"""Dagster's resource `workplace`, through which assets get the settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import PrivateAttr

from pipelines.settings import Settings, execution_of
from vsr1_core.datasets.registry import get_entry
from vsr1_core.rows.forks import Forks
from vsr1_core.stages.base import Stage, View
from vsr1_core.stages.execution import Execution, Precision, TextWriterName
from vsr1_core.stages.graph import all_stages, open_view
from vsr1_core.stages.launch import forks


class WorkplaceResource(dg.ConfigurableResource):  # type: ignore[misc]
    """Gives asset bodies the tables of a dataset and the settings with which work runs. None of them changes a result.

    The teacher's endpoint is read from the environment when it is needed: Dagster stores the configuration of a
    resource, and an API key must not be stored.
    """

    home: str
    device: str = "auto"
    workers: int = 1
    ray: str = ""
    model_workers: int = 0
    batch_size: int = 32
    cache_gb: float = 20.0
    processes: int = 0
    micro_batch_size: int = 0
    precision: Precision = "auto"
    text_writer: TextWriterName = "in-process"
    rollout_writer: TextWriterName = "in-process"
    save_steps: int = 50
    max_removed: float = 0.1
    trackers: list[str] = []
    video_limits: str = ""
    _forks: Forks = PrivateAttr(default_factory=forks)

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """End the process that those of trainings were forked from, with the run."""
        self._forks.close()

    def stages(self) -> dict[str, Stage]:
        return all_stages()

    def view(self, dataset: str) -> View:
        return open_view(Path(self.home), dataset, self.stages())

    def execution(self, log: Callable[[str], Any]) -> Execution:
        names = [field.name for field in dataclasses.fields(Settings)]
        values = {name: getattr(self, name) for name in names}
        settings = Settings(**{**values, "home": Path(self.home), "trackers": tuple(self.trackers)})
        execution = execution_of(settings, log)
        return dataclasses.replace(execution, batch_size=self.batch_size, forks=self._forks)


def workplace(settings: Settings) -> WorkplaceResource:
    """The resource for these settings, after checking that the datasets' registry can be read."""
    get_entry(settings.home, "toy")
    fields = dataclasses.asdict(settings)
    return WorkplaceResource(**{**fields, "home": str(settings.home), "trackers": list(settings.trackers)})
