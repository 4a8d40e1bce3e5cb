"""`vsr1 doctor` for a dataset: what is missing is named with what to do, and the forecast is printed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines import doctor, doctor_build
from pipelines.cli import app
from pipelines.settings import Settings
from tests.chat_server import ChatServer, running
from vsr1_core.configurations import CONFIGURATIONS
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.home.capacity import Estimate
from vsr1_core.recipes import ModelRecipe

CONFIG = CONFIGURATIONS["qwen3-vl-2b"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VSR1_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("VSR1_TEACHER_URL", raising=False)
    return tmp_path


def findings(home: Path, entry: DatasetEntry | None) -> dict[str, doctor.Finding]:
    return {f.name: f for f in doctor_build.examine_build(Settings(home, "cpu"), CONFIG, entry)}


def test_what_a_real_dataset_lacks_is_named(home: Path) -> None:
    (home / "charades_fig_test.jsonl").write_text("{}\n")
    entry = DatasetEntry("charades", "verified", str(home / "videos"), str(home), CONFIG.name)
    found = findings(home, entry)
    assert "hf download Qwen/Qwen3-VL-2B-Instruct" in found["policy"].advice
    assert found["GPU"].level == "problem"
    assert "VSR1_TEACHER_URL" in found["teacher"].advice
    assert "vsr1 dataset show charades" in found["charades_fig_train.jsonl"].advice
    assert "has 1 rows, the published file has 3,720" in found["charades_fig_test.jsonl"].found
    assert found["videos"].level == "problem"


def test_without_annotations_the_videos_are_counted_all_the_same(home: Path) -> None:
    entry = DatasetEntry("charades", "verified", str(home / "videos"), str(home / "none"), CONFIG.name)
    found = findings(home, entry)
    assert "charades_fig_train.jsonl" in found["annotations"].found
    assert found["videos"].found.startswith("0 files in")


def test_a_teacher_is_asked_whether_it_is_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("VSR1_TEACHER_URL", "http://127.0.0.1:9/v1")
    assert "start the server" in findings(home, None)["teacher"].advice
    server = ChatServer()
    with running(server):
        monkeypatch.setenv("VSR1_TEACHER_URL", server.url)
        assert findings(home, None)["teacher"].level == "ok"


def test_what_a_local_model_folder_holds_is_said(home: Path, tmp_path: Path) -> None:
    from tests.core.tiny_models import tiny_embedder, tiny_policy
    from vsr1_core.models.checkpoints import save_embedder, save_policy

    save_embedder(tiny_embedder(), tmp_path / "embedder", {})
    save_policy(tiny_policy(), tmp_path / "policy", {})
    (tmp_path / "empty").mkdir()

    def of(policy: str, embedder: str) -> dict[str, doctor.Finding]:
        models = ModelRecipe(str(tmp_path / policy) if policy else "", str(tmp_path / embedder))
        config = dataclasses.replace(CONFIG, models=models)
        return {f.name: f for f in doctor_build.examine_build(Settings(home, "cpu"), config, None)}

    found = of("policy", "embedder")
    assert "qwen3_vl, a policy with 8 soft tokens" in found["policy"].found
    assert "3 layers, float32" in found["embedder"].found
    assert found["embedder"].level == "ok"
    assert "name the embedder" in of("embedder", "policy")["embedder"].advice
    alone = of("", "empty")
    assert "policy" not in alone
    assert alone["embedder"].level == "problem"
    assert alone["GPU"].level == "ok", "ranking needs no GPU"
    (tmp_path / "embedder" / "tokenizer.json").unlink()
    assert "tokenizer" in of("", "embedder")["embedder"].advice


def test_models_that_are_not_here_are_not_tried(home: Path) -> None:
    with pytest.raises(ValueError, match="random weights says docs/reproduce"):
        next(doctor_build.examine_trial(Settings(home, "cpu"), CONFIG))
    with pytest.raises(ValueError, match="published"):
        next(doctor_build.examine_trial(Settings(home, "cpu"), CONFIGURATIONS["tiny"]))


def test_more_than_the_disk_holds_is_a_problem(home: Path) -> None:
    small, large = (next(doctor_build.room(Settings(home), [Estimate("x", disk)])) for disk in (1.0, 1e18))
    assert small.level == "ok"
    assert "VSR1_HOME" in large.advice


def test_the_command_prints_a_forecast_with_what_it_stands_on(home: Path, shared_data: Path) -> None:
    runner = CliRunner()
    annotations = str(shared_data / "verified_fig")
    runner.invoke(app, ["dataset", "add", "charades", "--annotations", annotations, "--videos", str(home)])
    result = runner.invoke(app, ["doctor", "--config", "qwen3-vl-2b", "--dataset", "charades"])
    assert result.exit_code == 1, "there is no GPU and no video here"
    for words in ("6,671 of 6,671 annotated", "Forecast: charades with qwen3-vl-2b", "grpo_checkpoint", "not measured"):
        assert words in " ".join(result.output.split()), words
    assert runner.invoke(app, ["doctor", "--config", "huge"]).exit_code == 1
