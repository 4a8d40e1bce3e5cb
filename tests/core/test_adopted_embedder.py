"""Which embedder an adopted checkpoint was trained with: it is compared, by vectors, and its weights stay away."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tests.core.fake_corpus import FakeCorpus, Given, shape_corpus
from tests.core.test_hub import given_model
from tests.core.test_policy_checkpoints import write_released
from tests.core.tiny_models import tiny_embedder, tiny_policy, tiny_tokenizer
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.home.hub import adoption, embedder_check, remote
from vsr1_core.home.hub.adoption import adopt
from vsr1_core.home.hub.embedder_check import found_in, insertion_sentence
from vsr1_core.models.checkpoints import fetch_model, save_embedder, save_policy
from vsr1_core.models.qwen3_vl.embedder import Qwen3VLEmbedder
from vsr1_core.stages import base_models
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import in_order
from vsr1_core.stages.methods import TRAINED
from vsr1_core.stages.trained import trained_stage

HUB_ID = "VideoSearchR1/charades-stage2"
NAME = "Qwen/Qwen3-VL-Embedding-2B"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The dataset's embedder, the same weights in another precision and with another record, and another embedder."""
    folder = tmp_path_factory.mktemp("models")
    save_embedder(tiny_embedder(), folder / "embedder", {})
    half = tiny_embedder()
    half.model.bfloat16()
    save_embedder(half, folder / "same", {"other": "record"})
    save_embedder(tiny_embedder(seed=5), folder / "another", {})
    released = folder / "released"
    released.mkdir()
    write_released(released, embedder_size=48)
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def view(tmp_path: Path, models: dict[str, Path]) -> View:
    corpus: FakeCorpus = shape_corpus(tmp_path / "home", 4)
    rows = [given_model("embedder", models["embedder"], NAME), given_model("policy", models["embedder"])]
    given = Given(base_models.BaseModels(), rows)
    made = [trained_stage(TRAINED[name]) for name in ("sft_checkpoint", "grpo_checkpoint")]
    stages = in_order([*corpus.stages.values(), given, *made])
    opened = View(corpus.view.lake, DatasetEntry("toy", "toy"), corpus.config, stages)
    given.build(opened, Execution())
    return opened


@pytest.fixture
def pulled(tmp_path: Path, models: dict[str, Path]) -> Path:
    return Path(shutil.copytree(models["released"], tmp_path / "pulled"))


def put_embedder(pulled: Path, embedder: Path, *, weights: bool) -> None:
    ignored = None if weights else shutil.ignore_patterns("*.safetensors")
    shutil.copytree(embedder, pulled / "query_embedder", ignore=ignored)


def take(view: View, pulled: Path, source: str = HUB_ID) -> str:
    return "\n".join(adopt(view, "grpo_checkpoint", source, pulled, pulled / "train_oneturn.json").found)


@pytest.mark.slow
def test_the_same_embedder_is_recognised_by_its_vectors_in_any_precision(
    view: View, pulled: Path, models: dict[str, Path]
) -> None:
    put_embedder(pulled, models["same"], weights=True)
    assert f"Its query_embedder/ is the embedder {NAME}: the vectors of a few queries agree" in take(view, pulled)


def test_a_copy_without_a_tokenizer_is_read_with_that_of_the_dataset(
    view: View, pulled: Path, models: dict[str, Path]
) -> None:
    put_embedder(pulled, models["same"], weights=True)
    for path in (pulled / "query_embedder").glob("*token*"):
        path.unlink()
    assert "the vectors of a few queries agree" in take(view, pulled)


def test_a_copy_that_cannot_be_opened_is_named(view: View, pulled: Path) -> None:
    (pulled / "query_embedder").mkdir()
    (pulled / "query_embedder/config.json").write_text('{"model_type": "made-up"}')
    (pulled / "query_embedder/model.safetensors").write_bytes(b"")
    assert "was not compared with" in take(view, pulled)


def test_another_embedder_is_refused_with_both_names(view: View, pulled: Path, models: dict[str, Path]) -> None:
    put_embedder(pulled, models["another"], weights=True)
    with pytest.raises(ValueError, match=rf"embedder in {HUB_ID}/query_embedder, and toy searches with {NAME}"):
        take(view, pulled)
    assert not (view.files("grpo_checkpoint") / "adopted.json").exists()


