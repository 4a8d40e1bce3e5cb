"""Reports changed files to Dagster: what each source reads on disk is versioned by content, as an observation. Reports
also which assets are behind, and why, as observations of these. (It would be a check of each, but of a check that is
partitioned Dagster 1.13 stores only one result outside of runs.)

`pipelines.automation` decides what happens then. A sensor tick costs a listing of the files; a file is read only if
its size or time has changed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from assets._keys import asset_key
from pipelines.instance import assign_free_places
from pipelines.planner import UNUSABLE, Planner, is_built
from vsr1_core.datasets.registry import load_entries
from vsr1_core.rows.lease import is_held
from vsr1_core.stages.base import View
from vsr1_core.stages.graph import open_view, stamp

SECONDS_BETWEEN_TICKS = 30


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


def watching_sensor(planner: Planner) -> dg.SensorDefinition:
    """A sensor that observes the files of every dataset that was built before, and says which assets are behind. It is
    off until it is turned on in the UI."""

    @dg.sensor(
        name="watch_files",
        description="Reports changed annotation files and videos of each dataset, and which assets are behind.",
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        default_status=dg.DefaultSensorStatus.STOPPED,
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        assign_free_places(context.instance)
        kept = json.loads(context.cursor or "{}")
        seen = {name: Seen(**of) for name, of in kept.items() if isinstance(of, dict)}  # once a stamp
        events = list[dg.AssetObservation]()
        for dataset in load_entries(planner.home):
            try:
                found, now = _look(context, planner, dataset, seen.get(dataset, Seen()))
            except UNUSABLE as error:
                context.log.warning(f"the files of {dataset} cannot be watched: {error}")
            else:
                events += found
                seen[dataset] = now
        cursor = json.dumps({name: dataclasses.asdict(kept) for name, kept in seen.items()})
        return dg.SensorResult(asset_events=events, cursor=cursor)

    return sensor


@dataclass(frozen=True)
class Seen:
    """What was last reported of a dataset: its stamp, the stamp for which it was planned, and what was behind."""

    stamp: str = ""
    planned: str = ""
    behind: Mapping[str, str] = field(default_factory=dict)


def _look(
    context: dg.SensorEvaluationContext, planner: Planner, dataset: str, before: Seen
) -> tuple[list[dg.AssetObservation], Seen]:
    """The events to report, and what has then been reported."""
    view = open_view(planner.home, dataset, planner.stages)
    now = stamp(view) if is_built(view) else ""
    observed = [] if now == before.stamp else new_observations(context.instance, view)
    if now == before.planned or is_held(view.lake.lease_folder(dataset)):  # while it is built, each tick would plan it
        return observed, dataclasses.replace(before, stamp=now)
    behind = dict(planner.outlook(dataset, context.log).behind)
    changed = [name for name in planner.stages if behind.get(name) != before.behind.get(name)]
    return [*observed, *(up_to_date(dataset, name, behind.get(name, "")) for name in changed)], Seen(now, now, behind)


def up_to_date(dataset: str, asset: str, why_not: str) -> dg.AssetObservation:
    """Says in the UI that an asset is behind, and why, or that it no longer is."""
    metadata: dict[str, Any] = {"is up to date": not why_not, "due": why_not or "nothing"}
    return dg.AssetObservation(asset_key(asset), partition=dataset, metadata=metadata)
