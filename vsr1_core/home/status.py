"""What a build would do, and what is built, as frames with one row per asset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl

from vsr1_core.rows.increments import STATES
from vsr1_core.rows.table import Table
from vsr1_core.stages.base import View
from vsr1_core.stages.graph import StagePlan, stages_of

PLAN_COLUMNS: dict[str, Any] = {
    "asset": pl.String,
    **dict.fromkeys(STATES, pl.Int64),
    "waits_for": pl.String,
    "why": pl.String,
}
STATUS_COLUMNS: dict[str, Any] = {
    "asset": pl.String,
    "rows": pl.Int64,
    "failed": pl.Int64,
    "data_version": pl.String,
    "changed_at": pl.Datetime("us", "UTC"),
}


def plan_frame(plans: Iterable[StagePlan]) -> pl.DataFrame:
    """One row per asset: how many rows are new, stale and so on, and why. Counts that are not yet known are null."""
    return pl.DataFrame([_plan_row(plan) for plan in plans], schema=PLAN_COLUMNS)


def _plan_row(item: StagePlan) -> dict[str, Any]:
    if item.plan is None:
        return {"asset": item.asset, "waits_for": item.waits_for}
    return {"asset": item.asset, **item.plan.counts(), "why": causes(item)}


def causes(item: StagePlan) -> str:
    """Each cause with its number of rows, as text; empty where no row has to be made or the plan is unknown."""
    if item.plan is None:
        return ""
    why = [f"{cause} ({number:,})" for cause, number in item.plan.why().items()]
    return "; ".join([*why, *([f"kept as imported ({item.num_imported:,})"] if item.num_imported else [])])


@dataclass(frozen=True)
class PlanSummary:
    """What a build would do. num_rows: rows to make. num_dropped: rows to drop. assets: asset -> rows to make or drop.
    later: assets whose rows are known only after others have run."""

    num_rows: int
    num_dropped: int
    assets: Mapping[str, int]
    later: list[str]

    @property
    def says(self) -> str:
        """One sentence for people."""
        if not self.assets and not self.later:
            return "Nothing is left to build."
        rows = "1 row" if self.num_rows == 1 else f"{self.num_rows:,} rows"
        assets = "1 asset" if len(self.assets) == 1 else f"{len(self.assets):,} assets"
        dropped = f", and drops {self.num_dropped:,}" if self.num_dropped else ""
        later = f"; what {len(self.later):,} more assets need is known on the way" if self.later else ""
        return f"A build makes {rows} of {assets}{dropped}{later}."


def summary_of(plans: Iterable[StagePlan]) -> PlanSummary:
    """Count what a plan would make."""
    assets, later, num_rows, num_dropped = dict[str, int](), list[str](), 0, 0
    for one in plans:
        if one.plan is None:
            later.append(one.asset)
            continue
        due, dropped = len(one.plan.due()), len(one.plan.orphaned)
        num_rows, num_dropped = num_rows + due, num_dropped + dropped
        if due or dropped:
            assets[one.asset] = due + dropped
    return PlanSummary(num_rows, num_dropped, assets, later)


def status_frame(view: View) -> pl.DataFrame:
    """One row per asset: rows, failures, data version and time of its last commit; null where it is not built."""
    return pl.DataFrame([_status_row(name, view.table(name)) for name in stages_of(view)], schema=STATUS_COLUMNS)


def _status_row(name: str, table: Table) -> dict[str, Any]:
    if not table.manifest_path.exists():
        return {"asset": name}
    manifest = table.manifest()
    changed_at = datetime.fromtimestamp(table.manifest_path.stat().st_mtime, UTC)
    facts = {"rows": manifest["num_rows"], "failed": manifest["num_failed"], "data_version": manifest["data_version"]}
    return {"asset": name, **facts, "changed_at": changed_at}
