"""Frames kept as arrays or as JPEGs in a home: who gets which, what a change makes again, and that both stand beside
each other."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.cheap_stages import cheap_stages
from tests.core.tiny_models import tiny_embedder, tiny_policy
from tests.small_world import SmallWorld, build, fill, plans
from vsr1_core.configuration_files import write_configuration
from vsr1_core.configurations import CONFIGURATIONS, NANO
from vsr1_core.datasets.registry import (
    DatasetEntry,
    builtin_entries,
    configuration_of,
    get_entry,
    own_configuration,
    save_entry,
)
from vsr1_core.home.adding import Wanted, borrowed, entry_of, frames_of, next_steps, with_frame_store
from vsr1_core.home.prepared.writing import _bring_frames
from vsr1_core.home.unused import DAY_S, unused_files
from vsr1_core.media.frame_store import read_frames
from vsr1_core.media.jpeg_archive import SUFFIX
from vsr1_core.models.batches import Budget
from vsr1_core.reasoning.evidence import chosen_frames
from vsr1_core.reasoning.tasks import StoredFrames
from vsr1_core.recipes import Configuration
from vsr1_core.rows.lake import Lake
from vsr1_core.serve.media import thumbnail
from vsr1_core.settings import nested
from vsr1_core.stages.base import Stage, View
from vsr1_core.stages.embeddings import VideoEmbeddings
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import open_view
from vsr1_core.stages.loading import frame_store, frames_to_embed, videos_to_embed

CPU = torch.device("cpu")


def in_store(store: Any, quality: int = 90) -> Configuration:
    return dataclasses.replace(NANO, frames=dataclasses.replace(NANO.frames, store=store, jpeg_quality=quality))


JPEG = in_store("jpeg")


def versions(view: View) -> dict[str, dict[str, str]]:
    return {name: view.versions(name) for name in view.stages}


def due(view: View) -> dict[str, int]:
    return {name: len(plan.due()) for name, plan in plans(view).items() if plan is not None and plan.due()}


def paths(view: View) -> dict[str, Path]:
    return {video_id: Path(path) for video_id, path in view.rows("frame_tensors", ["video_id", "path"]).iter_rows()}


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    return cheap_stages()


@pytest.fixture
def world(tmp_path: Path) -> SmallWorld:
    return fill(SmallWorld(tmp_path / "home"), num_train=3, num_test=2).register()


# ---- which datasets have JPEGs -------------------------------------------------------------------------------------


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/a.mp4").write_bytes(b"film")
    return tmp_path / "clips"


def wanted(name: str, videos: Path, config: str, **more: Any) -> Wanted:
    return Wanted(name, videos, None, more.pop("models_from", None), config, **more)


def store_of(home: Path, entry: DatasetEntry) -> str:
    return configuration_of(home, entry).frames.store


def test_every_configuration_and_every_dataset_that_was_not_added_keeps_arrays(tmp_path: Path) -> None:
    assert {config.frames.store for config in CONFIGURATIONS.values()} == {"auto"}
    assert {store_of(tmp_path, entry) for entry in builtin_entries(tmp_path).values()} == {"auto"}


@pytest.mark.parametrize("name", ["mine", "charades"])
def test_a_new_dataset_with_published_models_keeps_jpegs(tmp_path: Path, videos: Path, name: str) -> None:
    entry = entry_of(tmp_path, wanted(name, videos, "qwen3-vl-2b"), "qwen3-vl-2b")
    assert (entry.frame_store, store_of(tmp_path, entry)) == ("jpeg", "jpeg")
    save_entry(tmp_path, entry)
    assert get_entry(tmp_path, name) == entry
    assert "kept as JPEGs of quality 90" in frames_of(tmp_path, entry)
    assert any("kept as JPEGs of quality 90" in line for line in next_steps(tmp_path, entry))
    again = entry_of(tmp_path, wanted(name, videos, "laptop"), "laptop")
    assert again.frame_store == "jpeg", "it is registered, and keeps what it has"


def test_a_new_dataset_with_tiny_models_keeps_arrays(tmp_path: Path, videos: Path) -> None:
    for entry in (
        entry_of(tmp_path, wanted("mine", videos, "tiny", models_from="toy"), "tiny"),
        entry_of(tmp_path, wanted("drawn", videos, "qwen3-vl-2b", toy=True), "qwen3-vl-2b"),
    ):
        assert (entry.frame_store, store_of(tmp_path, entry)) == ("", "auto")
        assert "JPEG" not in " ".join((frames_of(tmp_path, entry), *next_steps(tmp_path, entry)))


def test_what_was_registered_or_built_before_keeps_what_it_has(tmp_path: Path, videos: Path, world: SmallWorld) -> None:
    save_entry(tmp_path, DatasetEntry("mine", "folder", str(videos), config="qwen3-vl-2b"))
    assert entry_of(tmp_path, wanted("mine", videos, "qwen3-vl-2b"), "qwen3-vl-2b").frame_store == ""
    for store, kept in (("npy", ""), ("jpeg", "jpeg")):  # built, then taken from the list, then added again
        view = world.view({name: cheap_stages()[name] for name in OF_FRAMES}, in_store(store))
        build(view)
        removed = dataclasses.replace(world.entry, config="qwen3-vl-2b")
        (world.home / "datasets/small.json").unlink(missing_ok=True)
        assert with_frame_store(world.home, removed).frame_store == kept


OF_FRAMES = ("annotation_files", "raw_videos", "videos", "frame_tensors")


def test_a_configuration_that_names_a_store_is_followed(tmp_path: Path, videos: Path) -> None:
    for store in ("npy", "jpeg"):
        settings = nested({"frames.store": store, "frames.jpeg_quality": 75})
        write_configuration(tmp_path, f"own-{store}", "qwen3-vl-2b", settings, "test")
        entry = entry_of(tmp_path, wanted("mine", videos, f"own-{store}"), f"own-{store}")
        assert store_of(tmp_path, entry) == store
        assert any("quality 75" in line for line in next_steps(tmp_path, entry)) == (store == "jpeg")
    with pytest.raises(ValueError, match="store has to be one of auto, npy, jpeg"):
        write_configuration(tmp_path, "odd", "tiny", nested({"frames.store": "png"}), "test")
    with pytest.raises(ValueError, match="jpeg_quality has to be a whole number from 1 to 100"):
        write_configuration(tmp_path, "odd", "tiny", nested({"frames.jpeg_quality": 0}), "test")


def test_a_dataset_that_borrows_models_takes_their_frames_and_keeps_them_its_own_way(tmp_path: Path) -> None:
    """What models are shown is theirs; how it lies on the disk is not."""
    save_entry(tmp_path, DatasetEntry("lender", "folder", config="qwen3-vl-2b-24gb", frame_store="jpeg"))
    write_configuration(tmp_path, "exact", "qwen3-vl-2b", nested({"frames.store": "npy"}), "test")
    mine = DatasetEntry("mine", "folder", str(tmp_path), config="exact", models_from="lender")
    frames = configuration_of(tmp_path, mine).frames
    assert frames == dataclasses.replace(CONFIGURATIONS["qwen3-vl-2b-24gb"].frames, store="npy")
    same = dataclasses.replace(mine, config="qwen3-vl-2b-24gb")
    assert own_configuration(tmp_path, same).frames != configuration_of(tmp_path, get_entry(tmp_path, "lender")).frames
    assert list(borrowed(tmp_path, same, ["frames.store=npy", "frames.jpeg_quality=70"])) == []
    assert any("frames.fps=2 has no effect" in line for line in borrowed(tmp_path, same, ["frames.fps=2"]))


# ---- what a change makes again -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_change_of_the_store_makes_frames_again_and_what_follows_from_them(
    world: SmallWorld, stages: dict[str, Stage]
) -> None:
    build(world.view(stages, NANO))
    before = versions(world.view(stages, NANO))
    assert due(world.view(stages, in_store("npy"))) == {}, "auto keeps arrays"
    assert due(world.view(stages, in_store("auto", 50))) == {}, "arrays have no quality"
    made = build(world.view(stages, JPEG))
    changed = world.view(stages, JPEG)
    assert {path.suffix for path in paths(changed).values()} == {SUFFIX}
    kept = {"annotation_files", "raw_videos", "videos", "moments"}
    assert {name for name in before if versions(changed)[name] == before[name]} >= kept
    assert not any(made[name].num_processed for name in kept)
    assert {name: made[name].num_processed for name in ("frame_tensors", "video_embeddings")} == {
        "frame_tensors": 5,
        "video_embeddings": 5,
    }
    assert due(world.view(stages, JPEG)) == {}
    assert due(world.view(stages, in_store("jpeg", 70)))["frame_tensors"] == 5
    build(world.view(stages, NANO))
    assert versions(world.view(stages, NANO)) == before, "and back"


def test_files_of_the_store_before_are_unused_and_no_others(world: SmallWorld) -> None:
    few = {name: cheap_stages()[name] for name in OF_FRAMES}
    build(world.view(few, NANO))
    arrays = set(paths(world.view(few, NANO)).values())
    build(world.view(few, JPEG))
    view = world.view(few, JPEG)
    for path in view.files("frame_tensors").iterdir():
        os.utime(path, (path.stat().st_mtime - 3 * DAY_S,) * 2)
    unused = list(unused_files(view.lake, view.stages))
    assert {file.path for file in unused} == arrays
    assert all(file.delete() for file in unused)
    assert all(read_frames(path).shape == (6, 32, 32, 3) for path in paths(view).values())


def test_a_home_with_jpegs_can_be_moved(world: SmallWorld, tmp_path: Path) -> None:
    few = {name: cheap_stages()[name] for name in OF_FRAMES}
    build(world.view(few, JPEG))
    shutil.move(world.home, tmp_path / "elsewhere")
    entry = get_entry(tmp_path / "elsewhere", "small")
    moved = View(Lake(tmp_path / "elsewhere/lake"), entry, JPEG, few, home=tmp_path / "elsewhere")
    assert all(path.is_relative_to(tmp_path / "elsewhere") and path.is_file() for path in paths(moved).values())
    assert due(moved) == {}


@pytest.mark.slow
def test_two_stores_stand_beside_each_other_in_one_home(world: SmallWorld, stages: dict[str, Stage]) -> None:
    """A dataset of JPEGs searches with the models of one with arrays; neither makes anything of the other stale."""
    build(open_view(world.home, "small", stages))
    write_configuration(world.home, "packed", "nano", nested({"frames.store": "jpeg"}), "test")
    mine = SmallWorld(world.home, "mine", world.rows)
    for split in world.rows:
        mine.write_annotations(split)
    entry = dataclasses.replace(mine.entry, config="packed", models_from="small", videos=world.entry.videos)
    save_entry(world.home, entry)
    build(open_view(world.home, "mine", stages))
    suffixes = {name: {p.suffix for p in paths(open_view(world.home, name, stages)).values()} for name in NAMES}
    assert suffixes == {"small": {".npy"}, "mine": {SUFFIX}}
    assert [due(open_view(world.home, name, stages)) for name in NAMES] == [{}, {}]
    view = open_view(world.home, "mine", stages)
    assert list(unused_files(view.lake, view.stages, 0)) == []


NAMES = ("small", "mine")


# ---- who reads them ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> View:
    """Frames as JPEGs, by the stages up to them."""
    world = fill(SmallWorld(tmp_path_factory.mktemp("packed")), num_train=3, num_test=2).register()
    few = {name: cheap_stages()[name] for name in OF_FRAMES}
    build(world.view(few, JPEG))
    return world.view(few, JPEG)


def rows_of(view: View) -> dict[str, dict[str, Any]]:
    return {row["video_id"]: row for row in view.rows("frame_tensors").to_dicts()}


def test_pictures_and_the_teachers_frames_are_those_of_the_archive(packed: View, tmp_path: Path) -> None:
    row = rows_of(packed)["train_1"]
    frames = read_frames(row["path"])
    assert thumbnail(packed, "train_1", 2).startswith(b"\xff\xd8")
    stored = StoredFrames(row["path"], tuple(row["timestamps_s"]), row["content"])
    chosen, times = chosen_frames(stored, 3)
    np.testing.assert_array_equal(chosen, frames[[0, 2, 5]])
    assert times == [row["timestamps_s"][n] for n in (0, 2, 5)]
    _bring_frames(Path(row["path"]), tmp_path / "out/train_1.npy", copy=False)
    np.testing.assert_array_equal(np.load(tmp_path / "out/train_1.npy"), frames)


def test_frames_that_are_decoded_ahead_are_those_that_are_decoded_when_needed(packed: View) -> None:
    rows = rows_of(packed)
    ahead = list(videos_to_embed(rows, list(rows), Budget(), CPU))
    assert [video_id for video_id, _ in ahead] == list(rows)
    for video_id, frames in ahead:
        now = frames_to_embed(rows[video_id])
        np.testing.assert_array_equal(frames.pixels, now.pixels)
        assert frames.timestamps_s == now.timestamps_s


def test_features_of_frames_that_are_decoded_ahead_are_those_of_the_same_frames_one_by_one(packed: View) -> None:
    encoder, run = tiny_policy().encoder, Execution(cache_bytes=0)
    ahead, alone = (frame_store(packed, encoder, run) for _ in range(2))
    alone.load_several = None
    video_ids = list(rows_of(packed))
    for one, other in zip(ahead.get(video_ids), alone.get(video_ids), strict=True):
        assert one.layout == other.layout
        torch.testing.assert_close(one.tokens, other.tokens, rtol=0, atol=0)


@pytest.mark.slow
def test_a_process_that_is_bounded_in_memory_and_file_size_writes_the_same_archives(
    packed: View, tmp_path: Path
) -> None:
    world = fill(SmallWorld(tmp_path), num_train=3, num_test=2).register()
    few = {name: cheap_stages()[name] for name in OF_FRAMES}
    build(world.view(few, JPEG), Execution(workers=2))
    made = paths(world.view(few, JPEG))
    assert {video_id: path.read_bytes() for video_id, path in made.items()} == {
        video_id: path.read_bytes() for video_id, path in paths(packed).items()
    }


def test_deleting_the_table_makes_damaged_frames_again(world: SmallWorld) -> None:
    few = {name: cheap_stages()[name] for name in OF_FRAMES}
    build(world.view(few, JPEG))
    before = {path: path.read_bytes() for path in paths(world.view(few, JPEG)).values()}
    broken = next(iter(before))
    broken.write_bytes(b"torn")
    shutil.rmtree(world.view(few, JPEG).table("frame_tensors").folder)
    build(world.view(few, JPEG))
    assert {path: path.read_bytes() for path in before} == before


def test_a_damaged_file_fails_its_own_row_and_no_other(packed: View, tmp_path: Path) -> None:
    rows = rows_of(packed)
    broken = tmp_path / "torn.zip"
    broken.write_bytes(Path(rows["train_1"]["path"]).read_bytes()[:-100])
    rows["train_1"]["path"] = str(broken)
    results = {result.item: result for result in _embedded(rows)}
    assert set(results) == set(rows)
    failed = {video_id: result.error for video_id, result in results.items() if result.error}
    assert list(failed) == ["train_1"]
    assert failed["train_1"].startswith(f"the frames {broken} are damaged: File is not a zip file; to make them again")


def _embedded(rows: dict[str, dict[str, Any]]) -> Iterator[Any]:
    """The results of `video_embeddings` by a small embedder over these rows of frames."""
    stage, frames = VideoEmbeddings(), SimpleNamespace(to_dicts=lambda: list(rows.values()))
    opened: Any = SimpleNamespace(
        execution=Execution(workers=1), embedder=tiny_embedder(), view=SimpleNamespace(rows=lambda asset: frames)
    )
    wanted = {video_id: SimpleNamespace(known={"splits": ["train"]}) for video_id in rows}
    return stage.results(opened, wanted)  # type: ignore[arg-type]
