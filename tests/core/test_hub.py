"""Checkpoints and tables leave and come back whole: folders that load, cards that say how, names that resolve."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import create_autospec

import polars as pl
import pytest
from huggingface_hub import HfApi, ModelCard

from tests.core.fake_corpus import FakeCorpus, Given, shape_corpus
from tests.core.test_policy_checkpoints import assert_same_weights, write_released
from tests.core.tiny_models import tiny_embedder, tiny_policy
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.home.hub import remote, tables
from vsr1_core.home.hub.adoption import adopt
from vsr1_core.home.hub.checkpoints import find_checkpoint, write_checkpoint_folder
from vsr1_core.home.hub.tables import export_tables
from vsr1_core.input_form import AUTHORS
from vsr1_core.models.checkpoints import load_policy, save_embedder, save_policy
from vsr1_core.models.weights import digest_weights
from vsr1_core.stages import base_models, corpus, methods, predictions, reporting, trained
from vsr1_core.stages.base import Stage, View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import in_order

PROMPT = "Is the moment in this video?"
EMBEDDER = "Qwen/Qwen3-VL-Embedding-2B"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An embedder, a policy that names it by its digest, and one that names another."""
    folder = tmp_path_factory.mktemp("models")
    digest = save_embedder(tiny_embedder(), folder / "embedder", {})
    save_policy(tiny_policy(embedder=digest), folder / "policy", {"recipe": "r"})
    save_policy(tiny_policy(embedder="another"), folder / "foreign", {})
    return {path.name: path for path in folder.iterdir()}


def given_model(row_id: str, folder: Path, source: str | None = None) -> dict[str, Any]:
    return {"model_id": row_id, "path": str(folder), "digest": digest_weights(folder), "source": source}


def metric(method: str, name: str, value: float | None) -> dict[str, Any]:
    row = {"metric_id": f"test/{method}/{name}", "method": method, "metric": name, "value": value, "split": "test"}
    return row | {"low": value, "high": value, "num_queries": 12, "seed": 1}


class Home:
    """A view whose model and result tables are given; the trained stages are the real ones."""

    def __init__(self, folder: Path, embedder: Path, source: str | None = None) -> None:
        self.corpus: FakeCorpus = shape_corpus(folder, 4)
        self.given: list[Stage] = [
            Given(base_models.BaseModels(),
                  [given_model("embedder", embedder, source),
                   given_model("policy", embedder) | {"options": {"system_prompt": PROMPT}}]),
            Given(reporting.Metrics(), [metric("sqr_sft", "vcmr_0.5", 0.25), metric("fine_tuned", "vcmr_0.5", 0.5),
                                      metric("sqr_sft", "matched_recall", None)]),
            Given(corpus.AnnotationFiles(), [{"file_id": "a_test.jsonl", "digest": "d1d1"}]),
            *(Given(make(), [self._prediction()]) for make in predictions.STAGES),
        ]  # fmt: skip
        for stage in self.given:
            stage.build(self.view, Execution())

    @staticmethod
    def _prediction() -> dict[str, Any]:
        turns = [{"turn": 1, "video_id": "test_00", "score": 0.5, "text": "<think> x </think>"}]
        return {"query_id": "test_00_0_fig", "split": "test", "query": "q", "rank": 1, "turns": turns}

    @property
    def view(self) -> View:
        made = [trained.trained_stage(methods.TRAINED[name]) for name in ("sft_checkpoint", "grpo_checkpoint")]
        stages = in_order([*self.corpus.stages.values(), *self.given, *made])
        return View(self.corpus.view.lake, DatasetEntry("toy", "toy"), self.corpus.config, stages)

    def build(self, asset: str) -> Any:
        return self.view.stages[asset].build(self.view, Execution())


@pytest.fixture
def home(tmp_path: Path, models: dict[str, Path]) -> Home:
    return Home(tmp_path / "home", models["embedder"])


def test_a_checkpoint_from_elsewhere_stands_for_a_training_until_its_record_is_gone(
    home: Home, models: dict[str, Path]
) -> None:
    record = adopt(home.view, "sft_checkpoint", "me/policy", models["policy"]).record
    outcome = home.build("sft_checkpoint")
    assert outcome.num_processed == outcome.manifest["num_ok"] == 1
    row = home.view.rows("sft_checkpoint").to_dicts()[0]
    assert (row["path"], row["source"]) == (str(models["policy"]), "me/policy")
    assert row["digest"] == digest_weights(models["policy"])
    assert home.build("sft_checkpoint").num_processed == 0
    record.unlink()
    assert home.view.stages["sft_checkpoint"].due(home.view).stale == ("sft_checkpoint",)


