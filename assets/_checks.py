"""The checks of each stage as Dagster asset checks. Stages declare what is checked (`vsr1_core.stages.checks`).

Checks run in the step that makes their table: a step of their own would cost more than most of them, and would double
the steps of a build. All are partitioned: with an unpartitioned blocking check, one bad dataset would block all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import dagster as dg

from assets._keys import asset_key
from vsr1_core.stages.base import Stage, View
from vsr1_core.stages.checks import checks_of
from vsr1_core.stages.graph import with_all_before


def check_specs(
    stage: Stage, stages: Mapping[str, Stage], partitions_def: dg.PartitionsDefinition
) -> list[dg.AssetCheckSpec]:
    """The declarations of all checks of one stage. stages: the whole graph.

    Raises:
        ValueError: A check reads a table that may be made after the check has run.
    """
    there = with_all_before(stage.upstream, lambda name: stages[name].upstream) | {stage.name}
    for check in checks_of(stage):
        if late := sorted({*check.needs} - there):
            raise ValueError(
                f"the check {check.name} of {stage.name} reads {late[0]}, which {stage.name} does not wait for; "
                f"declare it for a stage that is made from {late[0]}"
            )
    return [
        dg.AssetCheckSpec(
            check.name,
            asset=asset_key(stage.name),
            description=check.says,
            blocking=check.blocking,
            partitions_def=partitions_def,
        )
        for check in checks_of(stage)
    ]


def check_results(stage: Stage, view: View) -> Iterator[dg.AssetCheckResult]:
    """What the checks of a stage find in the dataset's tables."""
    for check in checks_of(stage):
        problem = check.find(view, stage.name)
        yield dg.AssetCheckResult(
            asset_key=asset_key(stage.name),
            check_name=check.name,
            passed=not problem,
            severity=dg.AssetCheckSeverity.ERROR if check.blocking else dg.AssetCheckSeverity.WARN,
            metadata={"problem": problem or "none"},
        )
