"""Runs of the command line in the UI's timeline, which asks for the runs of each job of a code location."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dagster._cli.workspace.cli_target import WorkspaceOpts, workspace_opts_to_load_target
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import EmptyWorkspaceTarget
from dagster_graphql.schema import create_schema
from typer.testing import CliRunner

from pipelines import location
from pipelines.cli import app
from pipelines.instance import open_instance
from tests.command_line import use_stages
from tests.fakes import fake_stages, write_numbers

TIMELINE = """{
  runsOrError { ... on Runs { results {
    pipelineName status startTime
    repositoryOrigin { repositoryName repositoryLocationName }
  } } }
}"""


def runs_of(home: Path) -> list[dict[str, Any]]:
    """What the page of the timeline is told of all runs, the last one first. It leaves out those without an origin."""
    with open_instance(home) as instance, WorkspaceProcessContext(instance, EmptyWorkspaceTarget()) as process:
        answer = create_schema().execute(TIMELINE, context=process.create_request_context())
    assert answer.data is not None, answer.errors
    return list(answer.data["runsOrError"]["results"])


@pytest.mark.slow
def test_a_build_stands_under_its_job_of_the_code_location(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_stages(monkeypatch, fake_stages, tmp_path)
    write_numbers(tmp_path, "toy", {"a": 1})
    assert CliRunner().invoke(app, ["build", "--dataset", "toy"]).exit_code == 0
    (run,) = runs_of(tmp_path)
    assert (run["pipelineName"], run["status"]) == ("whole_graph", "SUCCESS")
    assert run["startTime"]
    assert run["repositoryOrigin"] == {"repositoryName": "__repository__", "repositoryLocationName": "videosearch_r1"}


@pytest.mark.parametrize("is_checkout", [True, False])
def test_the_name_of_the_code_location_is_the_one_that_the_ui_gives_it(
    is_checkout: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_checkout:
        monkeypatch.setattr(location, "WORKSPACE", tmp_path / "workspace.yaml")
    option, value = location.location_arguments()
    told = WorkspaceOpts(workspace=(value,)) if option == "-w" else WorkspaceOpts(module_name=(value,))
    (loaded,) = workspace_opts_to_load_target(told).create_origins()
    assert location.job_origin("corpus").location_name == loaded.location_name
