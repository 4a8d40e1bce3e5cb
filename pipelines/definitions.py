"""The Dagster code location: `defs` combines everything in this folder. Importing it takes about a second, because
torch is not imported."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import dagster as dg

from assets import checkpoints, corpus, embeddings, evaluation, grpo, media, retrieval, sft, sources
from assets._factory import AssetInfo, build_stage_assets
from assets.warehouse import warehouse_asset
from pipelines.automation import when_inputs_changed
from pipelines.automation_sensor import automation_sensor
from pipelines.io import HandleIOManager
from pipelines.jobs import build_jobs, executor
from pipelines.partitions import dataset_partitions
from pipelines.planner import Planner
from pipelines.progress import progress_logger
from pipelines.resources import workplace
from pipelines.settings import Settings, prepare_process, read_settings
from pipelines.watching import watching_sensor
from vsr1_core.stages.base import Stage
from vsr1_core.stages.graph import all_stages

GROUPS = (sources, corpus, media, checkpoints, embeddings, retrieval, sft, grpo, evaluation)

ASSET_INFOS: dict[str, AssetInfo] = {info.stage: info for group in GROUPS for info in group.ASSETS}


def build_defs(
    settings: Settings | None = None,
    stages: Mapping[str, Stage] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> dg.Definitions:
    """Build new definitions. `overrides` replaces resources by key; `stages` replaces the graph (tests)."""
    with warnings.catch_warnings():
        # In Dagster 1.13 observed sources and the condition sensor are beta, and partitioned checks are a preview.
        for category in (dg.BetaWarning, dg.PreviewWarning):
            warnings.simplefilter("ignore", category)
        return _build_defs(settings or read_settings(), all_stages() if stages is None else stages, overrides or {})


def _build_defs(settings: Settings, stages: Mapping[str, Stage], overrides: Mapping[str, Any]) -> dg.Definitions:
    partitions_def = dataset_partitions(settings.home)
    planner = Planner(settings.home, stages)
    condition = when_inputs_changed(planner)
    assets = build_stage_assets(stages, ASSET_INFOS, partitions_def, condition)
    assets.append(warehouse_asset(stages, settings.home, partitions_def, condition))
    groups = {stage.group for stage in stages.values()} | {"warehouse"}
    resources = {
        "workplace": workplace(settings),
        "handles": HandleIOManager(settings.home, stages),
        **overrides,
    }
    return dg.Definitions(
        assets=assets,
        jobs=build_jobs(partitions_def, groups),
        sensors=[watching_sensor(planner), automation_sensor(planner)],
        resources=resources,
        executor=executor(),
        loggers={"console": dg.colored_console_logger, "progress": progress_logger},
    )


prepare_process()
defs = build_defs()
