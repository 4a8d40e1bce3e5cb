"""Reports changed files to Dagster: what each source reads on disk is versioned by content, as an observation.

`pipelines.automation` decides what happens then. A sensor tick costs a listing of the files; a file is read only if
its size or time has changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import dagster as dg

from pipelines.instance import assign_free_places
from vsr1_core.datasets.registry import load_entries
from vsr1_core.stages.base import Stage, View
from vsr1_core.stages.graph import open_view, stamp

SECONDS_BETWEEN_TICKS = 30
UNUSABLE = (OSError, ValueError, LookupError)
"""Errors about the files or the entry of a dataset. Those of one dataset must not stop the others."""


def is_built(view: View) -> bool:
    """Whether the dataset was ever built. A first build is left to `vsr1 build`, because it may train for hours."""
    return any(view.table(name).exists() for name, stage in view.stages.items() if stage.watches)


def observations(view: View) -> Iterator[dg.AssetObservation]:
    """The current version of everything that the dataset reads on disk."""
    for stage in view.stages.values():
        if stage.watches and (version := stage.observe(view)):
            yield dg.AssetObservation(
                dg.AssetKey(stage.watches),
                partition=view.entry.name,
                tags={"dagster/data_version": version},
            )


def report_observations(instance: dg.DagsterInstance, view: View) -> None:
    """Tell Dagster what a build reads, so that the tables of the build do not count as out of date afterwards."""
    for observation in new_observations(instance, view):
        instance.report_runless_asset_event(observation)


def new_observations(instance: dg.DagsterInstance, view: View) -> list[dg.AssetObservation]:
    """The observations that differ from the last ones that were reported."""
    return [o for o in observations(view) if o.tags["dagster/data_version"] != _last_observed(instance, o)]


def _last_observed(instance: dg.DagsterInstance, observation: dg.AssetObservation) -> str | None:
    wanted = dg.AssetRecordsFilter(observation.asset_key, asset_partitions=[observation.partition or ""])
    records = instance.fetch_observations(wanted, limit=1).records
    last = records[0].event_log_entry.asset_observation if records else None
    return last.tags.get("dagster/data_version") if last else None


def watching_sensor(home: Path, stages: Mapping[str, Stage]) -> dg.SensorDefinition:
    """A sensor that observes the files of every dataset that was built before. It is off until it is turned on in the
    UI."""

    @dg.sensor(
        name="watch_files",
        description="Reports changed annotation files and videos of each dataset.",
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        default_status=dg.DefaultSensorStatus.STOPPED,
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        assign_free_places(context.instance)
        seen: dict[str, str] = json.loads(context.cursor or "{}")
        changed: list[dg.AssetObservation] = []
        for dataset in load_entries(home):
            try:
                view = open_view(home, dataset, dict(stages))
                now = stamp(view) if is_built(view) else ""
                if now != seen.get(dataset, ""):
                    changed += new_observations(context.instance, view)
                    seen[dataset] = now
            except UNUSABLE as error:
                context.log.warning(f"the files of {dataset} cannot be watched: {error}")
        return dg.SensorResult(asset_events=changed, cursor=json.dumps(seen))

    return sensor
