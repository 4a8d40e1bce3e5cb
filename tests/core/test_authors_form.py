"""A checkpoint as the authors' code reads it: the same weights under the spellings of transformers 4.57, and back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.core.test_hub import Home
from tests.core.test_policy_checkpoints import assert_same_weights
from tests.core.tiny_models import tiny_embedder, tiny_policy, write_published
from vsr1_core.home.hub.adoption import adopt
from vsr1_core.home.hub.checkpoints import _write_query_embedder, find_checkpoint, write_authors_folder
from vsr1_core.home.hub.remote import pull
from vsr1_core.home.staleness import require_current
from vsr1_core.input_form import AUTHORS
from vsr1_core.models.agreement import embedders_cosine
from vsr1_core.models.checkpoints import load_embedder, load_policy, save_embedder, save_policy
from vsr1_core.models.qwen3_vl.released_form import released_config, write_released_embedder
from vsr1_core.models.registry import policy_family_of
from vsr1_core.models.soft_query import checkpoint_kind
from vsr1_core.models.weights import digest_weights
from vsr1_core.rows.files import read_json, write_json
from vsr1_core.stages.adopted import adopted

TRAINING = ("video_index", "first_ranking", "hard_negatives", "top1_pool", "reasoning_traces", "sft_examples")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    digest = save_embedder(tiny_embedder(), folder / "embedder", {})
    compat: dict[str, Any] = {"accumulate": False, "seed_hidden": "pre_norm"}
    save_policy(tiny_policy(embedder=digest, system_prompt="Is it shown?", **compat), folder / "policy", {})
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def home(tmp_path: Path, models: dict[str, Path]) -> Home:
    made = Home(tmp_path / "home", models["embedder"])
    adopt(made.view, "sft_checkpoint", "me/policy", models["policy"])
    for asset in (*TRAINING, "sft_checkpoint"):
        made.build(asset)
    return made


@pytest.mark.slow
def test_a_checkpoint_goes_out_in_the_authors_form_and_comes_back_with_its_prompt(
    home: Home, models: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    differences = write_authors_folder(find_checkpoint(home.view, "sft_checkpoint"), out, "me/authors")
    assert checkpoint_kind(out) == "released"
    assert {"preprocessor_config.json", "video_preprocessor_config.json", "tokenizer.json", "README.md"} <= {
        path.name for path in out.iterdir()
    }
    assert set(load_file(out / "model.safetensors")) == set(load_file(models["policy"] / "model.safetensors"))
    source, pulled = pull(str(out))
    found = adopt(home.view, "grpo_checkpoint", source, pulled, out / "train_oneturn.json").found
    assert "query_embedder/ is the embedder" in found[0]
    assert "the vectors of a few queries agree" in found[0]
    back = adopted(home.view, "grpo_checkpoint")
    assert back is not None
    policy, before = load_policy(Path(back.path)), load_policy(models["policy"])
    assert_same_weights(policy, before)
    own, ours = policy.model.soft_query, before.model.soft_query
    assert dataclasses.replace(own, form=ours.form) == ours
    assert own.form == dataclasses.replace(AUTHORS, sft_prompt=ours.system_prompt)
    assert differences[0].startswith("Their modules have the size 2048, and will not load these: D = 48")
    assert not any("final norm" in sentence or "last turn" in sentence for sentence in differences)
    assert differences[-1] in (out / "README.md").read_text()


@pytest.mark.slow
def test_the_embedder_goes_out_with_the_policy_in_their_spelling(
    home: Home, models: dict[str, Path], tmp_path: Path
) -> None:
    write_authors_folder(find_checkpoint(home.view, "sft_checkpoint"), tmp_path / "out", "me/authors")
    own, out = models["embedder"], tmp_path / "out" / "query_embedder"
    assert (out / "model.safetensors").read_bytes() == (own / "model.safetensors").read_bytes()
    assert "rope_scaling" in read_json(out / "config.json")["text_config"]
    assert read_json(out / "tokenizer_config.json")["tokenizer_class"] == "Qwen2Tokenizer"
    assert read_json(out / "video_preprocessor_config.json")["patch_size"] == 8
    assert load_embedder(out).recorded == load_embedder(own).recorded
    assert embedders_cosine(out, own) > 1 - 1e-6


def test_the_training_file_of_an_adopted_checkpoint_keeps_the_prompt_that_stage_1_had(
    home: Home, tmp_path: Path
) -> None:
    """Searches ask with other words than stage 1 (`released.search_prompt`), and both belong to the checkpoint."""
    checkpoint = find_checkpoint(home.view, "sft_checkpoint")
    options = {**checkpoint.row["options"], "form": {"sft_prompt": "As stage 1 asks."}}
    changed = dataclasses.replace(checkpoint, row={**checkpoint.row, "options": options})
    write_authors_folder(changed, tmp_path / "out", "me/authors")
    rows = read_json(tmp_path / "out" / "train_oneturn.json")
    assert {row["messages"][0]["content"] for row in rows} == {"As stage 1 asks."}


def test_a_published_embedder_goes_out_as_it_is(tmp_path: Path) -> None:
    published, out = write_published(tmp_path / "published"), tmp_path / "out"
    config = read_json(published / "config.json")
    config["text_config"] = released_config(config)["text_config"]
    write_json(published / "config.json", config)
    out.mkdir()
    write_released_embedder(published, out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {p.name: p.read_bytes() for p in published.iterdir()}


def test_an_embedder_that_their_code_cannot_read_is_left_out_and_named(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": "xclip"})
    [said] = _write_query_embedder(tmp_path, tmp_path)
    assert said == "It has no query_embedder/, because their code reads no embedder of the family xclip."
    assert not (tmp_path / "query_embedder").exists()


def test_the_config_is_spelled_as_transformers_4_57_reads_it(models: dict[str, Path], tmp_path: Path) -> None:
    policy_family_of(models["policy"]).write_released_form(models["policy"], tmp_path, models["policy"])
    config = read_json(tmp_path / "config.json")
    text = config["text_config"]
    scaling = {"mrope_interleaved": True, "mrope_section": [2, 2, 2], "rope_type": "default"}
    assert (text["rope_scaling"], text["rope_theta"]) == (scaling, 10_000.0)
    assert "rope_parameters" not in text
    assert "rope_parameters" not in config["vision_config"]
    assert config["architectures"] == ["Qwen3VLForConditionalGeneration"]
    assert "soft_query" not in config
    assert read_json(tmp_path / "tokenizer_config.json")["tokenizer_class"] == "Qwen2Tokenizer"
    video = read_json(tmp_path / "video_preprocessor_config.json")
    assert (video["video_processor_type"], video["patch_size"]) == ("Qwen3VLVideoProcessor", 8)


def test_files_of_the_processor_are_those_of_the_base_policy_where_it_has_them(
    models: dict[str, Path], tmp_path: Path
) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    out.mkdir()
    write_json(base / "video_preprocessor_config.json", {"size": "as published"})
    (base / "merges.txt").write_text("a b\n")
    policy_family_of(models["policy"]).write_released_form(models["policy"], out, base)
    assert json.loads((out / "video_preprocessor_config.json").read_text()) == {"size": "as published"}
    assert (out / "merges.txt").read_text() == "a b\n"
    assert read_json(out / "preprocessor_config.json")["merge_size"] == 2


def test_what_their_code_does_otherwise_is_said(tmp_path: Path) -> None:
    save_policy(tiny_policy(num_soft_tokens=4), tmp_path / "policy", {})
    (tmp_path / "out").mkdir()
    said = policy_family_of(tmp_path / "policy").write_released_form(
        tmp_path / "policy", tmp_path / "out", tmp_path / "policy"
    )
    assert [sentence.split()[:3] for sentence in said[1:4]] == [
        ["Their", "code", "reads"], ["Their", "code", "gives"], ["Set", "REFINE_ROLLOUT_DEPTH=4,", "the"],
    ]  # fmt: skip


def test_what_is_no_policy_is_refused(home: Home, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="embedder is not a policy"):
        write_authors_folder(find_checkpoint(home.view, "embedder"), tmp_path / "out", "me/x")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_out_of_date_is_named(home: Home, models: dict[str, Path], tmp_path: Path) -> None:
    require_current(home.view, ["sft_checkpoint"])
    digest = digest_weights(models["embedder"])
    save_policy(tiny_policy(seed=4, embedder=digest), tmp_path / "newer", {})
    adopt(home.view, "sft_checkpoint", "me/newer", tmp_path / "newer")
    with pytest.raises(ValueError, match=r"a build would change sft_checkpoint \(1 rows\)"):
        require_current(home.view, ["sft_checkpoint"])
