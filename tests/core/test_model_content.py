"""What stands for a configured model in the version of its row: its content, wherever its folder is."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.core.test_embedder import with_end_of_text
from tests.core.test_policy_checkpoints import write_released
from tests.core.tiny_models import tiny_tokenizer, write_published
from vsr1_core.configurations import NANO
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.home.home import Home
from vsr1_core.home.model_source import model_source
from vsr1_core.models import checkpoints
from vsr1_core.models.checkpoints import load_embedder
from vsr1_core.recipes import ModelRecipe
from vsr1_core.rows.lake import Lake
from vsr1_core.stages.base import View
from vsr1_core.stages.base_models import BaseModels
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import all_stages


def view_of(home: Path, policy: str, embedder: str) -> View:
    config = dataclasses.replace(NANO, name="published", models=ModelRecipe(policy, embedder))
    entry = DatasetEntry("shown", "toy", str(home / "videos"), str(home))
    return View(Lake(home / "lake"), entry, config, all_stages(), home=home)


def build(view: View) -> Any:
    return BaseModels().build(view, Execution())


def rows(view: View) -> dict[str, dict[str, Any]]:
    fresh = View(view.lake, view.entry, view.config, view.stages, home=view.home)
    return {row["model_id"]: row for row in fresh.table("base_models").rows().to_dicts()}


def test_a_folder_that_moved_changes_the_path_and_other_content_changes_the_version(tmp_path: Path) -> None:
    models = write_published(tmp_path / "here")
    assert build(view_of(tmp_path, str(models), str(models))).manifest["num_ok"] == 2
    before = rows(view_of(tmp_path, str(models), str(models)))
    assert before["policy"]["options"]["form"]["video_wrapper"] == "published"
    moved = tmp_path / "there"
    shutil.move(models, moved)
    view = view_of(tmp_path, str(moved), str(moved))
    assert build(view).num_processed == 0
    after = rows(view)
    assert {row["path"] for row in after.values()} == {str(moved)}
    assert {i: r["row_version"] for i, r in after.items()} == {i: r["row_version"] for i, r in before.items()}
    (moved / "record.json").write_text("{}")  # a note about a model is no part of it
    assert build(view_of(tmp_path, str(moved), str(moved))).num_processed == 0
    tokenizer = moved / "tokenizer_config.json"
    tokenizer.write_text(json.dumps({**json.loads(tokenizer.read_text()), "added": 1}))
    assert build(view_of(tmp_path, str(moved), str(moved))).num_processed == 2


def test_a_folder_that_is_named_from_where_one_is_stays_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    models = write_published(tmp_path / "here" / "models")
    monkeypatch.chdir(tmp_path / "here")
    view = view_of(tmp_path, "./models", "./models")
    build(view)
    for row in rows(view).values():
        assert (row["path"], row["source"]) == (str(models), str(models)), "and not a folder of the home"


def test_a_name_without_a_revision_stays_at_what_was_fetched_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, asked = write_published(tmp_path / "snapshots" / "c0ffee"), list[str]()

    def fetch_model(name: str) -> Path:
        asked.append(name)
        return snapshot

    monkeypatch.setattr(checkpoints, "fetch_model", fetch_model)
    view = view_of(tmp_path, "me/policy", "me/embedder@abc")
    build(view)
    policy, embedder = rows(view)["policy"], rows(view)["embedder"]
    assert json.loads(policy["record"])["revision"] == "c0ffee"
    assert (policy["source"], embedder["source"]) == ("me/policy", "me/embedder")
    asked.clear()
    options = dataclasses.replace(view.config.models.options, num_soft_tokens=3)
    view.config = dataclasses.replace(view.config, models=dataclasses.replace(view.config.models, options=options))
    build(view)
    assert asked == ["me/policy@c0ffee"]


def test_a_tokenizer_without_an_end_token_is_named_once_in_a_build(tmp_path: Path, caplog: Any) -> None:
    models, said = write_published(tmp_path / "models"), list[str]()
    BaseModels().build(view_of(tmp_path, str(models), str(models)), Execution(log=said.append))
    assert [line for line in said if f"The tokenizer of {models} appends no end token" in line] == said
    assert len(said) == 1
    load_embedder(models)
    assert "end token" not in caplog.text
    with_end_of_text(tiny_tokenizer()).save_pretrained(models)
    BaseModels().build(view_of(tmp_path, str(models), str(models)), Execution(log=said.append))
    assert len(said) == 1


def test_a_policy_in_the_authors_form_is_no_base_policy_and_no_source_of_models(tmp_path: Path) -> None:
    """It has soft query modules and records no options: it must neither be started anew nor pass for zero-shot."""
    embedder = write_published(tmp_path / "models" / "embedder")
    (tmp_path / "models" / "policy").mkdir()
    write_released(tmp_path / "models" / "policy")
    home = Home(tmp_path / "home")
    with pytest.raises(ValueError, match="in the authors' form, which does not contain its prompt"):
        model_source(tmp_path / "models", home, None)
    source = model_source({"embedder": embedder, "policy": write_published(tmp_path / "plain")}, home, None)
    assert source.method is not None
    assert source.method.name == "zero_shot"
    with pytest.raises(ValueError, match="also name the embedder"):
        model_source({"embedder": tmp_path / "models" / "policy"}, home, None)
