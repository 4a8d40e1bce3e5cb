"""Makes a Dagster asset from a stage of `vsr1_core`: key, group, inputs, versions, and the metadata that all share.

The group modules declare what a single stage shows beyond that. No stage is named here.
"""

# No `from __future__ import annotations` here: Dagster reads the annotation of `context` as a class.

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from assets._checks import check_results, check_specs
from assets._keys import Workplace, asset_key
from assets._metadata import column_schema, failure_table, folder_bytes, reason_table, sample_table
from assets._places import place_in_run
from assets._runs import writing_in_run
from assets.handle import Handle
from vsr1_core.rows.increments import Outcome
from vsr1_core.rows.table import Table
from vsr1_core.stages.base import Stage, View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.removals import ALLOW_TAG
from vsr1_core.stages.unmoved import build_stage

Extras = Callable[[View, str], Mapping[str, Any]]
"""(the dataset's tables, asset name) -> metadata that only one kind of asset has. The function imports the drawing
library itself, so that importing this package stays cheap."""


RETRY_TAG = "vsr1/retry_failed"
"""Tag of a run that makes failed rows again."""

GPU, DECODE = "gpu", "decode"
"""The pools: assets that run a model, and assets that decode video. dagster.yaml says how many assets of a pool run at
once."""
OWNERS = {
    **dict.fromkeys(("sources", "corpus", "media"), "team:data"),
    **dict.fromkeys(("embeddings", "retrieval"), "team:search"),
    **dict.fromkeys(("checkpoints", "sft", "grpo"), "team:training"),
    **dict.fromkeys(("evaluation", "warehouse"), "team:evaluation"),
}
"""Group -> the team that answers questions about its assets."""


@dataclass(frozen=True)
class AssetInfo:
    """What only Dagster needs to know about a stage: technologies, extra metadata, and the pool in which it queues."""

    stage: str
    kinds: frozenset[str] = frozenset({"parquet"})
    extras: Extras | None = None
    pool: str | None = None


def code_version(stage: Stage) -> str:
    """The version of the stage, without the recipe. Dagster keeps one code version for all datasets, but a recipe
    concerns only the datasets that are built with it: the plan of each dataset finds the rows that a changed recipe
    makes stale.
    """
    return str(stage.version)


def stage_asset(
    stage: Stage,
    stages: Mapping[str, Stage],
    info: AssetInfo,
    partitions_def: dg.PartitionsDefinition,
    automation_condition: dg.AutomationCondition | None = None,
) -> dg.AssetsDefinition:
    """The asset of one stage. Its body reads the upstream handles, runs the row loop and the checks of the table, and
    yields its own handle."""
    ins = {name.replace(".", "__").replace("+", "_"): dg.AssetIn(key=asset_key(name)) for name in stage.upstream}

    @dg.asset(
        key=asset_key(stage.name),
        ins=ins,
        deps=[stage.watches] if stage.watches else [],
        description=stage.says,
        group_name=stage.group,
        owners=[OWNERS[stage.group]],
        kinds=set(info.kinds),
        partitions_def=partitions_def,
        automation_condition=automation_condition,
        code_version=code_version(stage),
        check_specs=check_specs(stage, stages, partitions_def),
        io_manager_key="handles",
        required_resource_keys={"workplace"},
        pool=info.pool,
        metadata={"dagster/column_schema": column_schema(stage)},
    )
    def body(context: dg.AssetExecutionContext, **handles: Handle) -> Iterator[Any]:
        workplace: Workplace = context.resources.workplace
        context.log.info(heading_line(stage.name, *place_in_run(context)))
        with writing_in_run(workplace.view(context.partition_key), context.run, context.instance) as view:
            outcome = build_stage(view, stage, _execution(context, workplace))
        context.log.info(summary_line(stage.name, outcome))
        # Yielded, not returned: of a result that is returned beside checks, Dagster stores no handle.
        yield materialization(view, stage, outcome, info.extras)
        yield from check_results(stage, view)

    return body


def heading_line(name: str, number: int, total: int) -> str:
    """The line with which an asset begins in the log of a build."""
    return f"{number} of {total}: {name}"


def _execution(context: dg.AssetExecutionContext, workplace: Workplace) -> Execution:
    """How the work of a run is done: as the workplace says, and as the tags of the run say."""
    run, execution = context.run, workplace.execution(context.log.info)
    return dataclasses.replace(
        execution,
        run_id=run.run_id,
        retry_failed=run.tags.get(RETRY_TAG) == "true",
        max_removed=None if run.tags.get(ALLOW_TAG) == "true" else execution.max_removed,
    )


