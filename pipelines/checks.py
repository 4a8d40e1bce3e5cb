"""The checks of each stage as Dagster asset checks. Stages declare what is checked (`vsr1_core.stages.checks`).

All checks are partitioned: with an unpartitioned blocking check, one bad dataset would block all others.
"""

# No `from __future__ import annotations` here: Dagster reads the annotation of `context` as a class.

from collections.abc import Iterable, Iterator

import dagster as dg

from assets._factory import Workplace, asset_key
from vsr1_core.stages.base import Stage
from vsr1_core.stages.checks import EVERY


def build_checks(stages: Iterable[Stage], partitions_def: dg.PartitionsDefinition) -> list[dg.AssetChecksDefinition]:
    """One definition per stage, with all checks of that stage."""
    return [_checks_of(stage, partitions_def) for stage in stages]


def _checks_of(stage: Stage, partitions_def: dg.PartitionsDefinition) -> dg.AssetChecksDefinition:
    """All checks of one asset as one step: one step per check would double the time of a build with nothing to do."""
    checks, asset = (*EVERY, *stage.checks), stage.name
    key = asset_key(asset)
    specs = [
        dg.AssetCheckSpec(
            check.name,
            asset=key,
            description=check.says,
            blocking=check.blocking,
            partitions_def=partitions_def,
            additional_deps=[asset_key(name) for name in check.needs],
        )
        for check in checks
    ]

    @dg.multi_asset_check(name=f"{'__'.join(key.path)}_checks", specs=specs, required_resource_keys={"workplace"})
    def body(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        workplace: Workplace = context.resources.workplace
        view = workplace.view(context.partition_key)
        for check in checks:
            problem = check.find(view, asset)
            yield dg.AssetCheckResult(
                asset_key=key,
                check_name=check.name,
                passed=not problem,
                severity=dg.AssetCheckSeverity.ERROR if check.blocking else dg.AssetCheckSeverity.WARN,
                metadata={"problem": problem or "none"},
            )

    return body
