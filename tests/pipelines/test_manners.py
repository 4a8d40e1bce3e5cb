"""Small things that a person meets at the command line: versions, misspelt names, taken ports, short tables."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

import vsr1_core
from pipelines import show
from pipelines.cli import DG, app
from vsr1_core.configurations import NANO
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.home.building import BuiltAsset
from vsr1_core.recipes import Configuration, EvalRecipe
from vsr1_core.rows.increments import Plan
from vsr1_core.rows.lake import Lake
from vsr1_core.stages.base import View
from vsr1_core.stages.graph import StagePlan, all_stages


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VSR1_HOME", str(tmp_path))
    return tmp_path


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, " ".join(result.output.split())


def test_the_version_is_that_of_the_library() -> None:
    assert run("--version") == (0, f"vsr1 {vsr1_core.__version__}")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plan", "-d", "tpy"], "no dataset 'tpy'; did you mean 'toy'? known: activitynet"),
        (["plan", "-d", "zzz"], "no dataset 'zzz'; known: activitynet"),
        (["explain", "frame_tensor", "a"], "no asset 'frame_tensor'; did you mean 'frame_tensors'? there are:"),
        (["sql", "select 1", "-f", "jason"], "there is no format 'jason'; did you mean 'json'? use table"),
        (["serach", "x"], "Did you mean 'search'"),
        (["plan", "--datset", "toy"], "Did you mean '--dataset'"),
    ],
)
def test_a_misspelt_name_is_met_with_the_near_one(arguments: list[str], says: str) -> None:
    code, said = run(*arguments)
    assert code != 0
    assert says.lower() in said.replace("│ ", "").replace(" │", "").lower()


def test_the_ui_says_that_its_port_is_taken_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execve", lambda program, arguments, environ: started.append(arguments))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = run("ui", "--port", str(port))
    assert code == 1
    assert f"cannot listen on 127.0.0.1, port {port}" in said
    assert not started
    assert run("ui", "--port", "0")[0] == 0
    [[_, _, program, *arguments]] = started
    assert (program, arguments[0], arguments[-2]) == (DG, "dev", "--port")
    assert int(arguments[-1]) > 0, "the free port is chosen before Dagster starts"


def test_dagsters_command_line_takes_the_options_that_the_ui_gives_it() -> None:
    from dagster_dg_cli.cli import cli

    with cli.make_context("dg", ["dev", "-m", "pipelines.definitions", "--host", "::1", "--port", "1"]) as context:
        command = cli.get_command(context, "dev")
        assert command is not None
        command.make_context("dev", ["-w", "workspace.yaml", "--host", "::1", "--port", "1"], parent=context)


def view_of(tmp_path: Path, *methods: str) -> View:
    config: Configuration = NANO.__class__(**{**vars(NANO), "evaluation": EvalRecipe(methods=methods)})
    return View(Lake(tmp_path / "lake"), DatasetEntry("toy", "toy"), config, all_stages())


def test_tables_list_what_the_configured_methods_need_and_nothing_of_others(tmp_path: Path) -> None:
    view = view_of(tmp_path, "zero_shot", "sqr_sft+last_latents")
    shown = [name for name in view.stages if view.stages[name].concerns(view)]
    assert [name for name in shown if name.startswith(("predictions", "verification"))] == [
        "predictions.sqr_sft+last_latents",
        "predictions.zero_shot",
    ]
    assert {"hard_refine_examples", "hard_refine_checkpoint", "drop_above_positive_checkpoint"}.isdisjoint(shown)
    assert {"sft_checkpoint", "metrics", "report", "video_index"} <= set(shown)
    lines = [show.status_table(view), show.plan_table(view, [StagePlan(name, Plan()) for name in view.stages])]
    built = [BuiltAsset(name.replace("+", "_"), 0, 0, 0, 0.1) for name in view.stages]
    assert [table.row_count for table in [*lines, show.build_table(view, built)]] == [len(shown)] * 3


def test_rows_of_a_method_that_is_configured_no_more_are_still_listed(tmp_path: Path) -> None:
    view = view_of(tmp_path, "zero_shot")
    plans = [StagePlan("predictions.hard_refine", Plan(orphaned=("a",))), StagePlan("predictions.fine_tuned", Plan())]
    assert show.plan_table(view, plans).row_count == 1
    assert show.build_table(view, [BuiltAsset("predictions.hard_refine", 5, 0, 0, 0.1)]).row_count == 1
