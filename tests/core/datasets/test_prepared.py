"""Prepared data into the lake and out again: nothing is lost, nothing computed, and only what changed is made anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.core.datasets.prepared_folder import SYSTEM, VIDEOS, content, read_lines, write_lines, write_prepared
from tests.core.datasets.prepared_home import DATA, Home
from tests.core.tiny_models import small_config
from tests.videos import write_video
from vsr1_core.home.explain import explain
from vsr1_core.home.prepared import importing
from vsr1_core.home.prepared.writing import export_prepared
from vsr1_core.media.frame_store import read_frames
from vsr1_core.models.qwen3_vl.inputs import video_patches
from vsr1_core.rows import imported
from vsr1_core.rows.imported import current_import, forget_import
from vsr1_core.rows.lake import Lake
from vsr1_core.stages import embeddings
from vsr1_core.stages.base import Row, View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import all_stages, plan_graph
from vsr1_core.stages.loading import frames_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder and a home that imported it, to be copied to `place` beside it: an import knows its folder."""
    place = tmp_path_factory.mktemp("prepared") / "place"
    Home(place / "home").take(write_prepared(place / "charades-sta"))
    return place.rename(place.with_name("saved"))


@pytest.fixture
def place(saved: Path) -> Path:
    place = saved.with_name("place")
    shutil.rmtree(place, ignore_errors=True)
    return shutil.copytree(saved, place)


@pytest.fixture
def folder(place: Path) -> Path:
    return place / "charades-sta"


@pytest.fixture
def home(place: Path) -> Home:
    return Home(place / "home")


def test_an_import_comes_out_again_byte_for_byte(tmp_path: Path, folder: Path, home: Home) -> None:
    before = content(folder)
    assert export_prepared(home.view(), tmp_path / "out") == []
    after = content(tmp_path / "out")
    assert set(after) == set(before)
    assert {name for name in before if before[name] != after[name]} == set()


def test_after_an_import_nothing_is_due_and_the_plan_says_what_was_imported(home: Home) -> None:
    assert home.due() == {}
    counts = {p.asset: p.num_imported for p in plan_graph(home.view()) if p.num_imported}
    assert counts == {
        "videos": 8, "frame_tensors": 8, "query_embeddings": 16, "video_embeddings": 8, "video_index": 2,
        "hard_negatives": 10, "top1_pool": 6, "reasoning_traces": 6, "sft_examples": 5, "grpo_prompts": 10,
    }  # fmt: skip
    assert {name: c["unchanged"] + c["failed"] for name, c in home.plan().items()} == counts


def test_a_row_says_where_it_was_imported_from(folder: Path, home: Home) -> None:
    row = explain(home.view(), "video_embeddings", "TRN00")
    assert (row.source, row.state) == (str(folder), "unchanged")
    assert "imported" in [item.name for item in row.inputs]


