"""The command line over three fake stages: what it prints, how it exits, and that it never shows a traceback."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from typer.testing import CliRunner, Result

import pipelines.definitions
import pipelines.resources
from pipelines.cli import app
from tests.command_line import use_stages
from tests.fakes import Squares, Total, fake_stages, write_numbers
from vsr1_core.home.warehouse_views import VIEWS
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.lease import hold
from vsr1_core.stages.base import Check
from vsr1_core.stages.graph import open_view


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_stages(monkeypatch, fake_stages, tmp_path)
    write_numbers(tmp_path, "toy", {"a": 1, "b": 2, "c": -3})
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def ok(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code != 0
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def counts(dataset: str = "toy") -> dict[str, Any]:
    return json.loads(ok("plan", "--dataset", dataset, "--json"))["assets"]


def test_help_shows_examples() -> None:
    out = ok("--help")
    assert "vsr1 build --dataset toy" in out
    for name in ("doctor", "dataset", "build", "plan", "explain", "status", "sql", "report", "search"):
        assert name in out


@pytest.mark.slow
def test_the_plan_says_beforehand_what_the_build_then_does(home: Path) -> None:
    assert counts() == {
        "numbers": {"new": 3, "stale": 0, "orphaned": 0, "failed": 0, "unchanged": 0},
        "squares": {"new": 3, "stale": 0, "orphaned": 0, "failed": 0, "unchanged": 0},
        "total": {"waits_for": "squares"},
    }
    out = ok("build", "--dataset", "toy")
    assert "squares" in out
    assert "1 rows failed" in out
    after = counts()
    assert after["squares"] == {"new": 0, "stale": 0, "orphaned": 0, "failed": 1, "unchanged": 2}
    assert after["total"]["unchanged"] == 2


@pytest.mark.slow
def test_the_plan_counts_due_rows_by_cause_and_explain_names_them(home: Path) -> None:
    ok("build")
    write_numbers(home, "toy", {"a": 5, "b": 2, "c": -3, "d": 4})
    assert json.loads(ok("plan", "--json"))["why"] == {
        "numbers": {"changed: line": 1, "new row": 1},
        "squares": {"changed: numbers": 1, "new row": 1},
    }
    assert "changed: line (1)" in ok("plan")
    explained = json.loads(ok("explain", "squares", "a", "--format", "json"))
    assert (explained["state"], explained["causes"]) == ("stale", ["changed: numbers"])
    assert "is negative" in ok("explain", "squares", "c")


def test_plan_status_and_list_write_nothing(home: Path) -> None:
    before = sorted(home.rglob("*"))
    for arguments in (
        ["plan"],
        ["explain", "numbers", "a"],
        ["status"],
        ["dataset", "list"],
        ["dataset", "show", "toy"],
    ):
        ok(*arguments)
    assert sorted(home.rglob("*")) == before


@pytest.mark.slow
def test_a_second_build_runs_nothing_and_failed_rows_only_when_asked(home: Path) -> None:
    from pipelines.instance import open_instance

    ok("build")
    again = run("build").output
    assert all(f"{name}: 0 rows processed" in again for name in fake_stages())
    assert "squares: 1 rows processed" in run("build", "--retry-failed").output
    with open_instance(home) as instance:
        last = instance.get_runs(limit=1)[0]
    assert last.tags["vsr1/retry_failed"] == "true"
    assert str(home) not in str(last.run_config), "a run that is repeated after a move reads the home of then"


def runs(home: Path) -> int:
    from pipelines.instance import open_instance

    with open_instance(home) as instance:
        return instance.get_runs_count()


def _forget_runs(home: Path) -> None:
    shutil.rmtree(home / "dagster" / "storage")
    shutil.rmtree(home / "dagster" / "history")


def _forget_views(home: Path) -> None:
    """As a run does that was stopped before its last step."""
    from pipelines.instance import open_instance

    with open_instance(home) as instance:
        instance.wipe_assets([dg.AssetKey("warehouse")])


def _leave_pending(home: Path) -> None:
    (open_view(home, "toy", fake_stages()).table("numbers").folder / "pending").mkdir()


CHANGES: dict[str, Callable[[Path], object]] = {
    "another value": lambda home: write_numbers(home, "toy", {"a": 1, "b": 5, "c": -3}),
    "a row less": lambda home: write_numbers(home, "toy", {"a": 1, "c": -3}),
    "a killed build": _leave_pending,
    "Dagster's storage is gone": _forget_runs,
    "Dagster knows no views": _forget_views,
    "a new version of the code": lambda home: setattr(Squares, "version", 2),
}


@pytest.mark.slow
def test_where_nothing_is_due_no_run_is_started_and_otherwise_one_is(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Squares, "version", 1)
    ok("build")
    (home / "vsr1.duckdb").unlink()
    num_runs = 1
    for name, change in CHANGES.items():
        ok("build")
        assert runs(home) == num_runs, f"before {name}"
        assert (home / "vsr1.duckdb").exists(), "the views are written again"
        change(home)
        num_runs = 1 if change is _forget_runs else num_runs + 1
        ok("build")
        assert runs(home) == num_runs, name


@pytest.mark.slow
def test_a_check_that_fails_stops_a_build_in_which_nothing_is_due(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ok("build")
    bad = Check("is_small", "The sum is small.", lambda view, name: "the sum is too large")
    monkeypatch.setattr(Total, "checks", (bad,))
    assert "the sum is too large" in refused("build")


@pytest.mark.slow
def test_a_broken_table_and_views_that_cannot_be_written_are_told_by_a_run(home: Path) -> None:
    ok("build")
    (home / "vsr1.duckdb").unlink()
    (home / "vsr1.duckdb").mkdir()
    assert "warehouse: " in refused("build")
    rows = open_view(home, "toy", fake_stages()).table("squares").files()
    assert rows is not None
    rows.newest.write_bytes(b"broken")
    result = run("build")
    assert isinstance(result.exception, SystemExit), "it is an error message, and no traceback"
    assert "squares: " in result.output
    assert runs(home) == 3


@pytest.mark.slow
def test_a_part_is_built_with_all_it_needs_and_no_more(home: Path) -> None:
    ok("build", "--assets", "squares")
    after = counts()
    assert after["numbers"]["unchanged"] == 3
    assert after["squares"]["unchanged"] == 2
    assert after["total"]["new"] == 2


@pytest.mark.slow
def test_a_group_can_be_named(home: Path) -> None:
    ok("build", "--assets", "sources")
    assert counts()["squares"]["new"] == 3
    assert counts()["numbers"]["unchanged"] == 3


@pytest.mark.slow
def test_a_stage_that_breaks_stops_the_build_with_its_reason(home: Path) -> None:
    (home / "data/toy/numbers.txt").write_text("a one\n")
    message = refused("build")
    assert "the build of toy stopped" in message
    assert "numbers: ValueError" in message
    assert "'one'" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "--dataset", "nope"], "no dataset 'nope'; known: activitynet"),
        (["build", "--assets", "nope"], "no asset or group 'nope'; there are:"),
        (["build", "--executor", "cloud"], "use in-process or multiprocess"),
        (["plan", "--dataset", "nope"], "no dataset 'nope'"),
        (["dataset", "add", "mine"], "give the folder of videos"),
        (["dataset", "add", "mine", "--videos", "/nowhere"], "is not there"),
        (["dataset", "add", "../x", "--toy"], "cannot be the name of a dataset"),
        (["dataset", "add", "mine", "--toy", "--config", "huge"], "no configuration 'huge'; there are: tiny"),
        (["dataset", "remove", "mine"], "there is no registered dataset"),
        (["sql", "select", "--format", "xml"], "use table, record, csv or json"),
        (["explain", "numbers", "nope"], "no row 'nope'; it has 3, e.g. a, b, c"),
        (["explain", "nope", "a"], "no asset 'nope'; there are: numbers"),
        (["explain", "numbers", "a", "--format", "xml"], "use tree or json"),
        (
            ["sql", "select * from nowhere"],
            "nowhere does not exist! The views are: builds, failures, lake",
        ),
    ],
)
def test_mistakes_are_explained_without_a_traceback(home: Path, arguments: list[str], message: str) -> None:
    assert message in refused(*arguments)


def test_a_folder_of_videos_is_checked_counted_and_registered(home: Path, tmp_path: Path) -> None:
    videos = tmp_path / "clips"
    videos.mkdir()
    assert "no video files in" in refused("dataset", "add", "mine", "--videos", str(videos))
    (videos / "a.mp4").touch()
    (videos / "b.webm").touch()
    out = ok("dataset", "add", "mine", "--videos", str(videos))
    assert "2 videos, no annotations, models from toy" in out
    assert "vsr1 build --dataset mine" in out
    assert "mine" in ok("dataset", "list")
    ok("dataset", "remove", "mine")
    assert "no dataset 'mine'" in refused("dataset", "show", "mine")
    assert (videos / "a.mp4").exists()


@pytest.mark.slow
def test_sql_answers_in_three_formats(home: Path) -> None:
    ok("build")
    query = "select asset, row_id, error from failures where dataset = 'toy'"
    assert "is negative" in ok("sql", query)
    assert json.loads(ok("sql", query, "--format", "json"))[0]["row_id"] == "c"
    rows = list(csv.DictReader(io.StringIO(ok("sql", query, "--format", "csv"))))
    assert [row["asset"] for row in rows] == ["squares"]


def test_sql_answers_with_every_type_or_says_which_it_cannot(home: Path) -> None:
    nested = "select ['x'::blob] as b, [date '2020-01-01'] as d"
    assert "2020-01-01" in ok("sql", nested, "--format", "csv")
    refused = CliRunner().invoke(app, ["sql", "select 1 as one, interval 1 day as length"])
    assert refused.exit_code == 1
    assert "write it as column::varchar: one INTEGER, length INTERVAL" in refused.stderr
    assert ok("sql", "select (interval 1 day)::varchar as length", "--format", "csv") == "length\n1 day\n"


def test_sql_without_a_query_lists_the_views(home: Path) -> None:
    views = json.loads(ok("sql", "--format", "json"))
    says = next(view.says for view in VIEWS if view.name == "failures")
    assert {"view": "failures", "holds": says, "columns": "dataset, asset, row_id, error"} in views


@pytest.mark.slow
def test_a_killed_build_is_marked_as_failed_and_gives_its_slots_back(home: Path) -> None:
    """Also one whose process id is alive again, as that of a container's first process is after a restart, and one of
    another container, which lost the lease of its dataset."""
    import dagster as dg

    from assets._runs import LEASE_TAG
    from pipelines.instance import HOST_TAG, PROCESS_TAG, close_dead_runs, open_instance, process_tags

    here = json.loads(process_tags()[PROCESS_TAG])
    cases = {
        "dead": {PROCESS_TAG: json.dumps({**here, "pid": 999999999})},
        "restarted": {PROCESS_TAG: json.dumps({**here, "started": "1"})},
        "replaced": {PROCESS_TAG: json.dumps({**here, "namespace": "pid:[1]"}), LEASE_TAG: "another"},
        "alive": {LEASE_TAG: "held"},
        "in another container": {PROCESS_TAG: json.dumps({**here, "namespace": "pid:[1]"}), LEASE_TAG: "held"},
        "on another machine": {PROCESS_TAG: json.dumps({**here, "host": "far"})},
    }
    job = pipelines.definitions.build_defs().resolve_job_def("whole_graph")
    with open_instance(home) as instance, hold(Lake(home / "lake").lease_folder("toy"), "vsr1 build", "held"):
        ids = {}
        for name, tags in cases.items():
            all_tags = {**process_tags(), "dagster/partition": "toy", **tags}
            run = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags=all_tags)
            assert HOST_TAG in run.tags
            ids[run.run_id] = name
        assert close_dead_runs(instance, home) == 3
        closed = {ids[run.run_id] for run in instance.get_runs() if run.status == dg.DagsterRunStatus.FAILURE}
    assert closed == {"dead", "restarted", "replaced"}


def test_a_later_process_with_the_number_of_a_killed_ui_is_not_it() -> None:
    from pipelines import instance

    assert instance._is_alive(os.getpid(), time.time())
    assert not instance._is_alive(os.getpid(), 0.0)


@pytest.mark.slow
def test_a_run_of_a_killed_ui_is_marked_as_failed_too(home: Path) -> None:
    import dagster as dg
    from dagster._core.events import EngineEventData
    from dagster._core.storage.tags import GRPC_INFO_TAG

    from pipelines.instance import close_dead_runs, open_instance

    def run_of(instance: dg.DagsterInstance, pid: int, host: str = "localhost") -> str:
        """As a code server leaves it: where the server is, and in the first event which process runs it."""
        job = pipelines.definitions.build_defs().resolve_job_def("whole_graph")
        tags = {GRPC_INFO_TAG: json.dumps({"host": host, "socket": "/nowhere"})}
        run = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags=tags)
        metadata = {"pid": dg.MetadataValue.text(str(pid))}
        instance.report_engine_event("Started process for run", run, EngineEventData(metadata))
        return run.run_id

    with open_instance(home) as instance:
        dead, alive = run_of(instance, 999999999), run_of(instance, os.getpid())
        elsewhere = run_of(instance, 999999999, host="another-host")
        assert close_dead_runs(instance, home) == 1
        statuses = {run.run_id: run.status for run in instance.get_runs()}
    assert statuses[dead] == dg.DagsterRunStatus.FAILURE
    assert statuses[alive] == statuses[elsewhere] == dg.DagsterRunStatus.STARTED