def test_a_pushed_checkpoint_loads_again_by_its_path_and_says_how_it_was_made(
    home: Home, models: dict[str, Path], tmp_path: Path
) -> None:
    adopt(home.view, "sft_checkpoint", "me/policy", models["policy"])
    home.build("sft_checkpoint")
    out = tmp_path / "out"
    write_checkpoint_folder(find_checkpoint(home.view, "sft_checkpoint"), out, "me/nano-sft")
    assert_same_weights(load_policy(out), load_policy(models["policy"]))
    card = ModelCard.load(out / "README.md")
    assert [(r.metric_type, r.metric_value, r.dataset_split) for r in card.data.eval_results] == [
        ("vcmr_0.5", 0.25, "test")
    ]
    assert "| a_test.jsonl | d1d1 |" in card.text
    assert "| adopted | " + digest_weights(models["policy"]) in card.text
    assert '"recipe": "SFTRecipe"' in card.text
    texts = [path.read_text() for path in out.iterdir() if path.suffix != ".safetensors"]
    assert not any(str(tmp_path.parent) in text for text in texts), "a path of this machine went out"
    adopt(home.view, "grpo_checkpoint", *remote.pull(str(out)))
    assert home.build("grpo_checkpoint").manifest["num_ok"] == 1


def test_a_place_of_the_embedder_on_this_machine_goes_out_as_its_name(tmp_path: Path, models: dict[str, Path]) -> None:
    home = Home(tmp_path / "home", models["embedder"], EMBEDDER)
    save_policy(tiny_policy(embedder=str(models["embedder"])), tmp_path / "policy", {})
    adopt(home.view, "sft_checkpoint", "me/policy", tmp_path / "policy")
    home.build("sft_checkpoint")
    write_checkpoint_folder(find_checkpoint(home.view, "sft_checkpoint"), tmp_path / "out", "me/x")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["soft_query"]["embedder"] == EMBEDDER
    with pytest.raises(ValueError, match="nothing new to push"):
        write_checkpoint_folder(find_checkpoint(home.view, "embedder"), tmp_path / "embedder", "me/y")
    with pytest.raises(LookupError, match="no checkpoint 'grpo'; it has: embedder, policy, sft_checkpoint"):
        find_checkpoint(home.view, "grpo")


def test_a_released_checkpoint_is_taken_with_the_prompt_of_its_training_file(
    tmp_path: Path, models: dict[str, Path]
) -> None:
    home = Home(tmp_path / "home", models["embedder"], EMBEDDER)
    released = tmp_path / "released"
    released.mkdir()
    write_released(released, embedder_size=48)
    with pytest.raises(ValueError, match="--training-file"):
        adopt(home.view, "grpo_checkpoint", "VideoSearchR1/x", released)
    adopt(home.view, "grpo_checkpoint", "VideoSearchR1/x", released, released / "train_oneturn.json")
    home.build("grpo_checkpoint")
    policy = load_policy(home.view.rows("grpo_checkpoint")["path"][0])
    assert policy.model.soft_query.system_prompt == "Is it shown? End with <REFINE>."
    assert policy.model.soft_query.embedder == EMBEDDER
    prompt = "Is it shown? End with <REFINE>."
    assert home.view.rows("grpo_checkpoint")["options"][0]["form"] == asdict(replace(AUTHORS, sft_prompt=prompt))
    write_released(released, embedder_size=56)
    with pytest.raises(ValueError, match="embedders of size 56, not 48"):
        adopt(home.view, "grpo_checkpoint", "VideoSearchR1/x", released, released / "train_oneturn.json")


def test_what_cannot_stand_for_a_training_is_refused(home: Home, models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="trained with the embedder another"):
        adopt(home.view, "sft_checkpoint", "me/foreign", models["foreign"])
    with pytest.raises(ValueError, match="it is a base model"):
        adopt(home.view, "sft_checkpoint", "me/base", models["embedder"])
    with pytest.raises(ValueError, match="use one of sft_checkpoint, grpo_checkpoint"):
        adopt(home.view, "metrics", "me/policy", models["policy"])


