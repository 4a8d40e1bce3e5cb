"""The DuckDB file with a view over every table of all datasets. `vsr1_core.home.warehouse` makes the views."""

# No `from __future__ import annotations` here: Dagster reads the annotation of `context` as a class.

from collections.abc import Mapping
from pathlib import Path

import dagster as dg

from assets._factory import OWNERS
from assets._keys import asset_key
from vsr1_core.stages.base import Stage

WAREHOUSE = "warehouse"


def warehouse_asset(
    stages: Mapping[str, Stage],
    home: Path,
    partitions_def: dg.PartitionsDefinition,
    automation_condition: dg.AutomationCondition | None = None,
) -> dg.AssetsDefinition:
    """An asset that rewrites the views after the tables of a dataset have changed. Views hold no rows, so this takes
    milliseconds."""

    @dg.asset(
        name=WAREHOUSE,
        group_name="warehouse",
        owners=[OWNERS["warehouse"]],
        kinds={"duckdb"},
        deps=[asset_key(name) for name in last_stages(stages)],
        partitions_def=partitions_def,
        automation_condition=automation_condition,
        description="vsr1.duckdb: one view per asset over all datasets, and the views predictions, turns and failures.",
    )
    def body(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        from vsr1_core.home.warehouse import refresh

        path = refresh(home, stages)
        context.log.info(f"warehouse: views written to {path}")
        return dg.MaterializeResult(metadata={"path": dg.MetadataValue.path(str(path))})

    return body


def last_stages(stages: Mapping[str, Stage]) -> list[str]:
    """The stages that no other stage reads. To wait for these is to wait for all stages, and the picture of the graph
    then has no edge from every asset to the warehouse.
    """
    read = {name for stage in stages.values() for name in stage.upstream}
    return [name for name in stages if name not in read]
