"""Decides when an asset runs by itself. This is off until the sensor is turned on in the UI: a run may train a model.

Dagster's data versions say that something changed in a whole partition; the row plan says which assets have rows to
make, before any of them runs. With both, all assets that a change concerns run in one run, upstream first, once each.
With data versions alone, a change would need one sensor tick per layer of the graph, and an asset that reads several
layers would run once for each of them; trainings are among these assets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContext

from assets._keys import asset_key
from pipelines.planner import Outlook, Planner
from vsr1_core.stages.base import Stage


class Holds(dg.AutomationCondition):  # type: ignore[misc]
    """A condition that is evaluated for each dataset by itself. The code location has to evaluate it."""

    def __init__(self, name: str, holds: Callable[[dg.AutomationContext, str], bool]) -> None:
        self._name, self._holds = name, holds

    @property
    def name(self) -> str:
        return self._name

    def evaluate(self, context: dg.AutomationContext) -> dg.AutomationResult:
        asked = context.candidate_subset
        datasets = {name for name in asked.expensively_compute_partition_keys() if self._holds(context, name)}
        return dg.AutomationResult(context, asked.compute_intersection_with_partition_keys(datasets))


def when_inputs_changed(planner: Planner) -> dg.AutomationCondition:
    """Run an asset that was built before and is now behind its inputs. Run it once more after a failure. Never run it
    after a failed blocking check of an asset that it reads.

    An asset is behind when the plan says that rows are due, or when Dagster finds that the code version or the data
    version of a dependency has changed since. A run that finds no row to make changes no data version, so nothing
    downstream of it runs.

    Dagster's `eager()` does not fit: it runs again on an unchanged data version, ignores the code version, and runs
    after failed blocking checks. `will_be_requested()` counts only where the plan says that the dependency's version
    will change: by itself it would let everything downstream run.
    """
    condition = dg.AutomationCondition
    questions = _Questions(planner)
    rows_are_due = Holds("rows are due", questions.rows_are_due)
    is_behind = ~condition.missing() & (rows_are_due | Holds("out of date in Dagster", questions.is_stale))
    will_move = condition.any_deps_match(condition.will_be_requested() & rows_are_due)
    changed = (
        condition.any_deps_match(condition.data_version_changed())
        | will_move
        | condition.code_version_changed()
        | is_behind.newly_true()
    )
    wanted = changed.since(condition.newly_requested()) | condition.execution_failed().newly_true()
    return (
        wanted
        & ~condition.missing()
        & (is_behind | will_move)
        & Holds("what it reads is ready", questions.is_ready)
        & Holds("is not a training to be started by hand", questions.may_run)
        & ~condition.in_progress()
        & ~condition.any_deps_in_progress()
        & ~condition.any_deps_missing().ignore(_observed(planner.stages))
        & condition.all_deps_blocking_checks_passed()
        & (Holds("still behind, asked anew", questions.is_still_behind) | will_move)
    ).with_label("behind its inputs")


def _observed(stages: Mapping[str, Stage]) -> dg.AssetSelection:
    """The assets of watched files. They need not have been observed, because the plan looks at the files itself."""
    return dg.AssetSelection.assets(*(stage.watches for stage in stages.values() if stage.watches))


class _Tick:
    """What was found in one evaluation, which asks the same questions about many assets."""

    def __init__(self, context: dg.AutomationContext) -> None:
        view = context.asset_graph_view
        self.time = context.evaluation_time
        self.outlooks: dict[str, Outlook] = {}
        self.staleness = CachingStaleStatusResolver(view.instance, view.asset_graph, loading_context=view)


class _Unread(LoadingContext):
    """A loading context without cached records: for questions about Dagster's records as they are now, not as they
    were when the evaluation began."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance, self._loaders = instance, dict[type, Any]()

    @property
    def instance(self) -> dg.DagsterInstance:
        return self._instance

    @property
    def loaders(self) -> dict[type, Any]:
        return self._loaders


class _Questions:
    """Answers questions about an asset and a dataset from the plan and from Dagster's versions. An asset that is not a
    stage has no rows."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._stage_of = {asset_key(name): name for name in planner.stages}
        self._tick: _Tick | None = None

    def _now(self, context: dg.AutomationContext) -> _Tick:
        if self._tick is None or self._tick.time != context.evaluation_time:
            self._tick = _Tick(context)
        return self._tick

    def _outlook(self, context: dg.AutomationContext, dataset: str) -> Outlook:
        outlooks = self._now(context).outlooks
        if dataset not in outlooks:
            outlooks[dataset] = self._planner.outlook(dataset, context.log)
        return outlooks[dataset]

    def is_stale(self, context: dg.AutomationContext, dataset: str) -> bool:
        """Whether the UI shows it as out of date: Dagster compares versions with those that the last run read."""
        return bool(self._now(context).staleness.get_status(context.key, dataset) == StaleStatus.STALE)

    def rows_are_due(self, context: dg.AutomationContext, dataset: str) -> bool:
        return self._stage_of.get(context.key, "") in self._outlook(context, dataset).due

    def is_still_behind(self, context: dg.AutomationContext, dataset: str) -> bool:
        """Plan the dataset once more. This is asked last, when it is known that no run makes the asset: a run that
        ended while the other questions were answered has made the rows, and another run would find none to make.
        """
        self._now(context).outlooks[dataset] = self._planner.outlook(dataset, context.log)
        if self.rows_are_due(context, dataset):
            return True
        view = context.asset_graph_view
        staleness = CachingStaleStatusResolver(view.instance, view.asset_graph, _Unread(view.instance))
        return bool(staleness.get_status(context.key, dataset) == StaleStatus.STALE)

    def is_ready(self, context: dg.AutomationContext, dataset: str) -> bool:
        """Whether each stage upstream is up to date, or runs before this asset in the same run. Stages that are held
        are not waited for: what is downstream goes on with the models that exist.
        """
        outlook = self._outlook(context, dataset)
        if self._stage_of.get(context.key, "") in outlook.unknown:
            return False
        waiting = (outlook.due | outlook.unknown) - outlook.held
        above = context.asset_graph.get_ancestor_asset_keys(context.key)
        return all(_is_requested(context, key, dataset) for key in above if self._stage_of.get(key, "") in waiting)

    def may_run(self, context: dg.AutomationContext, dataset: str) -> bool:
        name, outlook = self._stage_of.get(context.key, ""), self._outlook(context, dataset)
        return name not in outlook.held or name not in outlook.due


def _is_requested(context: dg.AutomationContext, key: dg.AssetKey, dataset: str) -> bool:
    requested = context.request_subsets_by_key.get(key)
    return requested is not None and dataset in requested.expensively_compute_partition_keys()
