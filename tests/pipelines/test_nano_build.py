"""The whole graph through the command line, at the smallest size: rendered videos to report, twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from pipelines.cli import app
from tests.nano_home import NanoBuild, copy_nano_home, rows_processed, vsr1
from vsr1_core.models.checkpoints import load_policy
from vsr1_core.models.weights import digest_weights
from vsr1_core.stages import launch as launching
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import all_stages, open_view
from vsr1_core.stages.model_folders import ModelStage
from vsr1_core.stages.trained import TrainedStage
from vsr1_core.training import sft

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NanoBuild]:
    found = copy_nano_home(tmp_path_factory, tmp_path_factory.mktemp("copy") / "home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VSR1_HOME", str(found.home))
        patch.setenv("VSR1_DEVICE", "cpu")
        yield found


@pytest.fixture
def home(built: NanoBuild) -> Path:
    return built.home


def test_every_stage_ran_and_none_failed_a_row(home: Path, built: NanoBuild) -> None:
    view = open_view(home, "toy")
    manifests = {name: view.table(name).manifest() for name in all_stages()}
    assert set(built.processed) == set(manifests)
    assert {name: m["num_failed"] for name, m in manifests.items() if m["num_failed"]} == {}
    for name in ("videos", "moments", "frame_tensors", "video_embeddings", "metrics", "report", "grpo_checkpoint"):
        assert manifests[name]["num_rows"] > 0, name


def test_what_was_planned_is_what_ran(built: NanoBuild) -> None:
    known = {name: c["new"] + c["stale"] for name, c in built.before.items() if "waits_for" not in c}
    assert {name: built.processed[name] for name in known} == known
    assert known["videos"] > 0


def test_after_a_build_nothing_is_due(built: NanoBuild) -> None:
    assert {n: c for n, c in built.after.items() if c["new"] or c["stale"] or c["orphaned"]} == {}


def test_a_copy_searches_and_answers_sql_when_the_home_is_gone(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied, hidden = tmp_path / "copied", tmp_path / "hidden"
    shutil.copytree(home, copied)
    home.rename(hidden)
    try:
        monkeypatch.setenv("VSR1_HOME", str(copied))
        assets = json.loads(vsr1("plan", "-d", "toy", "--json").stdout)["assets"]
        assert {n: c for n, c in assets.items() if c["new"] or c["stale"] or c["orphaned"]} == {}
        (hit, *_) = json.loads(vsr1("search", "a red circle", "-d", "toy", "--format", "json").stdout)["hits"]
        assert hit["path"].startswith(str(copied))
        assert "recall_at_1" in vsr1("sql", "select distinct metric from metrics").stdout
        assert str(copied) in vsr1("report", "-d", "toy").stdout
    finally:
        hidden.rename(home)


def test_a_second_build_redoes_no_row(built: NanoBuild) -> None:
    again = rows_processed(vsr1("build", "-d", "toy").output)
    assert set(again) == set(built.processed)
    assert set(again.values()) == {0}


def test_metrics_and_report_answer(home: Path) -> None:
    query = "select method, metric, value from metrics where dataset = 'toy' and metric = 'recall_at_10'"
    rows = json.loads(vsr1("sql", query, "--format", "json").stdout)
    assert {row["method"] for row in rows} >= {"zero_shot", "fine_tuned", "sqr_sft", "videosearch_r1"}
    out = vsr1("report", "-d", "toy").stdout
    assert "recall_at_10" in out
    path = Path("".join(out.split("Report:")[1].split()))
    assert path.is_file()


def test_what_stage_2_did_in_training_can_be_read(home: Path) -> None:
    query = "select sample, reward_total, e.query, t.turn, t.text from grpo_turns t join grpo_episodes e using "
    rows = json.loads(vsr1("sql", query + "(dataset, step, sample, query_id)", "--format", "json").stdout)
    assert {row["sample"] for row in rows} == {0, 1}
    assert {row["turn"] for row in rows} == {1, 2}
    assert all(row["query"] and row["reward_total"] is not None for row in rows)


def test_search_returns_ranked_videos(home: Path) -> None:
    out = vsr1("search", "a red circle moves left", "--dataset", "toy", "--top-k", "3").stdout
    assert "rank" in out


def test_a_run_in_several_processes_finds_the_same_tables(home: Path) -> None:
    out = vsr1("build", "-d", "toy", "--assets", "moments", "--executor", "multiprocess").stdout
    line = next(line for line in out.splitlines() if "moments" in line)
    assert [cell.strip() for cell in line.strip("│ ").split("│")][2] == "0"


def test_a_pushed_checkpoint_can_take_the_place_of_a_training(home: Path) -> None:
    out = home / "pushed"
    vsr1("push", "sft_checkpoint", "-d", "toy", "--to", "me/nano-sft", "--dry-run", str(out))
    assert "| test | sqr_sft | recall_at_1 |" in (out / "README.md").read_text()
    pulled = vsr1("pull", str(out), "-d", "toy", "--as", "grpo_checkpoint").output
    plan = json.loads(vsr1("plan", "-d", "toy", "--json").stdout)["assets"]
    Path("".join(pulled.split("delete")[1].split())).unlink()
    due = {name for name, counts in plan.items() if counts.get("stale")}
    assert {"grpo_checkpoint", "predictions.videosearch_r1"} <= due
    assert not {"sft_checkpoint", "predictions.sqr_sft"} & due
    assert json.loads(vsr1("plan", "-d", "toy", "--json").stdout)["assets"]["grpo_checkpoint"]["stale"] == 0


def test_tables_are_exported_for_others(home: Path) -> None:
    out = vsr1("export", str(home / "exported"), "-d", "toy", "--tables", "moments,sft_examples").output
    assert "sft_examples" in out
    assert sorted(path.name for path in (home / "exported" / "moments").iterdir()) == [
        "test.parquet", "train.parquet", "val.parquet",
    ]  # fmt: skip


def test_other_options_make_the_policy_anew_and_leave_the_embedder(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "home")
    view = open_view(tmp_path / "home", "toy")
    before = {row["model_id"]: row for row in view.rows("base_models").to_dicts()}
    options = replace(view.config.models.options, num_soft_tokens=3, seed=5)
    view.config = replace(view.config, models=replace(view.config.models, options=options))
    assert view.stages["base_models"].build(view, Execution()).num_processed == 1
    after = {row["model_id"]: row for row in view.rows("base_models").to_dicts()}
    assert after["embedder"] == before["embedder"]
    old, new = (load_policy(rows["policy"]["path"]).model for rows in (before, after))
    assert (old.soft_query.num_soft_tokens, new.soft_query.num_soft_tokens) == (8, 3)
    assert after["policy"]["options"]["num_soft_tokens"] == 3
    assert all(torch.equal(t, new.model.state_dict()[name]) for name, t in old.model.state_dict().items())
    assert not torch.equal(old.refine_projector[0].weight, new.refine_projector[0].weight)


@pytest.mark.long
def test_two_processes_train_a_checkpoint_and_one_writes_it(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "home")
    view, lines = open_view(tmp_path / "home", "toy"), list[str]()
    stage = view.stages["grpo_checkpoint"]
    assert isinstance(stage, TrainedStage)
    (row,) = stage.make(view, stage.plan(view), Execution(processes=3, log=lines.append))
    assert row["digest"] == digest_weights(Path(row["path"]))
    assert Path(row["path"]).is_relative_to(tmp_path)
    assert [p.name for p in view.files(stage.name).iterdir() if p.name.startswith(".")] == []
    assert any(point["name"].endswith("_loss") for point in row["curve"])
    assert "grpo_checkpoint: a step of 2 can be shared evenly by 2 processes, not by more" in lines


def test_as_many_processes_train_as_can_share_a_step(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage 1 in two processes is trained in `tests.core.test_processes`."""
    started = list[tuple[str, int]]()
    monkeypatch.setattr(launching, "launch", lambda _, asset, how: started.append((asset, how.processes)) or [])
    view, lines = open_view(home, "toy"), list[str]()
    stage = view.stages["sft_checkpoint"]
    assert isinstance(stage, TrainedStage)
    for processes in (2, 3, 4, 5):
        assert list(stage.make(view, stage.plan(view), Execution(processes=processes, log=lines.append))) == []
    assert started == [("sft_checkpoint", 2), ("sft_checkpoint", 2), ("sft_checkpoint", 4), ("sft_checkpoint", 4)]
    assert lines == [
        "sft_checkpoint: a step of 4 can be shared evenly by 2 processes, not by more",
        "sft_checkpoint: a step of 4 can be shared evenly by 4 processes, not by more",
    ]


