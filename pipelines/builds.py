"""Builds from the command line. A build is one Dagster run of the whole graph, or of a part of it, for one dataset."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import dagster as dg

from assets._factory import RETRY_TAG
from assets._keys import asset_key
from assets._runs import LEASE_TAG
from pipelines.bars import bars_on_terminal
from pipelines.commands import say
from pipelines.definitions import build_defs
from pipelines.instance import close_dead_runs, free_places_assigned, open_instance, process_tags
from pipelines.jobs import WHOLE_GRAPH
from pipelines.location import mark_runs
from pipelines.no_run import Place, build_without_run
from pipelines.planner import UNUSABLE
from pipelines.settings import Settings
from pipelines.watching import report_observations
from vsr1_core.home.building import BuiltAsset
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.lease import Lease
from vsr1_core.rows.texts import did_you_mean
from vsr1_core.stages.adopted import adopted
from vsr1_core.stages.base import View
from vsr1_core.stages.graph import open_view, stages_of, with_all_before
from vsr1_core.stages.removals import ALLOW_TAG

RUN_CONFIG: Mapping[str, Any] = {"loggers": {"progress": {}}}
ExecutorName = Literal["in-process", "multiprocess"]


@dataclass(frozen=True)
class BuildResult:
    """What a build did. `problems` names each asset that stopped and says why; `trace` is shown with --debug."""

    success: bool
    run_id: str
    assets: Sequence[BuiltAsset]
    problems: Sequence[str]
    trace: str


@dataclass(frozen=True)
class BuildOptions:
    """How a build goes about it.

    Attributes:
        retry_failed: Whether failed rows run again.
        allow_removals: Whether the rows of all files that are gone are dropped, however many they are.
        wait: Whether to wait for whatever else writes the dataset, instead of raising.
        executor: `in-process`, or `multiprocess` for one process per step.
    """

    retry_failed: bool = False
    allow_removals: bool = False
    wait: bool = False
    executor: ExecutorName = "in-process"


def run_build(
    settings: Settings,
    dataset: str,
    assets: str = "",
    options: BuildOptions = BuildOptions(),  # it is frozen
    defs: dg.Definitions | None = None,
) -> BuildResult:
    """Build `assets` and everything that they need. Where nothing is due, that is found without a Dagster run.

    Args:
        settings: Where the home is, and what the work runs on.
        dataset: Name of a registered dataset.
        assets: Names, groups or Dagster selections, separated by commas; empty for all assets.
        options: How the build goes about it.
        defs: Definitions to use in place of those of `settings` (tests).

    Raises:
        ValueError: An asset or group is unknown; the message lists the known ones.
        LeaseHeld: Something else writes the dataset; the message says what.
        KeyboardInterrupt: The build was stopped by Ctrl-C, which Dagster takes for itself.
    """
    defs = defs or build_defs(settings)
    keys = select_assets(defs, assets, open_view(settings.home, dataset))
    with (
        _lease(settings, dataset, options.wait) as lease,
        open_instance(settings.home) as instance,
        free_places_assigned(instance),
    ):
        tags = process_tags() | {LEASE_TAG: lease.run} | _tags(options)
        close_dead_runs(instance, settings.home)
        mark_runs(instance, WHOLE_GRAPH)
        with contextlib.suppress(*UNUSABLE):  # the run itself says what is wrong with the files, and stops
            report_observations(instance, open_view(settings.home, dataset))
        if options.executor == "multiprocess":
            result = _run_multiprocess(instance, dataset, keys, tags)
        else:
            place = Place(defs, instance, dataset, lease.run)
            if (same := build_without_run(place, keys, options.retry_failed)) is not None:
                return BuildResult(True, "", same, [], "")
            job = defs.resolve_job_def(WHOLE_GRAPH)
            with bars_on_terminal():
                result = job.execute_in_process(
                    instance=instance,
                    partition_key=dataset,
                    asset_selection=keys,
                    run_config=RUN_CONFIG,
                    raise_on_error=False,
                    tags=tags,
                )
        return _summary(instance, result.run_id, result.success)


def _tags(options: BuildOptions) -> dict[str, str]:
    """What a run is to do beyond the usual, as tags of the run. Its configuration would hold a copy of all settings,
    the home's path among them, with which the run would be repeated in the UI after the home was moved."""
    asked = {RETRY_TAG: options.retry_failed, ALLOW_TAG: options.allow_removals}
    return {tag: "true" for tag, is_asked in asked.items() if is_asked}


