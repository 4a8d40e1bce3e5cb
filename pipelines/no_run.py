"""A build in which nothing is due, without a Dagster run: the events of a run that does nothing take ten times as long
as to find that it would do nothing, and stay in the event log for ever.

Each stage is built all the same, which makes no row then, but finishes or repairs what lies beside its rows, and is
checked.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import CODE_VERSION_TAG, DATA_VERSION_TAG

from assets._factory import code_version
from assets._keys import Workplace, asset_key
from pipelines.commands import say
from pipelines.planner import UNUSABLE
from vsr1_core.home.building import BuiltAsset, build
from vsr1_core.home.warehouse import refresh
from vsr1_core.stages.base import View
from vsr1_core.stages.graph import is_anything_due


@dataclass(frozen=True)
class Place:
    """Where a dataset is built. lease: the run whose lease of the dataset this process holds."""

    defs: dg.Definitions
    instance: dg.DagsterInstance
    dataset: str
    lease: str


def build_without_run(place: Place, keys: Collection[dg.AssetKey], retry_failed: bool) -> list[BuiltAsset] | None:
    """What was built, without any row; None where a run has to be started: something is due, Dagster does not know the
    tables as they are, a check fails, or a file cannot be read. The run then says so."""
    workplace: Workplace = (place.defs.resources or {})["workplace"]
    view = workplace.view(place.dataset)
    names = [name for name in view.stages if asset_key(name) in keys]
    execution = dataclasses.replace(workplace.execution(say), run_id=str(uuid.uuid4()))
    try:
        if is_anything_due(view, names, retry_failed) or not all(_is_known(place, view, name) for name in names):
            return None
        built = list(build(workplace.view(place.dataset), execution, names, lease=place.lease))
    except UNUSABLE:
        return None
    if asset_key("warehouse") in keys and view.home is not None:
        refresh(view.home, view.stages)
    return built


def _is_known(place: Place, view: View, name: str) -> bool:
    """Whether the last materialisation that Dagster knows is of the table and the code as they are."""
    wanted = dg.AssetRecordsFilter(asset_key(name), asset_partitions=[place.dataset])
    records = place.instance.fetch_materializations(wanted, limit=1).records
    event = records[0].asset_materialization if records else None
    tags: dict[str, Any] = dict(event.tags or {}) if event else {}
    now = {
        DATA_VERSION_TAG: view.table(name).manifest()["data_version"],
        CODE_VERSION_TAG: code_version(view.stages[name]),
    }
    return all(tags.get(tag) == version for tag, version in now.items())