def test_few_steps_are_trained_in_one_process(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view, trained = open_view(home, "toy"), list[tuple[str, int]]()
    monkeypatch.setattr(launching, "launch", lambda _, asset, how: trained.append((asset, how.processes)) or [])
    for name, num_steps in (("sft_checkpoint", 2), ("grpo_checkpoint", 1), ("base_models", 4)):
        stage = view.stages[name]
        assert isinstance(stage, ModelStage)
        assert stage.num_steps(view) == num_steps
        monkeypatch.setattr(stage, "train_here", lambda *_, name=name: trained.append((name, 1)) or [])
        for fewest in (num_steps, num_steps + 1):
            run = Execution(processes=2, min_shared_steps=fewest)
            assert list(stage.make(view, stage.own_rows(view), run)) == []
    assert trained == [
        ("sft_checkpoint", 2),
        ("sft_checkpoint", 1),
        ("grpo_checkpoint", 2),
        ("grpo_checkpoint", 1),
        ("base_models", 2),
        ("base_models", 1),
    ]


@pytest.mark.long
def test_a_build_that_broke_in_a_training_goes_on_from_its_state(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(home, tmp_path / "home")
    monkeypatch.setenv("VSR1_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VSR1_SAVE_STEPS", "1")
    monkeypatch.setattr(sft, "LOGGING_STEPS", 1)
    table = open_view(tmp_path / "home", "toy").table("sft_checkpoint")
    expected = table.rows().to_dicts()
    shutil.rmtree(table.folder)
    trainer = table.folder.parents[2] / "files/sft_checkpoint/toy/trainer"
    step = sft.RefineSFTTrainer.training_step

    def break_in_the_second(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step:
            raise RuntimeError("out of memory")
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(sft.RefineSFTTrainer, "training_step", break_in_the_second)
        broken = CliRunner().invoke(app, ["build", "-d", "toy", "--assets", "sft_checkpoint"])
    assert broken.exit_code == 1
    assert [path.name for path in trainer.glob("*/*")] == ["checkpoint-1"]
    output = vsr1("build", "-d", "toy", "--assets", "sft_checkpoint").output
    assert "toy/sft_checkpoint: continues from step 1" in output
    assert [row["digest"] for row in table.rows().to_dicts()] == [row["digest"] for row in expected]
    assert not trainer.exists()