@contextlib.contextmanager
def _lease(settings: Settings, dataset: str, wait: bool) -> Iterator[Lease]:
    """The lease of the dataset, which the steps of the run share."""
    with Lake(settings.home / "lake").written(dataset, "vsr1 build", wait=wait, log=say) as lake:
        assert lake.lease is not None
        yield lake.lease


def _run_multiprocess(
    instance: dg.DagsterInstance,
    dataset: str,
    keys: Sequence[dg.AssetKey],
    tags: Mapping[str, str],
) -> Any:
    """Run each step in a process of its own, which costs about 3 s of imports per step."""
    with dg.execute_job(
        dg.reconstructable(whole_graph),
        instance=instance,
        run_config=RUN_CONFIG,
        tags={**tags, "dagster/partition": dataset},
        asset_selection=list(keys),
    ) as result:
        return result


def whole_graph() -> dg.JobDefinition:
    """The job of the whole graph; a child process imports this function to find it."""
    return build_defs().resolve_job_def(WHOLE_GRAPH)


def select_assets(defs: dg.Definitions, text: str, view: View) -> list[dg.AssetKey]:
    """The named assets and everything upstream of them, which is nothing for a checkpoint that was adopted. Raises
    ValueError, which lists the known names, if a name is unknown."""
    graph = defs.resolve_asset_graph()
    built = graph.materializable_asset_keys
    by_name = {".".join(key.path): key for key in built}
    if not text.strip():
        left_out = {asset_key(name) for name in set(view.stages) - set(stages_of(view))}
        return sorted(set(by_name.values()) - left_out)
    groups = {node.group_name for node in graph.asset_nodes}
    chosen: set[dg.AssetKey] = set()
    for part in (p.strip() for p in text.split(",") if p.strip()):
        name = part.replace("/", ".").replace("+", "_")
        selection: dg.AssetSelection
        if name in by_name:
            selection = dg.AssetSelection.assets(by_name[name])
        elif part in groups:
            selection = dg.AssetSelection.groups(part)
        else:
            selection = _parsed(part, [*by_name, *groups])
        chosen |= selection.resolve(graph)
    reads = lambda key: () if adopted(view, ".".join(key.path)) else graph.get(key).parent_keys  # noqa: E731
    return sorted(with_all_before(chosen, reads) & built)


def _parsed(part: str, known: Sequence[str]) -> dg.AssetSelection:
    if not any(mark in part for mark in ':*"+('):
        meant = did_you_mean(part, known)
        raise ValueError(
            f"there is no asset or group {part!r}{meant or ';'} there are: {', '.join(sorted(set(known)))}"
        )
    return dg.AssetSelection.from_string(part)


def _summary(instance: dg.DagsterInstance, run_id: str, success: bool) -> BuildResult:
    """Read the result of the run from the instance, which works in the same way for both executors."""
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION).records
    built = [asset for record in records if (asset := _built(record.asset_materialization)) is not None]
    failures = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records
    problems, traces = [], []
    for record in failures:
        event = record.event_log_entry.get_dagster_event()
        error = event.step_failure_data.error
        if "DagsterExecutionInterruptedError" in _root_message(error):
            raise KeyboardInterrupt
        if "AssetCheckFailedError" not in _root_message(error):  # `_failed_checks` says what was found
            problems.append(f"{str(event.step_key).replace('__', '.')}: {_root_message(error)}")
        traces.append(error.to_string() if error else "")
    return BuildResult(success, run_id, built, problems + _failed_checks(instance, run_id), "\n".join(traces))


def _failed_checks(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    """What each failed blocking check found."""
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION).records
    found = []
    for record in records:
        event = record.event_log_entry.get_dagster_event()
        check = event.asset_check_evaluation_data
        if not check.passed and check.severity == dg.AssetCheckSeverity.ERROR:
            found.append(f"{'.'.join(check.asset_key.path)}: {check.metadata['problem'].value}")
    return found


def _built(event: dg.AssetMaterialization | None) -> BuiltAsset | None:
    if event is None or "rows/processed" not in event.metadata:
        return None
    value: dict[str, Any] = {name: entry.value for name, entry in event.metadata.items()}
    return BuiltAsset(
        ".".join(event.asset_key.path),
        value["dagster/row_count"],
        value["rows/processed"],
        value["rows/failed"],
        value["seconds"],
    )


def _root_message(error: Any) -> str:
    """The message of the exception that ended a step, without the ones in which Dagster wraps it. What it was raised
    from, such as polars' word on a file, is for the traceback. Errors of this project are written for people, so the
    name of their class is left out."""
    while error is not None and error.cause is not None and error.message.startswith("dagster"):
        error = error.cause
    return re.sub(r"^vsr1_core\.[\w.]+: ", "", error.message.strip()) if error else "failed without a message"
