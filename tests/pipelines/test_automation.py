"""The automation condition, tested by ticking it: what it requests, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest

from pipelines.automation import when_inputs_changed

PARTITIONS = dg.StaticPartitionsDefinition(["toy", "other"])


def graph(version: str = "1", source: str = "v1", broken: bool = False, check_passes: bool = True) -> dg.Definitions:
    """source -> made -> late; `made` keeps its data version whatever the source's is."""
    condition = when_inputs_changed()

    @dg.asset(partitions_def=PARTITIONS)
    def first() -> dg.MaterializeResult:
        return dg.MaterializeResult(data_version=dg.DataVersion(source))

    @dg.asset(deps=[first], partitions_def=PARTITIONS, automation_condition=condition, code_version=version)
    def made() -> dg.MaterializeResult:
        if broken:
            raise dg.Failure("broken")
        return dg.MaterializeResult(data_version=dg.DataVersion("always the same"))

    @dg.asset(deps=[made], partitions_def=PARTITIONS, automation_condition=condition)
    def late() -> dg.MaterializeResult:
        return dg.MaterializeResult(data_version=dg.DataVersion("late"))

    @dg.asset_check(asset=first, blocking=True, partitions_def=PARTITIONS)
    def holds() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=check_passes)

    return dg.Definitions(assets=[first, made, late], asset_checks=[holds])


class Ticker:
    """Evaluates the conditions and runs what they ask for, as the daemon would."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance, self.cursor = instance, None

    def tick(self, defs: dg.Definitions, run: bool = True) -> set[tuple[str, str]]:
        result: Any = dg.evaluate_automation_conditions(defs, self.instance, cursor=self.cursor)
        self.cursor = result.cursor
        asked = {
            (key.to_user_string(), partition)
            for key in (dg.AssetKey("made"), dg.AssetKey("late"))
            for partition in result.get_requested_partitions(key)
        }
        if run:
            for name, partition in sorted(asked, reverse=True):
                materialize(defs, self.instance, name, partition)
        return asked


def materialize(defs: dg.Definitions, instance: dg.DagsterInstance, name: str, partition: str = "toy") -> None:
    job = defs.resolve_implicit_global_asset_job_def()
    job.execute_in_process(
        instance=instance, partition_key=partition, asset_selection=[dg.AssetKey(name)], raise_on_error=False
    )


@pytest.fixture
def settled() -> Any:
    """A graph that was built once for `toy` and asks for nothing."""
    with dg.DagsterInstance.ephemeral() as instance:
        ticker, defs = Ticker(instance), graph()
        for name in ("first", "made", "late"):
            materialize(defs, instance, name)
        ticker.tick(defs)
        assert ticker.tick(defs) == set()
        yield ticker


def test_a_changed_source_runs_its_reader_once_and_nothing_behind_an_unchanged_version(settled: Ticker) -> None:
    defs = graph(source="v2")
    materialize(defs, settled.instance, "first")
    assert settled.tick(defs) == {("made", "toy")}
    assert settled.tick(defs) == set()
    assert settled.tick(defs) == set()


def test_an_unchanged_source_that_ran_again_runs_nothing(settled: Ticker) -> None:
    defs = graph()
    materialize(defs, settled.instance, "first")
    assert settled.tick(defs) == set()


def test_new_code_runs_its_own_asset(settled: Ticker) -> None:
    assert ("made", "toy") in settled.tick(graph(version="2"))


def test_a_failed_blocking_check_holds_the_graph_back(settled: Ticker) -> None:
    defs = graph(source="v2", check_passes=False)
    materialize(defs, settled.instance, "first")
    assert settled.tick(defs) == set()


def test_a_dataset_without_inputs_is_never_asked_for(settled: Ticker) -> None:
    assert all(partition == "toy" for _, partition in settled.tick(graph(version="2"), run=False))


def test_a_failing_asset_is_tried_once_more_and_then_left(settled: Ticker) -> None:
    materialize(graph(source="v2"), settled.instance, "first")
    defs = graph(source="v2", broken=True)
    assert [settled.tick(defs) for _ in range(4)] == [{("made", "toy")}, {("made", "toy")}, set(), set()]
