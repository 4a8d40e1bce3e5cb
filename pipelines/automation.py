"""When an asset runs by itself. Off until the sensor is turned on in the UI: a run may train a model."""

from __future__ import annotations

import dagster as dg


def when_inputs_changed() -> dg.AutomationCondition:
    """Run when the data version of an input, or the code version, changed, or after one failure; never past a
    failed blocking check.

    Not `eager()`: that one runs again on an unchanged data version, ignores the code version, and runs past failed
    blocking checks. Not `will_be_requested()`: with it a data version that did not move gives no early cut-off.
    """
    condition = dg.AutomationCondition
    changed = (
        condition.any_deps_match(condition.data_version_changed())
        | condition.code_version_changed()
        | condition.newly_missing()
    )
    latched = changed.since(condition.newly_requested() | condition.initial_evaluation())
    wanted = latched | condition.execution_failed().newly_true()
    return (
        wanted
        & ~condition.in_progress()
        & ~condition.any_deps_in_progress()
        & ~condition.any_deps_missing()
        & condition.all_deps_blocking_checks_passed()
    ).with_label("an input or the code changed")


def automation_sensor() -> dg.AutomationConditionSensorDefinition:
    """The sensor that evaluates the condition above every minute, once it is turned on."""
    return dg.AutomationConditionSensorDefinition(
        "run_what_changed",
        target=dg.AssetSelection.all(),
        default_status=dg.DefaultSensorStatus.STOPPED,
        minimum_interval_seconds=60,
    )
