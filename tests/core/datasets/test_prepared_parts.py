"""Prepared folders as scripts leave them: files elsewhere, files missing, more videos than annotations; own exports."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from tests.cheap_stages import cheap_stages
from tests.core.datasets.prepared_folder import SIZE, content, frames_meta, read_lines, write_json, write_lines
from tests.core.datasets.prepared_folder import write_prepared as write_published
from tests.core.datasets.prepared_home import DATA, TAKEN_IN, Home
from tests.core.fake_corpus import Given
from vsr1_core.configurations import NANO
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.home.adding import imported_entry
from vsr1_core.home.prepared.importing import import_prepared
from vsr1_core.home.prepared.training_files import TrainingPlaces
from vsr1_core.home.prepared.writing import export_prepared
from vsr1_core.models import checkpoints
from vsr1_core.rows.lake import Lake
from vsr1_core.stages.base import View
from vsr1_core.stages.base_models import BaseModels
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import all_stages
from vsr1_core.stages.loading import embedder_of

NEGATIVES, SFT, GRPO = "train/hard_negatives.json", "sft_data/train_oneturn.json", "grpo_data/train.minimal_top1.jsonl"
META = "test/video_npy_with_meta/meta.jsonl"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_published(tmp_path / "repo/data/charades-sta")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def tables(home: Home) -> dict[str, Any]:
    """The rows of every table, without what names the import."""
    left_out = {"path", "row_inputs"}
    return {n: {i: {k: v for k, v in r.items() if k not in left_out} for i, r in home.rows(n).items()} for n in DATA}


def move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)


def lay_out_from_scratch(folder: Path) -> None:
    """What their scripts 01 to 09 for Charades leave, with the data below the repository: two files elsewhere, and
    files of their own beside those that are published."""
    data = folder.parent
    move(folder / NEGATIVES, data / "structured/train/hard_negatives.charades.json")
    prompts = data / "verified_search/charades.train.minimal_top1_system_prompt.jsonl"
    move(folder / GRPO, prompts)
    move(folder / "grpo_data/stats.minimal_top1.json", prompts.parent / "stats.charades.minimal_top1.json")
    for split in ("train", "test", "val"):
        write_lines(folder / split / f"{split}_queries.jsonl", [{"qid": "0_fig"}])
        write_lines(folder / split / "corpus_segments.jsonl", [{"doc_id": "TRN00"}])
    for split in ("train", "test"):
        embedded = folder / split / "video_embedding_1fps"
        write_json(embedded / "config.json", {"embed_model": "Qwen/Qwen3-VL-Embedding-2B", "num_rows": 5})
        write_lines(embedded / "failed_docs.jsonl", [])
        write_lines(folder / split / "video_npy_with_meta/failed_videos.jsonl", [])
    write_lines(folder / "sft_data/top1_pool.train.jsonl", [{"qid": "0_fig"}])
    write_lines(folder / "sft_data/top1_reasoning_grounding.train.jsonl", [{"qid": "0_fig"}])


def test_a_folder_made_from_scratch_gives_the_rows_of_the_published_layout(
    tmp_path: Path, folder: Path, home: Home
) -> None:
    published = Home(tmp_path / "published")
    published.take(folder)
    expected = tables(published)
    lay_out_from_scratch(folder)
    summary = home.take(folder)
    assert summary.num_imported == summary.num_rows
    assert tables(home) == expected
    assert home.due() == {}
    assert home.view().imported.record["embedder"] == "Qwen/Qwen3-VL-Embedding-2B"  # type: ignore[union-attr]


def test_training_files_may_be_named(tmp_path: Path, folder: Path, home: Home) -> None:
    places = {}
    for name, path in (("hard_negatives", NEGATIVES), ("sft", SFT), ("grpo", GRPO)):
        places[name] = tmp_path / "elsewhere" / Path(path).name
        move(folder / path, places[name])
    summary = home.take(folder, named=TrainingPlaces(**places))
    assert set(summary.num_imported) == {*DATA}
    places["sft"].write_text("[")
    with pytest.raises(ValueError, match=f"{places['sft']}: is not valid JSON"):
        home.take(folder, named=TrainingPlaces(**places))


@pytest.mark.parametrize(
    "place", ["Charades_STA_Stage1_ColdStart.jsonl", "sft_data/Charades_STA_Stage1_ColdStart.jsonl"]
)
def test_rows_of_stage_1_are_read_from_their_jsonl_alias(tmp_path: Path, folder: Path, home: Home, place: str) -> None:
    home.take(folder)
    before = home.rows("sft_examples")
    rows = json.loads((folder / SFT).read_text())
    (folder / SFT).unlink()
    write_lines(folder / place, rows)
    other = Home(tmp_path / "other")
    other.take(folder)
    assert other.rows("sft_examples") == before


def test_without_hard_negatives_they_are_ranked_by_the_vectors_and_trained_on(folder: Path, home: Home) -> None:
    listed = json.loads((folder / NEGATIVES).read_text())
    (folder / NEGATIVES).unlink()
    summary = home.take(folder)
    assert any("hard_negatives.json: is not there; negatives are ranked" in note for note in summary.notes)
    assert "hard_negatives" not in summary.num_imported
    assert set(home.build()) == {"hard_negatives"}
    shared = {"A person sits down."}
    own = home.rows("hard_negatives")
    for query_id, row in home.rows("sft_examples").items():
        assert row["negative_ids"] == own[query_id]["video_ids"]
        if row["query"] not in shared:
            assert row["negative_ids"] == listed[query_id]


def test_without_any_training_file_what_is_there_is_imported(folder: Path, home: Home) -> None:
    for name in (NEGATIVES, SFT, GRPO):
        (folder / name).unlink()
    summary = home.take(folder)
    assert set(summary.num_imported) == {
        "videos",
        "frame_tensors",
        "query_embeddings",
        "video_embeddings",
        "video_index",
    }
    assert len([note for note in summary.notes if "is not there" in note]) == 3


def test_the_last_of_two_lines_about_one_video_counts(tmp_path: Path, folder: Path, home: Home) -> None:
    lines = read_lines(folder / META)
    video_id = lines[0]["video_id"]
    again = frames_meta(video_id, 6)
    np.save(folder / "test/video_npy_with_meta" / f"{video_id}.npy", np.zeros((6, 45, 80, 3), np.uint8))
    write_lines(folder / META, [*lines, again])
    home.take(folder)
    assert home.rows("frame_tensors")[video_id]["timestamps_s"] == again["sampled_timestamps_sec"]
    export_prepared(home.view(), tmp_path / "out")
    assert content(tmp_path / "out") == content(folder)


@pytest.mark.parametrize("lacks", ["array", "line"])
def test_one_missing_array_is_one_failed_row(tmp_path: Path, folder: Path, home: Home, lacks: str) -> None:
    if lacks == "array":
        (folder / "test/video_npy_with_meta/TST01.npy").unlink()
    else:
        write_lines(folder / META, [line for line in read_lines(folder / META) if line["video_id"] != "TST01"])
    summary = home.take(folder)
    assert any("1 videos lack an array or a line in meta.jsonl" in note for note in summary.notes)
    failed = {i: r["error"] for i, r in home.rows("videos").items() if r["status"] == "failed"}
    assert set(failed) == {"TST01"}
    assert "meta.jsonl" in failed["TST01"] or "TST01.npy is not there" in failed["TST01"]
    assert set(home.rows("frame_tensors")) == set(home.rows("video_embeddings")) == set(home.rows("videos")) - {"TST01"}
    assert home.rows("video_index")["test"]["num_videos"] == 2
    ranks = {i: r["rank"] for i, r in home.rows("first_ranking").items() if r["split"] == "test"}
    assert [i for i, rank in ranks.items() if rank is None] == [
        i for i, m in home.rows("moments").items() if m["video_id"] == "TST01" and m["split"] == "test"
    ]
    assert home.due() == {}
    export_prepared(home.view(), tmp_path / "out")
    again = Home(tmp_path / "again").take(tmp_path / "out")
    assert again.num_imported == again.num_rows


def test_a_video_without_frames_is_in_no_training_row(folder: Path, home: Home) -> None:
    """It has no embedding, which training would look up."""
    lost = json.loads((folder / SFT).read_text())[2]["meta"]["video_id"]
    (folder / f"train/video_npy_with_meta/{lost}.npy").unlink()
    home.take(folder)
    left = set(home.rows("video_embeddings"))
    assert lost not in left
    for asset, shown in (("sft_examples", "shown_video_id"), ("grpo_prompts", "retrieved_video_id")):
        rows = home.rows(asset).values()
        assert rows
        for row in rows:
            assert {row[shown], row["gt_video_id"], *row["negative_ids"]} <= left
            assert row["negative_scores"] is None or len(row["negative_scores"]) == len(row["negative_ids"])
    errors = [row["error"] for row in home.rows("reasoning_traces").values() if row["error"]]
    assert f"there are no frames of its video {lost}" in errors


def test_a_video_with_frames_and_no_vector_is_left_to_a_build(folder: Path, home: Home) -> None:
    """Its embedding failed: the frames are imported, and the build has one vector and one index to make."""
    embedded = folder / "test/video_embedding_1fps"
    rows = json.loads((embedded / "docid2row.json").read_text())
    last = next(v for v, row in rows.items() if row == len(rows) - 1)
    del rows[last]
    write_json(embedded / "docid2row.json", rows)
    np.save(embedded / "segment_embeds.npy", np.load(embedded / "segment_embeds.npy")[:-1])
    shutil.rmtree(folder / "test/index")
    home.take(folder)
    assert last in home.rows("frame_tensors")
    assert home.due()["video_embeddings"] == 1


def add_to_corpus(folder: Path, video_id: str, seed: int = 9) -> None:
    """Put a video into the test corpus: vector, index and frames."""
    test = folder / "test"
    vector = np.random.default_rng(seed).standard_normal((1, SIZE)).astype(np.float32)
    vector /= np.linalg.norm(vector)
    path = test / "video_embedding_1fps/segment_embeds.npy"
    np.save(path, np.concatenate([np.load(path), vector]))
    rows = json.loads((test / "video_embedding_1fps/docid2row.json").read_text())
    write_json(test / "video_embedding_1fps/docid2row.json", {**rows, video_id: len(rows)})
    index = faiss.read_index(str(test / "index/index.faiss"))
    index.add(vector)
    faiss.write_index(index, str(test / "index/index.faiss"))
    write_json(test / "index/id_map.json", [*json.loads((test / "index/id_map.json").read_text()), video_id])
    np.save(test / f"video_npy_with_meta/{video_id}.npy", np.full((4, 45, 80, 3), seed, np.uint8))
    write_lines(folder / META, [*read_lines(folder / META), frames_meta(video_id, 4)])


def test_a_corpus_has_videos_that_nobody_annotated(tmp_path: Path, folder: Path, home: Home) -> None:
    add_to_corpus(folder, "XTRA1")
    summary = home.take(folder)
    assert summary.num_imported == summary.num_rows
    assert home.rows("video_index")["test"]["num_videos"] == 4
    assert home.rows("videos")["XTRA1"]["splits"] == ["test"]
    assert any("XTRA1" in row["top_video_ids"] for row in home.rows("first_ranking").values())
    assert home.due() == {}
    export_prepared(home.view(), tmp_path / "out")
    assert content(tmp_path / "out") == content(folder)


@pytest.mark.parametrize("kind", ["missing", "other"])
def test_an_index_that_cannot_be_imported_is_built_from_the_vectors(folder: Path, home: Home, kind: str) -> None:
    if kind == "missing":
        shutil.rmtree(folder / "train/index")
    else:
        index = faiss.IndexHNSWFlat(SIZE, 4, faiss.METRIC_INNER_PRODUCT)
        index.add(np.eye(5, SIZE, dtype=np.float32))
        faiss.write_index(index, str(folder / "train/index/index.faiss"))
    summary = home.take(folder)
    assert any("the index is built" in note for note in summary.notes)
    assert (summary.num_imported["video_index"], home.rows("video_index")["train"]["num_videos"]) == (1, 5)
    assert home.due() == {}


def test_what_is_out_of_date_leaves_only_if_asked_for(tmp_path: Path, folder: Path, home: Home) -> None:
    home.take(folder)
    query_id = json.loads((folder / SFT).read_text())[0]["qid"]
    home.edit(query_id, fig_desc="Another text.")
    with pytest.raises(
        ValueError, match=r"out of date: a build would change moments \(1 rows\), query_embeddings \(1 r"
    ):
        export_prepared(home.view(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_prepared(home.view(), tmp_path / "out", stale=True)
    assert (tmp_path / "out" / SFT).is_file()


# ---- vectors of another embedder -----------------------------------------------------------------------------------


class Stub:
    """An embedder that makes the vectors that it was given, else others."""

    def __init__(self, vectors: dict[str, Any]) -> None:
        self.vectors = vectors

    def embed_queries(self, queries: Sequence[str]) -> torch.Tensor:
        rows = [self.vectors.get(query, [1.0] + [0.0] * (SIZE - 1)) for query in queries]
        return torch.nn.functional.normalize(torch.tensor(rows), dim=-1)


@pytest.fixture
def embeds(home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[dict[str, Any]], View]:
    """Gives the home an embedder; `base_models` is committed as a build would."""
    folder = tmp_path / "embedder-folder"
    folder.mkdir()
    write_json(folder / "config.json", {"dtype": "float32"})

    def give(vectors: dict[str, Any]) -> View:
        monkeypatch.setattr(checkpoints, "load_embedder", lambda *_, **__: Stub(vectors))
        row = {"model_id": "embedder", "path": str(folder), "digest": f"d{len(vectors)}", "source": "org/embedder"}
        view = home.view()
        given = Given(BaseModels(), [row])
        given.build(dataclasses.replace(view, stages={**view.stages, "base_models": given}), Execution())
        return home.view()

    return give


def one_vector_a_text(folder: Path) -> dict[str, Any]:
    """Query text -> its vector. The random vectors of queries that share a text differ, which those of a model do not:
    the files get the first one."""
    found: dict[str, Any] = {}
    for split in ("train", "test"):
        path = folder / split / f"query_embedding/query_embeddings.{split}.npy"
        lines = read_lines(folder / split / f"query_embedding/query_meta.{split}.jsonl")
        for line, vector in zip(lines, np.load(path), strict=True):
            found.setdefault(line["query"], vector)
        np.save(path, np.stack([found[line["query"]] for line in lines]))
    return {text: vector.tolist() for text, vector in found.items()}


def test_imported_vectors_are_compared_with_the_embedder_before_the_import(
    folder: Path, home: Home, embeds: Callable[[dict[str, Any]], View]
) -> None:
    vectors = one_vector_a_text(folder)
    lay_out_from_scratch(folder)
    embeds({})
    names = "made by Qwen/Qwen3-VL-Embedding-2B, and charades searches with org/embedder"
    with pytest.raises(ValueError, match=names):
        home.take(folder)
    assert home.view().imported is None
    embeds(vectors)
    summary = home.take(folder)
    assert "the vectors of 4 queries are those of the embedder org/embedder" in summary.notes


def test_imported_vectors_are_compared_when_an_embedder_is_opened_that_came_later(
    folder: Path, home: Home, embeds: Callable[[dict[str, Any]], View]
) -> None:
    vectors = one_vector_a_text(folder)
    summary = home.take(folder)
    assert any("compared with the dataset's embedder when it is opened" in note for note in summary.notes)
    view = embeds(vectors)
    assert isinstance(embedder_of(view, Execution()), Stub)
    with pytest.raises(ValueError, match=r"another embedder, .* cosine of only .* --without-vectors"):
        embedder_of(embeds({"other": []}), Execution())


def test_without_vectors_frames_and_training_files_are_imported_and_the_rest_is_made_here(
    tmp_path: Path, folder: Path, home: Home, embeds: Callable[[dict[str, Any]], View]
) -> None:
    embeds({})
    summary = home.take(folder, with_vectors=False)
    assert not {"query_embeddings", "video_embeddings", "video_index"} & set(summary.num_imported)
    assert summary.num_imported["frame_tensors"] == 8
    assert {"query_embeddings": 16, "video_embeddings": 8}.items() <= home.due().items()
    assert {"frame_tensors", "videos"}.isdisjoint(home.due())


# ---- exports of this project ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_export_of_a_toy_imports_under_another_name_and_leaves_again_unchanged(tmp_path: Path) -> None:
    config = dataclasses.replace(NANO, toy=dataclasses.replace(NANO.toy, num_train=4, num_val=1, num_test=2))
    toy = DatasetEntry("toy", "toy", str(tmp_path / "toy/videos"), str(tmp_path / "toy"), "nano")
    view = View(Lake(tmp_path / "toy/lake"), toy, config, cheap_stages(), home=tmp_path)
    made = [n for n, stage in view.stages.items() if stage.group not in ("evaluation",) and n != "grpo_checkpoint"]
    for name in made:
        view.stages[name].build(view, Execution(workers=1))
    assert export_prepared(view, tmp_path / "out") == []
    line = read_lines(tmp_path / "out" / GRPO)[0]
    assert {"hard_negative_ids", "gt_time", "gt_duration", "is_augmented"} <= set(line), (
        "else their stage 2 rewrites it"
    )
    stats = json.loads((tmp_path / "out/grpo_data/stats.minimal_top1.json").read_text())
    assert stats["rows_written"] == len(read_lines(tmp_path / "out" / GRPO))
    entry = imported_entry(tmp_path / "home", "copy", "nano", "")
    stages = {
        n: s for n, s in all_stages().items() if s.group not in ("evaluation", "checkpoints") or n == "base_models"
    }
    copy = View(Lake(tmp_path / "home/lake"), entry, config, stages, home=tmp_path / "home")
    summary = import_prepared(copy, tmp_path / "out", Execution(workers=1))
    assert summary.num_imported == summary.num_rows
    assert set(summary.num_rows) == {"videos", "video_index", *TAKEN_IN}
    export_prepared(copy, tmp_path / "again")
    assert content(tmp_path / "again") == content(tmp_path / "out")
