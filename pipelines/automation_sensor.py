"""The sensor that evaluates the conditions of `pipelines.automation`, unless nothing moved since it last did.

An evaluation asks Dagster about each asset of each dataset, which takes seconds of processor time; most ticks find
nothing.
"""

from __future__ import annotations

import threading
from typing import Any

import dagster as dg
from dagster._core.definitions.sensor_definition import SensorExecutionData
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

from pipelines.planner import UNUSABLE, Planner
from pipelines.watching import SECONDS_BETWEEN_TICKS
from vsr1_core.datasets.registry import load_entries
from vsr1_core.stages.graph import open_view, stamp

QUIET = "nothing moved since the last look"


class AutomationSensor(dg.AutomationConditionSensorDefinition):  # type: ignore[misc]
    """Evaluates when a file, a table, a configuration, a run or an event is another one than when it last found nothing
    to ask for: the conditions are functions of these, so they would find nothing again.

    What was seen is kept in this process only. After the code was reloaded, everything is evaluated once more.
    """

    def __init__(self, planner: Planner, **options: Any) -> None:
        super().__init__(**options)
        self._planner = planner
        self._quiet: dict[str, object] | None = None
        self._one_at_a_time = threading.Lock()

    def evaluate_tick(self, context: dg.SensorEvaluationContext) -> SensorExecutionData:
        with self._one_at_a_time:
            seen = self._seen(context.instance)
            if seen == self._quiet:
                return SensorExecutionData([], QUIET, context.cursor, [])
            told: SensorExecutionData = super().evaluate_tick(context)
            self._quiet = None if told.run_requests else seen
            return told

    def _seen(self, instance: dg.DagsterInstance) -> dict[str, object]:
        """All that the conditions depend on, in a form that is cheap to read. It is read before they are evaluated, so
        that whatever moves meanwhile is seen by the next tick."""
        open_runs = instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES))
        return {
            "last event": instance.event_log_storage.get_maximum_record_id(),
            "open runs": sorted((run.run_id, run.status.value) for run in open_runs),
            **{f"dataset {name}": self._stamp(name) for name in load_entries(self._planner.home)},
        }

    def _stamp(self, dataset: str) -> str:
        try:
            return stamp(open_view(self._planner.home, dataset, self._planner.stages))
        except UNUSABLE as error:
            return str(error)


def automation_sensor(planner: Planner) -> AutomationSensor:
    """The sensor, which is off until it is turned on. It starts one run per dataset, and never a backfill."""
    return AutomationSensor(
        planner,
        name="run_what_changed",
        target=dg.AssetSelection.all(),
        description="Rebuilds assets that are behind their inputs. The first build of a dataset is started by hand.",
        default_status=dg.DefaultSensorStatus.STOPPED,
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        run_tags={"vsr1/started_by": "run_what_changed"},
        emit_backfills=False,
        use_user_code_server=True,
    )
