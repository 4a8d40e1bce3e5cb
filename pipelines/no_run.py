"""A build in which nothing is due, without a Dagster run: the events of a run that does nothing take longer than to
find that it would do nothing, and stay in the event log for ever.

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
from assets.warehouse import WAREHOUSE
from pipelines.commands import say
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
    tables and views as they are, a check fails, or anything cannot be read or written. The run then says so."""
    workplace: Workplace = (place.defs.resources or {})["workplace"]
    view = workplace.view(place.dataset)
    names = [name for name in view.stages if asset_key(name) in keys]
    execution = dataclasses.replace(workplace.execution(say), run_id=str(uuid.uuid4()))
    try:
        if is_anything_due(view, names, retry_failed) or not _are_known(place, view, names, keys):
            return None
        built = list(build(workplace.view(place.dataset), execution, names, lease=place.lease))
        if asset_key(WAREHOUSE) in keys and view.home is not None:
            refresh(view.home, view.stages)
    except Exception:  # noqa: BLE001  # such as that of polars about a broken table: a step of the run names the asset
        return None
    is_same = not any(asset.num_processed for asset in built)  # files may have changed since they were looked at
    return built if is_same else None


def _are_known(place: Place, view: View, names: Collection[str], keys: Collection[dg.AssetKey]) -> bool:
    """Whether Dagster knows the tables as they are, and views that were written after the last of them: they are not
    where a run was stopped before, be it by a check."""
    found = {name: _materialized(place, name) for name in names}
    records = [record for name, record in found.items() if record is not None and _is_current(record, view, name)]
    if len(records) < len(names):
        return False
    if asset_key(WAREHOUSE) not in keys:
        return True
    views = _materialized(place, WAREHOUSE)
    return views is not None and all(views.storage_id > record.storage_id for record in records)


def _materialized(place: Place, name: str) -> dg.EventLogRecord | None:
    """The last materialisation that Dagster knows of an asset of the dataset."""
    wanted = dg.AssetRecordsFilter(asset_key(name), asset_partitions=[place.dataset])
    records = place.instance.fetch_materializations(wanted, limit=1).records
    return records[0] if records else None


def _is_current(record: dg.EventLogRecord, view: View, name: str) -> bool:
    """Whether a materialisation is of the table and the code as they are."""
    event = record.asset_materialization
    tags: dict[str, Any] = dict(event.tags or {}) if event else {}
    now = {
        DATA_VERSION_TAG: view.table(name).manifest()["data_version"],
        CODE_VERSION_TAG: code_version(view.stages[name]),
    }
    return all(tags.get(tag) == version for tag, version in now.items())
