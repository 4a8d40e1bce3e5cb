"""`vsr1 config ...`, and the configurations that `vsr1 dataset add` makes: what is written, said and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from tests.videos import write_video
from vsr1_core.configuration_files import load_configuration, own_names
from vsr1_core.configurations import QWEN3_VL_2B, TINY
from vsr1_core.datasets.registry import configuration_of, get_entry
from vsr1_core.settings import differences


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VSR1_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VSR1_WORKERS", "1")
    return tmp_path / "home"


@pytest.fixture
def clips(tmp_path: Path) -> list[str]:
    """The options of a folder with one annotated video."""
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clips/a.mp4", range(5))
    (tmp_path / "a.csv").write_text("video,start,end,query\na,0,4,one\n")
    return ["--videos", str(tmp_path / "clips"), "--annotations", str(tmp_path / "a.csv")]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return " ".join(result.output.replace("│", " ").replace("┃", " ").split())


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 1, result.output
    return " ".join(result.output.replace("│", " ").replace("┃", " ").split())


def test_a_configuration_of_ones_own_is_made_listed_shown_and_compared(home: Path) -> None:
    out = run(
        "config", "new", "longer", "--base", "nano", "--set", "sft.steps=500", "--set", "evaluation.splits=val,test"
    )
    assert f"Wrote {home / 'configurations/longer.toml'}" in out
    listed = run("config", "list")
    assert "tiny built in" in listed
    assert "longer nano" in listed
    assert "2" in listed.split(), "two settings differ"
    diff = run("config", "diff", "nano", "longer")
    assert "sft.steps 2 500" in diff
    assert "evaluation.splits test val, test" in diff
    assert run("config", "diff", "tiny", "tiny") == "tiny and tiny have the same settings."
    shown = CliRunner().invoke(app, ["config", "show", "longer"]).stdout
    assert "steps = 500  # 2 in nano" in shown
    (home / "configurations/copy.toml").write_text(shown)
    assert run("config", "diff", "longer", "copy") == "longer and copy have the same settings."


@pytest.mark.slow
def test_what_lists_configurations_lists_the_homes_own(home: Path, clips: list[str]) -> None:
    run("config", "new", "longer", "--set", "sft.steps=500")
    for command in (["doctor"], ["experiment"], ["dataset", "add"], ["config", "show"]):
        assert "longer" in run(*command, "--help")
    assert "there are: tiny, experiment, nano" in refused("config", "show", "x")
    assert "longer. To make your own: vsr1 config new NAME" in refused("dataset", "add", "m", *clips, "--config", "x")
    (home / "configurations/longer.toml").write_text('base = "tiny"\nsft.stepz = 5\n')
    doctor = CliRunner().invoke(app, ["doctor"]).output
    assert "sft.stepz" in " ".join(doctor.split())
    assert "line 2: sft.stepz is no setting" in refused("dataset", "add", "mine", *clips, "--config", "longer")
    assert "cannot be used" in run("config", "list")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "sft.stepz=5"], "sft.stepz is no setting; did you mean sft.steps?"),
        (["--set", "sft.steps"], "write KEY=VALUE"),
        (["--set", "pool.random_share=2"], "a number from 0 to 1, not 2"),
        (["--base", "tinny"], "did you mean tiny?"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_not_written(home: Path, arguments: list[str], message: str) -> None:
    assert message in refused("config", "new", "mine", *arguments)
    assert own_names(home) == []


def test_settings_on_a_dataset_make_a_configuration_of_its_name(home: Path, clips: list[str]) -> None:
    out = run("dataset", "add", "mine", *clips, "--set", "retrieval.index=hnsw")
    assert "Wrote the configuration mine, which is tiny with retrieval.index=hnsw" in out
    assert "First: vsr1 build --dataset toy (makes the models that mine uses)" in out
    assert "Next: vsr1 build --dataset mine (samples frames, uses the models of toy, embeds and indexes" in out
    assert "Then: vsr1 report --dataset mine" in out
    assert configuration_of(home, get_entry(home, "mine")).retrieval.index == "hnsw"
    again = refused("dataset", "add", "mine", *clips, "--config", "mine", "--set", "retrieval.top_k=5")
    assert "configuration mine exists already: edit" in again
    assert configuration_of(home, get_entry(home, "mine")).retrieval.top_k == TINY.retrieval.top_k
    assert "has no effect while the models of toy are used" in run(
        "dataset", "add", "o", *clips, "--set", "sft.steps=9"
    )


def test_a_dataset_that_is_refused_leaves_no_configuration(home: Path, clips: list[str]) -> None:
    assert "give the folder of videos" in refused("dataset", "add", "mine", "--set", "sft.steps=5")
    assert "names the models" in refused(
        "dataset", "add", "mine", *clips, "--config", "qwen3-vl-2b", "--models-from", "toy", "--set", "sft.steps=5"
    )
    assert own_names(home) == []


def test_models_are_named_on_the_command_line(home: Path, clips: list[str], tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    models = ["--policy", str(tmp_path / "clips/../policy"), "--embedder", "someone/embedder"]
    out = run("dataset", "add", "mine", *clips, *models)
    assert "loads the published models" in out
    entry = get_entry(home, "mine")
    assert (entry.models_from, entry.config) == ("", "mine")
    assert differences(QWEN3_VL_2B, load_configuration(home, "mine")) == {
        "models.policy": (QWEN3_VL_2B.models.policy, str(tmp_path / "policy")),
        "models.embedder": (QWEN3_VL_2B.models.embedder, "someone/embedder"),
    }
    assert "give only one of the two" in refused("dataset", "add", "m", *clips, *models, "--models-from", "toy")
    half = refused("dataset", "add", "m", *clips, "--config", "tiny", "--policy", "someone/policy")
    assert "cannot be used together" in half


def test_tiny_models_need_annotations_to_be_trained_on(home: Path, clips: list[str]) -> None:
    assert "has no annotations: give --annotations" in refused("dataset", "add", "m", *clips[:2], "--train-own")


@pytest.mark.slow
def test_a_dataset_whose_configuration_is_gone_says_so_and_hides_no_other(home: Path, clips: list[str]) -> None:
    run("dataset", "add", "mine", *clips, "--set", "retrieval.index=hnsw")
    (home / "configurations/mine.toml").unlink()
    assert "configuration of dataset 'mine' is missing: no configuration" in refused("plan", "--dataset", "mine")
    assert json.loads(CliRunner().invoke(app, ["plan", "--dataset", "toy", "--json"]).stdout)["assets"]
    assert "charades" in run("dataset", "list")
