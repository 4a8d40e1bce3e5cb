"""The DuckDB file with a view over every table of every dataset. The views are made in `vsr1_core.home.warehouse`."""

# No `from __future__ import annotations` here: Dagster reads the annotation of `context` as a class.

from collections.abc import Mapping
from pathlib import Path

import dagster as dg

from assets._factory import OWNERS, asset_key
from vsr1_core.stages.base import Stage


def warehouse_asset(
    stages: Mapping[str, Stage],
    home: Path,
    partitions_def: dg.PartitionsDefinition,
    automation_condition: dg.AutomationCondition | None = None,
) -> dg.AssetsDefinition:
    """Rewrites the views after the tables of one dataset changed. Views hold no rows, so this takes milliseconds."""

    @dg.asset(
        name="warehouse",
        group_name="warehouse",
        owners=[OWNERS["warehouse"]],
        kinds={"duckdb"},
        deps=[asset_key(name) for name in last_stages(stages)],
        partitions_def=partitions_def,
        automation_condition=automation_condition,
        description="vsr1.duckdb: one view an asset over all datasets, and predictions, turns, failures.",
    )
    def body(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        from vsr1_core.home.warehouse import refresh

        path = refresh(home, stages)
        context.log.info(f"warehouse: views written to {path}")
        return dg.MaterializeResult(metadata={"path": dg.MetadataValue.path(str(path))})

    return body


def last_stages(stages: Mapping[str, Stage]) -> list[str]:
    """The stages that no other reads. Waiting for these is waiting for all, and the graph is drawn without an edge
    from every asset.
    """
    read = {name for stage in stages.values() for name in stage.upstream}
    return [name for name in stages if name not in read]
