"""A model family is one folder: found by its checkpoint, known to no other file, and enough for all that searches.

Shown with an embedder that is not Qwen3-VL: a tiny X-CLIP embeds a (nano) dataset's queries and videos, and a tiny
Qwen3-VL policy searches, refines and learns with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import vsr1_core.models
from tests.core.tiny_models import TEXTS, write_published
from tests.core.tiny_xclip import D, E, write_xclip
from vsr1_core import configurations
from vsr1_core.datasets.registry import DatasetEntry, save_entry
from vsr1_core.models.checkpoints import load_embedder, load_policy
from vsr1_core.models.protocols import DecodeSettings
from vsr1_core.models.registry import families, family_of, model_size, policy_family_of, tiny_family
from vsr1_core.rows.files import write_json
from vsr1_core.search.episodes import EpisodeSettings, Searcher
from vsr1_core.search.index import read_index
from vsr1_core.search.turns import EpisodeQuery
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import open_view
from vsr1_core.stages.loading import durations_of, embedder_of, frame_store, one_row, policy_of, query_vectors

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("vsr1_core", "assets", "pipelines")
BASE = ("annotation_files", "raw_videos", "videos", "moments", "frame_tensors", "base_models")
SEARCH = ("query_embeddings", "video_embeddings", "video_index", "first_ranking", "hard_negatives")
TRAINING = ("top1_pool", "reasoning_traces", "sft_examples", "sft_checkpoint")


@pytest.mark.parametrize("family", families())
def test_no_file_outside_its_folder_knows_a_family_by_name(family: str) -> None:
    """Neither the folder's name nor that of a class of transformers. Configurations name models on the hub, as data."""
    own = REPOSITORY / "vsr1_core" / "models" / family
    files = [path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py") if own not in path.parents]
    assert len(files) > 100
    spellings = (f"models.{family}", f'"{family}"', f"models/{family}", family.replace("_", ""))
    knowing = [
        f"{path.relative_to(REPOSITORY)}: {line.strip()}"
        for path in files
        for line in path.read_text(encoding="utf-8").splitlines()
        if any(word in line.lower() for word in spellings)
    ]
    assert knowing == []


def test_every_family_says_which_checkpoints_it_opens() -> None:
    assert set(families()) >= {"qwen3_vl", "xclip"}
    types = [model_type for own in families().values() for model_type in own]
    assert len(types) == len(set(types)), "two families would open the same checkpoint"
    assert tiny_family().name == "qwen3_vl"


def test_a_model_of_no_family_is_refused_with_the_families_there_are(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": "bert"})
    with pytest.raises(ValueError, match=r"type 'bert', which no model family opens.*qwen3_vl.*xclip") as refusal:
        load_embedder(tmp_path)
    assert str(tmp_path) in str(refusal.value)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        family_of(tmp_path / "nothing")


def test_an_embedders_family_is_refused_as_a_policy(tmp_path: Path) -> None:
    write_xclip(tmp_path, TEXTS)
    for opens in (policy_family_of, load_policy):
        with pytest.raises(ValueError, match="xclip, which offers embedders only; policies are offered by: qwen3_vl"):
            opens(tmp_path)


def test_a_folder_beside_the_others_is_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "made_up"
    package.mkdir()
    (package / "__init__.py").write_text('MODEL_TYPES = ("made-up",)\n')
    (package / "family.py").write_text(
        "class MadeUp:\n"
        "    name = 'made_up'\n"
        "    def load_embedder(self, folder, device, dtype, instruction):\n        return 'its embedder'\n"
        "    def embedder_sizes(self, folder):\n        return 3, 4\n"
        "    def insertion_place(self, folder): ...\n"
        "    def model_size(self, folder):\n        return 'its size'\n"
        "    def published_size(self, model_id):\n        return None\n"
        "FAMILY = MadeUp()\n"
    )
    monkeypatch.setattr(vsr1_core.models, "__path__", [*vsr1_core.models.__path__, str(tmp_path)])
    write_json(tmp_path / "config.json", {"model_type": "made-up"})
    assert families()["made_up"] == ("made-up",)
    assert load_embedder(tmp_path) == "its embedder"
    assert family_of(tmp_path).embedder_sizes(tmp_path) == (3, 4)
    assert model_size(str(tmp_path)) == "its size"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A nano dataset whose embedder is the X-CLIP and whose policy a Qwen3-VL, built up to stage 1's checkpoint."""
    folder = tmp_path_factory.mktemp("home")
    xclip, qwen = write_xclip(folder / "xclip", TEXTS), write_published(folder / "policy")
    models = replace(configurations.NANO.models, policy=str(qwen), embedder=str(xclip))
    sft = replace(configurations.NANO.sft, steps=1)
    mixed = replace(configurations.NANO, name="mixed", models=models, sft=sft)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(configurations.CONFIGURATIONS, "mixed", mixed)
        save_entry(folder, DatasetEntry("nano", "toy", str(folder / "videos"), str(folder / "annotations"), "mixed"))
        for name in (*BASE, *SEARCH, *TRAINING):
            view = view_of(folder)
            outcome = view.stages[name].build(view, Execution(workers=1))
            assert outcome.num_failed == 0, name
        yield folder


def view_of(home: Path) -> View:
    return open_view(home, "nano")


@pytest.mark.slow
def test_queries_and_videos_are_embedded_by_the_family_of_the_folder(home: Path) -> None:
    view = view_of(home)
    embedder = embedder_of(view, Execution())
    assert (embedder.hidden_size, embedder.embedding_size) == (E, D)
    moments = view.rows("moments", ["query_id", "query"]).head(5)
    stored = dict(view.rows("query_embeddings", ["query_id", "vector"]).iter_rows())
    with torch.no_grad():
        expected = embedder.embed_queries(moments["query"].to_list())
    torch.testing.assert_close(torch.tensor([stored[i] for i in moments["query_id"]]), expected, atol=1e-5, rtol=1e-5)
    videos = np.array(view.rows("video_embeddings", ["vector"])["vector"].to_list())
    assert videos.shape == (36, D)
    assert np.abs(np.linalg.norm(videos, axis=1) - 1).max() < 1e-5
    assert len(np.unique(videos.round(6), axis=0)) == 36


@pytest.mark.slow
def test_the_first_ranking_is_by_its_vectors(home: Path) -> None:
    view = view_of(home)
    index = read_index(Path(one_row(view, "video_index", "test")["path"]))
    rows = view.rows("first_ranking").to_dicts()
    queries = dict(view.rows("query_embeddings", ["query_id", "vector"]).iter_rows())
    tested = [row for row in rows if row["split"] == "test"]
    assert len(tested) == 8
    ids, _ = index.search(np.array([queries[row["query_id"]] for row in tested], np.float32), 3)
    assert [row["top_video_ids"][:3] for row in tested] == ids


def searcher(view: View, asset: str, row_id: str) -> Searcher:
    policy, embedder = policy_of(view, Execution(), asset, row_id), embedder_of(view, Execution())
    return Searcher(
        policy=policy,
        embedder=embedder,
        index=read_index(Path(one_row(view, "video_index", "test")["path"])),
        features=frame_store(view, policy.encoder, Execution()),
        durations_s=durations_of(view),
        settings=EpisodeSettings(num_turns=2, decode=DecodeSettings(max_new_tokens=4, num_soft_tokens=3)),
        plain=query_vectors(view, embedder, Execution()),
    )


def test_a_policy_of_another_family_refines_its_queries(home: Path) -> None:
    view = view_of(home)
    search = searcher(view, "base_models", "policy")
    soft = search.policy.model.soft_query
    assert (soft.embedding_size, soft.embedder_hidden_size, soft.embedder_vector_size) == (D, E, D)
    assert search.policy.model.query_head is None, "the vectors have the corpus' size already"
    with torch.no_grad():  # fresh soft tokens are zero: no query would move
        torch.nn.init.normal_(search.policy.model.refine_projector[3].weight, std=1.0)
    [episode] = search.run([EpisodeQuery("q", "a red ring moves left", "none")])
    assert [len(z) for z in episode.latents] == [3, 3]
    assert episode.final_vector is not None
    assert episode.final_vector.shape == (D,)
    plain = search.embedder.embed_queries(["a red ring moves left"])[0]
    assert float((episode.final_vector - plain).abs().max()) > 1e-3
    with torch.no_grad():
        kept = search.policy.model.append_input(torch.cat(episode.latents))
        expected = search.embedder.embed_queries(["a red ring moves left"], [kept])[0]
    torch.testing.assert_close(episode.final_vector, expected)


def test_stage_1_learns_through_it(home: Path) -> None:
    view = view_of(home)
    row = one_row(view, "sft_checkpoint", "sft_checkpoint")
    losses = [p["value"] for p in row["curve"] if p["name"] == "retrieval_loss"]
    assert losses
    assert all(0 < value < math.inf for value in losses)
    assert load_policy(row["path"]).model.soft_query.embedder_vector_size == D
    before = policy_of(view, Execution(), "base_models", "policy")
    after = load_policy(row["path"])
    projector = [p.model.refine_projector[3].weight for p in (before, after)]
    assert not torch.equal(*projector), "only L_ret, through the frozen embedder, has a gradient for it"