def test_without_a_copy_of_the_embedder_it_is_said_that_it_is_assumed(view: View, pulled: Path) -> None:
    assert f"does not say which embedder it was trained with: {NAME} is assumed" in take(view, pulled)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Stands in for the hub: `hub(checksums, folder)` says what it lists, and returns what is downloaded from it."""

    def serve(checksums: set[str] | None, folder: Path | None = None) -> list[str]:
        fetched: list[str] = []

        class Hub(embedder_check.OwnEmbedder):
            def __init__(self, source: str, place: Path) -> None:
                super().__init__(source, place, listed, fetch)

        def listed(hub_id: str) -> set[str]:
            if checksums is None:
                raise OSError(f"the files of {hub_id} could not be listed")
            return checksums

        def fetch(hub_id: str) -> Path:
            fetched.append(hub_id)
            assert folder is not None
            return folder

        monkeypatch.setattr(adoption, "OwnEmbedder", Hub)
        return fetched

    return serve


def test_equal_checksums_on_the_hub_spare_the_download(
    view: View, pulled: Path, models: dict[str, Path], hub: Callable[..., list[str]]
) -> None:
    put_embedder(pulled, models["same"], weights=False)
    said = list(found_in(HUB_ID, pulled))
    assert said[0] == "The weights of its query_embedder/ were left on the hub: a dataset has its own embedder."
    assert f"The tokenizer of {HUB_ID}/query_embedder appends no end token" in said[1]
    fetched = hub({embedder_check._sha256(models["embedder"] / "model.safetensors")})
    assert "its weight files are the same, so they were not downloaded" in take(view, pulled)
    assert fetched == []


def test_other_files_on_the_hub_are_downloaded_and_compared(
    view: View, pulled: Path, models: dict[str, Path], hub: Callable[..., list[str]]
) -> None:
    put_embedder(pulled, models["same"], weights=False)
    fetched = hub({"0" * 64}, models["same"])
    assert "agree, with a cosine of at least" in take(view, pulled)
    assert fetched == [HUB_ID]
    hub({"0" * 64}, models["another"])
    with pytest.raises(ValueError, match="have a cosine of only"):
        take(view, pulled)


def test_without_the_hub_it_is_said_that_nothing_was_compared(
    view: View, pulled: Path, models: dict[str, Path], hub: Callable[..., list[str]]
) -> None:
    put_embedder(pulled, models["another"], weights=False)
    hub(None)
    assert "Its query_embedder/ was not compared with Qwen/Qwen3-VL-Embedding-2B: the files of" in take(view, pulled)


def test_a_name_that_differs_does_not_matter_where_the_vectors_agree(
    view: View, tmp_path: Path, models: dict[str, Path]
) -> None:
    save_policy(tiny_policy(embedder="another/name"), tmp_path / "policy", {})
    with pytest.raises(ValueError, match="trained with the embedder another/name"):
        adopt(view, "sft_checkpoint", "me/policy", tmp_path / "policy")
    put_embedder(tmp_path / "policy", models["same"], weights=True)
    assert "is the embedder" in adopt(view, "sft_checkpoint", "me/policy", tmp_path / "policy").found[0]


def test_the_configured_embedder_is_compared_where_nothing_is_built_yet(
    tmp_path: Path, pulled: Path, models: dict[str, Path], view: View
) -> None:
    recipe = dataclasses.replace(view.config.models, policy="", embedder=str(models["embedder"]))
    config = dataclasses.replace(view.config, models=recipe)
    stages = {**view.stages, "base_models": base_models.BaseModels()}
    fresh = View(type(view.lake)(tmp_path / "fresh"), view.entry, config, stages)
    put_embedder(pulled, models["same"], weights=True)
    assert f"is the embedder {models['embedder']}: the vectors" in take(fresh, pulled)


def test_a_pull_leaves_the_weights_of_the_embedder_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ["config.json", "model-00001-of-00002.safetensors", "query_embedder/config.json",
             "query_embedder/model.safetensors", "query_embedder/tokenizer.json", "training_args.bin"]  # fmt: skip
    asked: list[str] = []

    def snapshot_download(repo_id: str, revision: str | None, **patterns: Any) -> str:
        asked.extend(filter_repo_objects(files, **patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert fetch_model(HUB_ID) == tmp_path
    assert asked == ["config.json", "model-00001-of-00002.safetensors", "query_embedder/config.json",
                     "query_embedder/tokenizer.json"]  # fmt: skip
    asked.clear()
    remote.fetch_query_embedder(HUB_ID)
    assert asked == [name for name in files if name.startswith("query_embedder/")]


def test_the_insertion_place_is_said_and_a_tokenizer_without_an_end_token_is_named(
    tmp_path: Path, models: dict[str, Path]
) -> None:
    bare = insertion_sentence(given_model("embedder", models["embedder"], NAME))
    count = len(Qwen3VLEmbedder(None, tiny_tokenizer()).split_query("a ring").after)
    assert f"before its last {count} tokens: <|im_end|>\\n<|im_start|>assistant\\n" in bare
    assert f"The tokenizer of {NAME} appends no end token" in bare
    shutil.copytree(models["embedder"], tmp_path / "closed")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(models["embedder"])
    end = "<|endoftext|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.convert_tokens_to_ids(end))]
    )
    tokenizer.save_pretrained(tmp_path / "closed")
    closed = insertion_sentence(given_model("embedder", tmp_path / "closed", NAME))
    assert closed.endswith(f"before its last {count + 1} tokens: <|im_end|>\\n<|im_start|>assistant\\n<|endoftext|>")
