"""The Dagster side over three fake stages: materialising twice, checks, handles, definitions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets._factory import RETRY_TAG
from assets.handle import Handle
from pipelines.definitions import build_defs
from pipelines.io import claim_problem
from pipelines.settings import Settings
from tests.fakes import Squares, fake_stages, write_numbers
from tests.one_connection import instance_in_memory
from tests.ticker import workplace_of
from vsr1_core.stages.base import Check
from vsr1_core.stages.graph import open_view


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_numbers(tmp_path, "toy", {"a": 1, "b": 2, "c": 3})
    return tmp_path


@pytest.fixture
def instance() -> Any:
    with instance_in_memory() as instance:
        yield instance


def fake_defs(home: Path) -> dg.Definitions:
    workplace = workplace_of(fake_stages)(home=str(home), device="cpu")
    return build_defs(Settings(home, "cpu"), fake_stages(), {"workplace": workplace})


def build(
    home: Path, instance: dg.DagsterInstance, raise_on_error: bool = True, tags: Mapping[str, str] | None = None
) -> Any:
    job = fake_defs(home).resolve_job_def("whole_graph")
    names = [[name] for name in fake_stages()]
    return job.execute_in_process(
        instance=instance,
        partition_key="toy",
        asset_selection=[dg.AssetKey(name) for name in names],
        raise_on_error=raise_on_error,
        run_config={"loggers": {"progress": {}}},
        tags=tags,
    )


def metadata_of(result: Any) -> dict[str, Mapping[str, Any]]:
    return {
        event.asset_key.to_user_string(): {k: v.value for k, v in event.materialization.metadata.items()}
        for event in result.get_asset_materialization_events()
    }


def data_versions(instance: dg.DagsterInstance) -> dict[str, str]:
    found = {}
    for name in fake_stages():
        event = instance.get_latest_materialization_event(dg.AssetKey(name))
        assert event is not None
        assert event.asset_materialization is not None
        found[name] = event.asset_materialization.tags["dagster/data_version"]
    return found


@pytest.mark.slow
def test_a_second_run_processes_no_row_and_keeps_every_data_version(home: Path, instance: dg.DagsterInstance) -> None:
    first = metadata_of(build(home, instance))
    before = data_versions(instance)
    second = metadata_of(build(home, instance))
    assert {name: m["rows/processed"] for name, m in first.items()} == {"numbers": 3, "squares": 3, "total": 2}
    assert {name: m["rows/processed"] for name, m in second.items()} == {"numbers": 0, "squares": 0, "total": 0}
    assert data_versions(instance) == before


def test_the_data_version_in_dagster_is_that_of_the_table(home: Path, instance: dg.DagsterInstance) -> None:
    build(home, instance)
    view = open_view(home, "toy", fake_stages())
    assert data_versions(instance)["squares"] == view.table("squares").manifest()["data_version"]


def test_failed_rows_are_shown_and_do_not_stop_the_graph(home: Path, instance: dg.DagsterInstance) -> None:
    write_numbers(home, "toy", {"a": 1, "b": -2})
    result = build(home, instance)
    assert "-2 is negative" in metadata_of(result)["squares"]["failures"]
    outcome = {e.check_name: e for e in result.get_asset_check_evaluations() if e.asset_key == dg.AssetKey("squares")}
    assert not outcome["few_rows_failed"].passed
    assert outcome["few_rows_failed"].severity == dg.AssetCheckSeverity.WARN
    assert outcome["ids_are_sound"].passed
    assert result.success


@pytest.mark.slow
def test_failed_rows_run_again_only_when_asked(home: Path, instance: dg.DagsterInstance) -> None:
    write_numbers(home, "toy", {"a": -1})
    build(home, instance)
    assert metadata_of(build(home, instance))["squares"]["rows/processed"] == 0
    assert metadata_of(build(home, instance, tags={RETRY_TAG: "true"}))["squares"]["rows/processed"] == 1


def test_a_failed_blocking_check_stops_what_is_downstream(
    home: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = Check("never_holds", "Fails.", lambda view, asset: "because")
    monkeypatch.setattr(Squares, "checks", (bad,))
    result = build(home, instance, raise_on_error=False)
    assert not result.success
    assert "squares" in metadata_of(result)
    assert "total" not in metadata_of(result)


def test_datasets_do_not_disturb_each_other(home: Path, instance: dg.DagsterInstance) -> None:
    build(home, instance)
    job = fake_defs(home).resolve_job_def("whole_graph")
    keys = [dg.AssetKey(name) for name in fake_stages()]
    job.execute_in_process(instance=instance, partition_key="didemo", asset_selection=keys)
    assert open_view(home, "toy", fake_stages()).table("numbers").manifest()["num_rows"] == 3
    assert open_view(home, "didemo", fake_stages()).table("numbers").manifest()["num_rows"] == 0


def test_a_handle_record_is_json_that_a_person_can_read(home: Path, instance: dg.DagsterInstance) -> None:
    build(home, instance)
    record = json.loads((home / "lake/handles/numbers/toy.json").read_text())
    assert record == {"asset": "numbers", "dataset": "toy", "num_rows": 3, "data_version": record["data_version"]}


def test_loading_a_handle_refuses_a_table_that_vanished(home: Path, instance: dg.DagsterInstance) -> None:
    build(home, instance)
    table = open_view(home, "toy", fake_stages()).table("squares")
    table.rows_path.unlink()
    job = fake_defs(home).resolve_job_def("whole_graph")
    result = job.execute_in_process(
        instance=instance, partition_key="toy", asset_selection=[dg.AssetKey("total")], raise_on_error=False
    )
    assert not result.success
    errors = [str(e.event_specific_data.error) for e in result.all_events if e.is_step_failure]
    assert any(
        "rows_0000000001.parquet is gone" in e and "vsr1 build --dataset toy --assets squares" in e for e in errors
    )


def test_a_claim_about_another_version_is_refused(home: Path, instance: dg.DagsterInstance) -> None:
    build(home, instance)
    table = open_view(home, "toy", fake_stages()).table("squares")
    version = table.manifest()["data_version"]
    assert claim_problem(Handle("squares", "toy", version, 3), table) == ""
    assert "at version old" in claim_problem(Handle("squares", "toy", "old", 3), table)
    assert "says 4 rows" in claim_problem(Handle("squares", "toy", version, 4), table)


def test_an_input_that_was_never_built_is_named_with_its_command(home: Path, instance: dg.DagsterInstance) -> None:
    job = fake_defs(home).resolve_job_def("whole_graph")
    result = job.execute_in_process(
        instance=instance, partition_key="toy", asset_selection=[dg.AssetKey("total")], raise_on_error=False
    )
    errors = [str(e.event_specific_data.error) for e in result.all_events if e.is_step_failure]
    assert any("squares has not been built for 'toy'" in error for error in errors)


def test_an_added_dataset_is_a_partition_of_fresh_definitions(home: Path) -> None:
    from vsr1_core.datasets.registry import DatasetEntry, save_entry

    save_entry(home, DatasetEntry("mine", "folder", str(home)))
    keys = fake_defs(home).resolve_job_def("whole_graph").partitions_def
    assert keys is not None
    assert {"toy", "charades", "didemo", "activitynet", "mine"} == set(keys.get_partition_keys())


def test_definitions_are_valid_and_every_asset_shows_its_columns(home: Path) -> None:
    defs = fake_defs(home)
    dg.Definitions.validate_loadable(defs)
    graph = defs.resolve_asset_graph()
    assert graph.get(dg.AssetKey("squares")).group_name == "corpus"
    assert graph.get(dg.AssetKey("squares")).code_version == "1"
    assert {key.path[-1] for key in graph.materializable_asset_keys} == {*fake_stages(), "warehouse"}
    assert graph.get(dg.AssetKey("numbers")).parent_keys == {dg.AssetKey("numbers_on_disk")}