def test_nothing_is_decoded_embedded_or_asked_for(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Iterator[dict[str, Any]]:
        raise AssertionError("a row was made that was given")

    for stage in all_stages().values():
        if stage.imports == "rows" or stage.name == "video_index":
            monkeypatch.setattr(type(stage), "make", refuse)
    summary = Home(tmp_path / "home").take(folder)
    assert summary.num_imported == summary.num_rows


def test_rows_hold_what_was_given(folder: Path, home: Home) -> None:
    meta = {m["video_id"]: m for m in read_lines(folder / "train/video_npy_with_meta/meta.jsonl")[:5]}
    for video_id, row in home.rows("frame_tensors").items():
        pixels = read_frames(row["path"])
        split = "train" if video_id in VIDEOS["train"] else "test"
        assert np.array_equal(pixels, np.load(folder / f"{split}/video_npy_with_meta/{video_id}.npy"))
        assert (row["splits"], row["duration_s"]) == ([split], 180.0)
        assert row["height"] % 32 == row["width"] % 32 == 0
        if video_id in meta:
            assert row["timestamps_s"] == meta[video_id]["sampled_timestamps_sec"]
            assert row["timestamps_s"][-1] > 179
    for row in home.rows("query_embeddings").values():
        assert np.linalg.norm(row["vector"]) == pytest.approx(1, abs=1e-6)
    moments, video = home.rows("moments"), home.rows("videos")["TRN00"]
    assert (video["status"], video["path"], video["fps"]) == ("ok", None, 30.0)
    assert (moments["1_fig"]["end_s"], moments["1_fig"]["clamped"]) == (180.0, True)


def test_each_prompt_is_the_query_it_was_made_for_though_ids_repeat_in_its_file(folder: Path, home: Home) -> None:
    lines = read_lines(folder / "grpo_data/train.minimal_top1.jsonl")
    assert len({line["qid"] for line in lines}) < len(lines) - 1
    rows = home.rows("grpo_prompts")
    assert len(rows) == 10
    by_span = {(r["query"], r["gt_video_id"], r["start_s"]): r for r in rows.values()}
    for line in lines[:-2]:
        row = by_span[line["query"], line["gt_video"], line["gt_time"][0]]
        assert row["query_id"] == f"{line['problem_id']}_fig"
        assert row["negative_ids"] == line["hard_negative_ids"]
        assert row["negative_scores"] == pytest.approx(line["hard_negative_scores"])


def test_conversations_become_rows_in_this_projects_form(folder: Path, home: Home) -> None:
    given = {r["qid"]: r for r in json.loads((folder / "sft_data/train_oneturn.json").read_text())}
    rows, traces = home.rows("sft_examples"), home.rows("reasoning_traces")
    for query_id, row in rows.items():
        is_match = given[query_id]["meta"]["gold_label"] == "pos"
        assert row["label"] == ("matched" if is_match else "not_matched")
        assert row["answer"].endswith("</end>" if is_match else "<answer>not_matched</answer> <REFINE>")
        assert row["shown_video_id"] == given[query_id]["meta"]["video_id"]
    failed = {i: r["error"] for i, r in traces.items() if r["status"] == "failed"}
    assert set(failed) == set(given) - set(rows)
    assert all("contradicts the label" in error for error in failed.values())
    imported = current_import(Lake(home.root / "lake"), "charades")
    assert imported is not None
    assert imported.record["system_prompts"] == [SYSTEM]


def test_models_are_shown_imported_frames_at_a_size_they_can_take(home: Home) -> None:
    row = home.rows("frame_tensors")["TRN00"]
    assert read_frames(row["path"]).shape[1:3] == (45, 80)
    frames = frames_of(row)
    patches = video_patches(frames.pixels, frames.timestamps_s, small_config())
    assert (patches.grid[1] * 8, patches.grid[2] * 8) == (row["height"], row["width"])
    assert patches.marks_s == tuple(np.mean(np.reshape(row["timestamps_s"], (-1, 2)), axis=1))


def test_queries_are_ranked_by_the_given_vectors(folder: Path, home: Home) -> None:
    negatives = json.loads((folder / "train/hard_negatives.json").read_text())
    for query_id, row in home.rows("first_ranking").items():
        if row["split"] == "train":
            assert [v for v in row["top_video_ids"] if v != row["gt_video_id"]] == negatives[query_id]
    for row in home.rows("hard_negatives").values():
        assert row["scores"] == sorted(row["scores"], reverse=True)


@pytest.mark.parametrize("change", [{"fig_desc": "Another text."}, {"time": [1.0, 33.0]}])
def test_a_changed_annotation_makes_only_that_row_stale(folder: Path, home: Home, change: dict[str, Any]) -> None:
    query_id = json.loads((folder / "sft_data/train_oneturn.json").read_text())[0]["qid"]
    home.edit(query_id, **change)
    ranked = {"query_embeddings": 1, "hard_negatives": 1, "grpo_prompts": 1}  # the pool is known once it is ranked
    told = {"reasoning_traces": 1, "sft_examples": 1, "grpo_prompts": 1}
    assert home.due() == (ranked if "fig_desc" in change else told)


class LocalEmbedder:
    """Stands in for the model that a changed query is embedded with."""

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        vector = np.eye(8, dtype=np.float32)[0].tolist()
        yield from ({"query_id": query_id, **row.known, "vector": vector} for query_id, row in rows.items())


def test_a_changed_text_redoes_that_query_through_to_both_training_files(
    tmp_path: Path, folder: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    sft = json.loads((folder / "sft_data/train_oneturn.json").read_text())
    query_id = sft[0]["qid"]
    home.edit(query_id, fig_desc="Another text.")
    monkeypatch.setattr(embeddings.QueryEmbeddings, "make", LocalEmbedder.make)
    processed = home.build()
    pool = set(processed) & {"top1_pool", "reasoning_traces", "sft_examples"}
    expected = {"annotation_files": 1, "moments": 1, "query_embeddings": 1, "first_ranking": 1, "hard_negatives": 1}
    assert processed == {**expected, "grpo_prompts": 1, **dict.fromkeys(pool, 1)}
    assert {"top1_pool", "reasoning_traces"} <= pool
    assert home.build() == {}
    export_prepared(home.view(), tmp_path / "out", stale=True)
    before, after = content(folder), content(tmp_path / "out")
    same = [row for row in after["sft_data/train_oneturn.json"] if row["qid"] != query_id]
    assert same == [row for row in before["sft_data/train_oneturn.json"] if row["qid"] != query_id]
    place = [m["qid"] for m in before["train/query_embedding/query_meta.train.jsonl"]].index(query_id)
    vectors = np.load(tmp_path / "out/train/query_embedding/query_embeddings.train.npy")
    given = np.load(folder / "train/query_embedding/query_embeddings.train.npy")
    assert vectors[place].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    assert np.array_equal(np.delete(vectors, place, 0), np.delete(given, place, 0))


def test_a_new_version_of_a_stage_leaves_given_rows_as_they_are(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("frame_tensors", "query_embeddings", "video_embeddings", "video_index", "reasoning_traces"):
        stage = type(home.view().stages[name])
        monkeypatch.setattr(stage, "version", stage.version + 1)
    assert home.due() == {}


def test_importing_again_changes_nothing_and_other_data_replace_the_rows(
    tmp_path: Path, folder: Path, home: Home
) -> None:
    versions = {name: home.view().table(name).manifest()["data_version"] for name in DATA}
    home.take(folder)
    assert {name: home.view().table(name).manifest()["data_version"] for name in DATA} == versions
    other = write_prepared(tmp_path / "other", seed=1)
    home.take(other)
    assert home.due() == {}
    assert len([p for p in (home.root / "lake/imported/charades").iterdir() if p.is_dir()]) == 1
    export_prepared(home.view(), tmp_path / "out")
    assert content(tmp_path / "out") == content(other)


def test_importing_other_documents_leaves_no_row_with_a_file_of_the_import_before(folder: Path, home: Home) -> None:
    """Frames and indexes are the same, so no row is due, and the folder that their files were in is removed."""
    before = {name: home.view().table(name).manifest()["data_version"] for name in WITH_FILES}
    prompts = folder / "grpo_data/train.minimal_top1.jsonl"
    write_lines(prompts, read_lines(prompts)[:-1])
    home.take(folder)
    assert home.due() == {}
    assert {name: home.view().table(name).manifest()["data_version"] for name in WITH_FILES} == before
    assert _missing_files(home) == []


WITH_FILES = ("frame_tensors", "video_index")


def _missing_files(home: Home) -> list[str]:
    """Rows whose file or folder is not there, and rows of a plan that would say so."""
    plan_graph(planned := home.view())
    frames = [view.rows(name) for name in WITH_FILES for view in (home.view(), planned)]
    return [path for frame in frames for path in frame["path"] if not Path(path).exists()]


def test_an_import_of_an_earlier_form_is_refused_and_can_be_repeated_or_forgotten(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows name the right video otherwise: taken as they are, they would lack it."""
    home = Home(tmp_path / "home")
    with monkeypatch.context() as patch:
        patch.setattr(imported, "FORM", 1)
        patch.setattr(importing, "FORM", 1)
        home.take(folder)
    with pytest.raises(ValueError, match=f"import it again: vsr1 import-prepared {folder} --dataset charades"):
        plan_graph(home.view())
    home.take(folder)
    assert home.due() == {}
    assert _missing_files(home) == []
    with monkeypatch.context() as patch:
        patch.setattr(imported, "FORM", 3)
        assert forget_import(Lake(home.root / "lake"), "charades")
        assert home.view().imported is None


def test_frames_outlive_the_folder_they_came_from(folder: Path, home: Home) -> None:
    row = home.rows("frame_tensors")["TRN00"]
    before = read_frames(row["path"]).copy()
    (folder / "train/video_npy_with_meta/TRN00.npy").unlink()
    assert np.array_equal(read_frames(row["path"]), before)


def test_an_import_that_was_killed_before_it_was_in_force_left_nothing(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "home")

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(importing, "put_in_force", die)
        with pytest.raises(KeyboardInterrupt):
            home.take(folder)
    assert home.view().imported is None
    assert not (home.root / "lake/tables").exists()
    home.take(folder)
    assert home.due() == {}


def test_an_import_that_was_killed_while_rows_were_taken_in_goes_on(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "home")
    with monkeypatch.context() as patch:
        patch.setattr(embeddings.QueryEmbeddings, "build", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            home.take(folder)
    assert home.due()["query_embeddings"] == 16
    home.take(folder)
    assert home.due() == {}


def test_a_forgotten_import_makes_every_given_row_due(home: Home) -> None:
    assert forget_import(Lake(home.root / "lake"), "charades")
    view = home.view()
    assert len(view.stages["videos"].due(view).stale) == 8
    assert len(view.stages["query_embeddings"].due(view).stale) == 16


def test_one_split_can_be_taken_alone(tmp_path: Path, folder: Path) -> None:
    home = Home(tmp_path / "home")
    (folder / "sft_data/train_oneturn.json").unlink()
    summary = home.take(folder, splits=["test"])
    assert summary.num_imported["query_embeddings"] == 6
    assert set(home.rows("frame_tensors")) == set(VIDEOS["test"])


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A dataset that was made here from videos, with vectors drawn at random."""
    home, folder = Home(tmp_path / "built"), write_prepared(tmp_path / "prepared")
    Path(home.entry.videos).mkdir(parents=True)
    for video_id in [v for ids in VIDEOS.values() for v in ids]:
        write_video(Path(home.entry.videos) / f"{video_id}.mp4", range(5))
    for split in VIDEOS:
        home.annotations.mkdir(exist_ok=True)
        shutil.copyfile(folder / f"raw_annotation/{split}.jsonl", home.annotations / f"charades_fig_{split}.jsonl")
    monkeypatch.setattr(embeddings.QueryEmbeddings, "make", LocalEmbedder.make)
    monkeypatch.setattr(embeddings.VideoEmbeddings, "make", random_vectors)
    home.build()
    return home


def random_vectors(_: Any, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
    for row in view.rows("frame_tensors").to_dicts():
        vector = np.random.default_rng(len(row["video_id"]) + ord(row["video_id"][-1])).standard_normal(8)
        vector /= np.linalg.norm(vector)
        yield {"video_id": row["video_id"], "splits": row["splits"], "vector": vector.tolist()}


def test_a_dataset_made_here_leaves_in_the_layout_and_can_be_taken_in_elsewhere(tmp_path: Path, built: Home) -> None:
    assert export_prepared(built.view(), tmp_path / "out", stale=True) == []
    assert set(content(tmp_path / "out")) == set(content(tmp_path / "prepared"))
    meta = read_lines(tmp_path / "out/test/video_npy_with_meta/meta.jsonl")[0]
    assert meta["sampled_timestamps_sec"] == built.rows("frame_tensors")[meta["video_id"]]["timestamps_s"]
    other = Home(tmp_path / "other")
    summary = other.take(tmp_path / "out")
    assert summary.num_imported == summary.num_rows
    for name in ("query_embeddings", "video_embeddings", "hard_negatives", "sft_examples", "grpo_prompts"):
        before, after = built.rows(name), other.rows(name)
        assert {i for i, row in before.items() if row["status"] == "ok"} == set(after), name
        for row_id, row in after.items():
            for column in set(row) - {"row_version", "row_inputs", "vector", "scores", "negative_scores"}:
                assert row[column] == before[row_id][column], (name, row_id, column)
            if "vector" in row:
                assert row["vector"] == pytest.approx(before[row_id]["vector"], abs=1e-6)


@pytest.mark.parametrize("made", ["home", "built"])
def test_datasets_opens_the_training_files_of_an_export(
    tmp_path: Path, made: str, request: pytest.FixtureRequest
) -> None:
    from datasets import load_dataset

    exported: Home = request.getfixturevalue(made)
    export_prepared(exported.view(), tmp_path / "out", stale=True)
    for name in ("sft_data/train_oneturn.json", "grpo_data/train.minimal_top1.jsonl"):
        path = tmp_path / "out" / name
        lines = json.loads(path.read_text()) if path.suffix == ".json" else read_lines(path)
        rows = load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
        assert rows.num_rows == len(lines)
        assert rows[0]["qid"] == lines[0]["qid"]


def test_what_is_not_built_is_left_out_and_named(tmp_path: Path, built: Home) -> None:
    shutil.rmtree(built.root / "lake/tables/sft_examples")
    assert export_prepared(built.view(), tmp_path / "out", stale=True) == ["sft_data/train_oneturn.json"]
    shutil.rmtree(built.root / "lake/tables/video_index")
    with pytest.raises(FileNotFoundError, match="vsr1 build --dataset charades --assets video_index"):
        export_prepared(built.view(), tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_an_export_never_touches_a_folder_that_holds_something(tmp_path: Path, home: Home) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        export_prepared(home.view(), tmp_path / "out")
    assert (tmp_path / "out/mine.txt").read_text() == "keep"
