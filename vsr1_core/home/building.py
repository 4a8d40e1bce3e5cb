"""A build without Dagster: the stages of one dataset in their order, each finished before the next one starts.

Rows, versions and checks are the same as in a Dagster build, because both use the same stages. Only a Dagster build has
a run history, pools and sensors.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vsr1_core.rows.texts import did_you_mean
from vsr1_core.stages.adopted import adopted
from vsr1_core.stages.base import Stage, View
from vsr1_core.stages.checks import checks_of
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import with_all_before, writing
from vsr1_core.stages.unmoved import build_stage

if TYPE_CHECKING:
    from vsr1_core.rows.increments import Outcome


@dataclass(frozen=True)
class BuiltAsset:
    """What a build did to one asset.

    Attributes:
        name: The asset, for example `frame_tensors`.
        num_rows: Rows of its table after the build, failed ones included.
        num_processed: Rows that were made in this build.
        num_failed: Rows of its table that have an error in place of values.
        seconds: How long this build of the asset took.
    """

    name: str
    num_rows: int
    num_processed: int
    num_failed: int
    seconds: float


def build(
    view: View, execution: Execution, names: Sequence[str], wait: bool = False, lease: str = ""
) -> Iterator[BuiltAsset]:
    """Build the named assets of one dataset, upstream before downstream, and yield what was done to each.

    wait: wait for another build of the dataset, or the like, instead of raising. lease: the run whose lease of the
    dataset this process holds already.

    Raises:
        LeaseHeld: Something else writes the dataset; the message says what.
        ValueError: An asset cannot be built, or a blocking check failed; the message says why.
    """
    execution = execution if execution.run_id else dataclasses.replace(execution, run_id=str(uuid.uuid4()))
    asked = set(names)
    wanted = [name for name in view.stages if name in asked]
    with writing(view, "a build", lease, wait=wait, log=execution.log) as held:
        for number, name in enumerate(wanted, 1):
            execution.log(f"{number} of {len(wanted)}: {name}")
            stage = held.stages[name]
            built = _built(name, build_stage(held, stage, execution))
            execution.log(f"{name}: {built.num_processed:,} rows processed, {built.num_rows:,} in all")
            _check(held, stage, execution)
            yield built


def _check(view: View, stage: Stage, execution: Execution) -> None:
    for check in checks_of(stage):
        problem = check.find(view, stage.name)
        if problem and check.blocking:
            raise ValueError(f"{stage.name}, {check.name}: {problem}")
        if problem:
            execution.log(f"warning: {stage.name}, {check.name}: {problem}")


def _built(name: str, outcome: Outcome) -> BuiltAsset:
    manifest = outcome.manifest
    return BuiltAsset(name, manifest["num_rows"], outcome.num_processed, manifest["num_failed"], outcome.seconds)


def with_upstream(view: View, names: Sequence[str]) -> list[str]:
    """The named assets or groups and everything that they read, in build order.

    A checkpoint that was adopted reads nothing, so its predictions train nothing.

    Raises:
        ValueError: A name is unknown; the message lists the known ones.
    """
    stages = view.stages
    groups = {stage.group for stage in stages.values()}
    unknown = [name for name in names if name not in stages and name not in groups]
    if unknown:
        meant, known = did_you_mean(unknown[0], {*stages, *groups}), ", ".join(sorted({*stages, *groups}))
        raise ValueError(f"no asset or group {unknown[0]!r}{meant or ';'} there are: {known}")
    asked = [name for name, stage in stages.items() if name in names or stage.group in names]
    chosen = with_all_before(asked, lambda name: () if adopted(view, name) else stages[name].upstream)
    return [name for name in stages if name in chosen]