def test_names_resolve_to_both_spellings_of_a_released_checkpoint(tmp_path: Path) -> None:
    assert remote.hub_ids("charades-sft") == remote.hub_ids("charades-stage1")
    assert remote.hub_ids("didemo-grpo") == ["VideoSearchR1/didemo-stage2", "VideoSearchR1/didemo-grpo"]
    assert remote.hub_ids("VideoSearchR1/charades-stage2") == ["VideoSearchR1/charades-stage2"]
    for name in ("charades-sta-stage2", "Charades_STA-grpo", "charades_fig_stage2", "CHARADES-stage2"):
        assert remote.hub_ids(name) == remote.hub_ids("charades-grpo"), name
    assert remote.hub_ids("DiDeMo-FIG-sft") == remote.hub_ids("didemo-stage1")
    assert remote.hub_ids("ActivityNet-stage1") == ["VideoSearchR1/activitynet-stage1", "VideoSearchR1/activitynet-sft"]
    with pytest.raises(ValueError, match="charades-sft, charades-grpo"):
        remote.hub_ids("charades")
    with pytest.raises(ValueError, match="'msrvtt-sft' is neither"):
        remote.hub_ids("msrvtt-sft")

    def fetch(hub_id: str) -> Path:
        if not hub_id.endswith("-sft"):
            raise OSError(f"no {hub_id}")
        return tmp_path

    assert remote.pull("charades-stage1", fetch) == ("VideoSearchR1/charades-sft", tmp_path)
    with pytest.raises(OSError, match="no VideoSearchR1/charades-stage2; no VideoSearchR1/charades-grpo"):
        remote.pull("charades-grpo", fetch)


@pytest.mark.parametrize("public", [False, True])
def test_a_push_makes_the_repository_and_uploads_one_folder(tmp_path: Path, public: bool) -> None:
    api = create_autospec(HfApi, instance=True)
    api.create_repo.return_value = "https://hub/me/x"
    assert remote.push(tmp_path, "me/x", "dataset", public=public, api=api) == "https://hub/me/x"
    api.create_repo.assert_called_once_with("me/x", repo_type="dataset", private=not public, exist_ok=True)
    api.upload_folder.assert_called_once_with(
        repo_id="me/x", repo_type="dataset", folder_path=tmp_path, commit_message="Upload x"
    )
    with pytest.raises(ValueError, match="not a name on the hub"):
        remote.push(tmp_path, "x", api=api)


def test_datasets_opens_what_is_exported(home: Home, tmp_path: Path) -> None:
    from datasets import load_dataset

    for asset in ("video_index", "first_ranking", "hard_negatives", "top1_pool", "reasoning_traces", "sft_examples"):
        home.build(asset)
    home.build("grpo_prompts")
    folder = tmp_path / "out"
    written = export_tables(home.view, folder)
    assert set(written) == {"moments", "predictions", "metrics", "sft_examples", "grpo_prompts"}

    def opened(name: str, split: str) -> Any:
        return load_dataset(str(folder), name, split=split, cache_dir=str(tmp_path / "cache"))

    for name, splits in written.items():
        assert {split: opened(name, split).num_rows for split in splits} == splits
    assert written["moments"] == {"train": 8, "test": 12}
    assert set(opened("moments", "test").column_names) >= {"query_id", "query", "video_id", "start_s", "end_s"}
    sft = opened("sft_examples", "train")[0]
    assert [m["role"] for m in sft["messages"]] == ["system", "user", "assistant"]
    assert sft["messages"][0]["content"] == PROMPT
    assert sft["meta"]["gold_label"] in ("pos", "neg")
    searched = list(methods.ALL)
    answers = opened("predictions", "test")
    assert sorted(answers["method"]) == sorted(searched)
    assert answers[0]["turns"][0]["text"] == "<think> x </think>"
    with pytest.raises(FileExistsError, match="not empty"):
        export_tables(home.view, folder)
    with pytest.raises(ValueError, match="no table videos to export"):
        export_tables(home.view, tmp_path / "more", ["videos"])


def test_a_split_of_the_annotations_never_names_a_place_outside_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {"../../../outside": pl.DataFrame({"query_id": ["1"]})}
    monkeypatch.setattr(tables, "TABLES", {"moments": ("Says.", lambda view: rows)})
    with pytest.raises(ValueError, match="cannot be the name of a split"):
        export_tables(cast(View, None), tmp_path / "a" / "out")
    assert list(tmp_path.rglob("*")) == []
