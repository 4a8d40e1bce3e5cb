"""Automation without a daemon: each tick evaluates the conditions and runs what they ask for, in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.asset_graph_view.asset_graph_view import AssetGraphView
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus

from assets._keys import asset_key
from pipelines.definitions import build_defs
from pipelines.resources import WorkplaceResource
from pipelines.settings import Settings
from pipelines.watching import report_observations
from vsr1_core.stages.base import Stage
from vsr1_core.stages.graph import open_view

Stages = Callable[[], Mapping[str, Stage]]


def workplace_of(stages: Stages) -> type[WorkplaceResource]:
    """A workplace whose graph is another one."""

    class OtherWorkplace(WorkplaceResource):
        def stages(self) -> dict[str, Stage]:
            return dict(stages())

    return OtherWorkplace


class Ticker:
    """One home and one instance."""

    def __init__(self, home: Path, instance: dg.DagsterInstance, stages: Stages) -> None:
        self.home, self.instance, self.stages = home, instance, stages
        self.cursor: str | None = None
        self.told: Any = None
        self.names = {asset_key(name): name for name in stages()}
        self.reload()

    def reload(self) -> None:
        """As the code location does after the code changed. Conditions keep what they remember."""
        workplace = workplace_of(self.stages)(home=str(self.home), device="cpu", workers=1)
        self.defs = build_defs(Settings(self.home, "cpu", 1), self.stages(), {"workplace": workplace})
        self.graph = self.defs.resolve_asset_graph()
        self.sensor = self.defs.resolve_sensor_def("run_what_changed")

    def build(self, dataset: str) -> None:
        """The whole graph, as `vsr1 build` runs it."""
        self.observe(dataset)
        self.run(dataset, self.graph.materializable_asset_keys)

    def observe(self, dataset: str) -> None:
        report_observations(self.instance, open_view(self.home, dataset, dict(self.stages())))

    def run(self, dataset: str, keys: Any) -> dict[str, int]:
        """One run; asset -> rows processed, of those that were made."""
        job = self.defs.resolve_implicit_global_asset_job_def()
        result = job.execute_in_process(
            instance=self.instance, partition_key=dataset, asset_selection=sorted(keys), raise_on_error=False
        )
        events = result.get_asset_materialization_events()
        rows = {self.name_of(e.asset_key): e.materialization.metadata.get("rows/processed") for e in events}
        return {name: value.value if value is not None else 0 for name, value in rows.items()}

    def tick(self) -> dict[str, dict[str, int]]:
        """Dataset -> asset -> rows processed, for all that was asked for and made."""
        ran: dict[str, dict[str, int]] = {}
        for dataset, keys in self.ask().items():
            ran[dataset] = self.run(dataset, keys)
        return ran

    def ask(self) -> dict[str, set[dg.AssetKey]]:
        """Dataset -> assets of the run that the sensor asks for."""
        self.told = self.look()
        self.cursor = self.told.cursor
        asked: dict[str, set[dg.AssetKey]] = {}
        for request in self.told.run_requests or []:
            assert request.partition_key not in asked, "one run per dataset"
            asked[str(request.partition_key)] = set(request.asset_selection or [])
        return asked

    def look(self) -> Any:
        """One tick of the sensor, as the daemon asks for it."""
        with dg.build_sensor_context(self.instance, self.cursor, definitions=self.defs) as context:
            return self.sensor.evaluate_tick(context)

    def settle(self, dataset: str, max_ticks: int = 6) -> list[dict[str, int]]:
        """Tick until nothing more is asked for; what each run made for `dataset`. Nothing else may be asked for."""
        runs = []
        for _ in range(max_ticks):
            ran = self.tick()
            if not ran:
                return runs
            assert set(ran) == {dataset}
            runs.append(ran[dataset])
        raise AssertionError(f"still asking after {max_ticks} ticks: {runs[-1]}")

    def stale(self, dataset: str) -> set[str]:
        """What the UI marks as out of date."""
        view = AssetGraphView.for_test(self.defs, self.instance)
        resolver = CachingStaleStatusResolver(self.instance, view.asset_graph, loading_context=view)
        keys = self.graph.materializable_asset_keys
        return {self.name_of(key) for key in keys if resolver.get_status(key, dataset) == StaleStatus.STALE}

    def name_of(self, key: dg.AssetKey) -> str:
        """The stage's name, or the key of an asset that is no stage."""
        return self.names.get(key, key.to_user_string())