def observed_asset(stage: Stage, partitions_def: dg.PartitionsDefinition) -> dg.SourceAsset:
    """The files that a source stage reads, as an asset that Dagster observes and never makes. So Dagster knows that the
    stage is out of date before it runs. A dataset whose files cannot be listed has no version.
    """

    @dg.observable_source_asset(
        name=stage.watches,
        group_name=stage.group,
        description=f"The files that {stage.name} reads, versioned by their content.",
        partitions_def=partitions_def,
        required_resource_keys={"workplace"},
    )
    def observe(context: dg.OpExecutionContext) -> dg.DataVersionsByPartition:
        workplace: Workplace = context.resources.workplace
        datasets = [context.partition_key] if context.has_partition_key else partitions_def.get_partition_keys()
        versions = {}
        for dataset in datasets:
            try:
                if version := stage.observe(workplace.view(dataset)):
                    versions[dataset] = version
            except (OSError, ValueError, LookupError) as error:
                context.log.warning(f"{stage.watches} of {dataset}: {error}")
        return dg.DataVersionsByPartition(versions)

    return observe


def materialization(
    view: View, stage: Stage, outcome: Outcome, extras: Extras | None = None
) -> dg.MaterializeResult[Handle]:
    """The result of an asset for Dagster: its handle, its data version, and its metadata."""
    manifest = outcome.manifest
    # The UI keeps this order: what is worth looking at comes before what is counted.
    shown = extras(view, stage.name) if extras is not None and manifest["num_ok"] else {}
    metadata = {**shown, **outcome_metadata(view.table(stage.name), view.files(stage.name), outcome)}
    return dg.MaterializeResult(
        value=Handle(stage.name, view.entry.name, manifest["data_version"], manifest["num_rows"]),
        data_version=dg.DataVersion(manifest["data_version"]),
        metadata=metadata,
    )


def outcome_metadata(table: Table, files: Path, outcome: Outcome) -> dict[str, Any]:
    """Metadata of every asset: counts under `rows/`, which agree with what `vsr1 plan` showed before the run, then
    sizes, samples and failures."""
    counts = outcome.plan.counts()
    failures = failure_table(table)
    metadata: dict[str, Any] = {
        "dagster/row_count": outcome.manifest["num_rows"],
        "rows/new": counts["new"],
        "rows/stale": counts["stale"],
        "rows/processed": outcome.num_processed,
        "rows/failed": outcome.manifest["num_failed"],
        "rows/dropped": outcome.num_dropped,
        "rows/unchanged": counts["unchanged"],
        "seconds": round(outcome.seconds, 2),
        "size_mib": round((table.num_bytes + folder_bytes(files)) / 2**20, 3),
        "table": dg.MetadataValue.path(str(table.rows_path)),
        "sample": dg.MetadataValue.md(sample_table(table)),
    }
    if outcome.plan.causes:
        metadata["why"] = dg.MetadataValue.md(reason_table(outcome.plan.why()))
    if failures:
        metadata["failures"] = dg.MetadataValue.md(failures)
    if files.exists():
        metadata["files"] = dg.MetadataValue.path(str(files))
    return metadata


def summary_line(name: str, outcome: Outcome) -> str:
    """One line for the log: how many rows ran and failed, and how long it took."""
    parts = [f"{outcome.num_processed:,} rows processed", f"{outcome.manifest['num_rows']:,} in all"]
    if outcome.manifest["num_failed"]:
        parts.append(f"{outcome.manifest['num_failed']:,} failed")
    if outcome.num_dropped:
        parts.append(f"{outcome.num_dropped:,} dropped")
    return f"{name}: {', '.join(parts)}, {outcome.seconds:.1f} s"


def build_stage_assets(
    stages: Mapping[str, Stage],
    infos: Mapping[str, AssetInfo],
    partitions_def: dg.PartitionsDefinition,
    automation_condition: dg.AutomationCondition | None = None,
) -> list[dg.AssetsDefinition | dg.SourceAsset]:
    """One asset per stage, and one more for the files that each source watches. The keys of `infos` are names of stages
    up to their first dot."""
    made = []
    for name, stage in stages.items():
        info = infos.get(name.split(".")[0], AssetInfo(name))
        made.append(stage_asset(stage, stages, info, partitions_def, automation_condition))
    return [*(observed_asset(stage, partitions_def) for stage in stages.values() if stage.watches), *made]
