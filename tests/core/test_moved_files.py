"""Of which videos a plan looks at the rows, where files moved: the video files, or what is annotated of the videos.

That such plans say what one says that looks at every row is checked after each edit.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection
from pathlib import Path

import polars as pl
import pytest

from tests.few_stages import START, stages
from tests.short_cuts import assert_short_cuts_are_exact
from tests.small_world import NOT_A_VIDEO, SmallWorld, clip, fill
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.rows import row_files
from vsr1_core.stages.base import View
from vsr1_core.stages.corpus import Videos
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import plan_graph
from vsr1_core.stages.raw_videos import RawVideos
from vsr1_core.stages.unmoved import build_stage

SOURCES = ("annotation_files", "raw_videos", "videos")


@pytest.fixture
def world(tmp_path: Path) -> SmallWorld:
    made = fill(SmallWorld(tmp_path / "home"), num_train=2, num_test=2)
    made.put_video("broken", NOT_A_VIDEO)
    for desc_id, video_id in enumerate(("broken", "nowhere"), 800):
        made.add_query("test", desc_id, video_id)
    made.write_annotations("test")
    build(view_of(made))
    return made


def view_of(world: SmallWorld, entry: DatasetEntry | None = None) -> View:
    own = {name: stage for name, stage in stages().items() if name in SOURCES}
    view = world.view(own, START)
    return view if entry is None else dataclasses.replace(view, entry=entry)


def build(view: View) -> None:
    for stage in view.stages.values():
        build_stage(view, stage, Execution(workers=1, max_removed=None))


def looked_at(view: View) -> set[str]:
    plan_graph(view)
    return set(view.read_by)


def replace_a_video(world: SmallWorld) -> None:
    world.put_video("train_0", clip(7))


def touch_a_video(world: SmallWorld) -> None:
    world.clock = 10_000
    world.touch(world.video_path("train_0"))


def replace_a_video_and_keep_its_time(world: SmallWorld) -> None:
    path = world.video_path("broken")
    stat = path.stat()
    path.write_bytes(NOT_A_VIDEO + b"and more")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def rename_a_video(world: SmallWorld) -> None:
    world.video_path("train_0").rename(world.video_path("train_9"))


def swap_two_videos(world: SmallWorld) -> None:
    one, other, aside = world.video_path("train_0"), world.video_path("train_1"), world.videos / "aside"
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def add_a_second_file(world: SmallWorld) -> None:
    (world.videos / "more").mkdir()
    (world.videos / "more/train_0.mp4").write_bytes(clip(9))


def name_a_file_otherwise_than_utf_8(world: SmallWorld) -> None:
    world.video_path("train_0").rename(world.videos / os.fsdecode(b"caf\xe9.mp4"))


EDITS: Collection[Callable[[SmallWorld], None]] = (
    *(replace_a_video, touch_a_video, replace_a_video_and_keep_its_time, rename_a_video, swap_two_videos),
    *(add_a_second_file, name_a_file_otherwise_than_utf_8),
)


@pytest.mark.parametrize("edit", EDITS, ids=[edit.__name__ for edit in EDITS])
def test_files_are_looked_at_once_after_they_moved(world: SmallWorld, edit: Callable[[SmallWorld], None]) -> None:
    assert looked_at(view_of(world)) == {"annotation_files"}
    edit(world)
    assert "raw_videos" in looked_at(view_of(world))
    assert_short_cuts_are_exact(view_of(world))
    build(view_of(world))
    assert looked_at(view_of(world)) == {"annotation_files"}
    assert_short_cuts_are_exact(view_of(world))


def test_names_that_are_shown_alike_are_told_apart(world: SmallWorld) -> None:
    name_a_file_otherwise_than_utf_8(world)
    build(view_of(world))
    (world.videos / os.fsdecode(b"caf\xe9.mp4")).rename(world.videos / "caf\\udce9.mp4")
    assert "raw_videos" in looked_at(view_of(world))
    assert_short_cuts_are_exact(view_of(world))


def test_a_folder_of_videos_that_is_gone_is_an_error_though_it_was_empty(tmp_path: Path) -> None:
    world = SmallWorld(tmp_path / "home")
    world.videos.mkdir(parents=True)
    view = view_of(world, DatasetEntry("small", "folder", str(world.videos), "", "nano"))
    build(view)
    assert "raw_videos" not in looked_at(dataclasses.replace(view))
    world.videos.rmdir()
    with pytest.raises(FileNotFoundError, match="is not there"):
        plan_graph(dataclasses.replace(view))


def test_links_to_the_home_are_looked_at(tmp_path: Path, world: SmallWorld) -> None:
    """What lies in the home is kept relative to it, by whatever links it is named."""
    link, real = tmp_path / "link", tmp_path / "real"
    world.home.rename(real)
    link.symlink_to(real)
    linked = dataclasses.replace(world, home=link)
    view = view_of(linked, dataclasses.replace(linked.entry, videos=str(real / "data/small/videos")))
    build(view)
    assert "raw_videos" not in looked_at(dataclasses.replace(view))
    (tmp_path / "other").mkdir()
    for path in real.iterdir():
        if path.name != "data":
            path.rename(tmp_path / "other" / path.name)
    (tmp_path / "other/data").symlink_to(real / "data")
    link.unlink()
    link.symlink_to(tmp_path / "other")
    assert "raw_videos" in looked_at(dataclasses.replace(view))
    assert_short_cuts_are_exact(dataclasses.replace(view))


def change_a_text(world: SmallWorld) -> None:
    world.rows["test"][0]["fig_desc"] += " again"


def annotate_another_split(world: SmallWorld) -> None:
    world.add_query("train", 700, "test_0")


def annotate_a_broken_one_in_another_split(world: SmallWorld) -> None:
    world.add_query("train", 700, "broken")
    world.add_query("train", 701, "nowhere")


def annotate_a_new_video(world: SmallWorld) -> None:
    world.add_query("test", 702, "0_first")
    world.add_query("test", 703, "zz_last")


def forget_a_video(world: SmallWorld) -> None:
    world.rows["test"] = [row for row in world.rows["test"] if row["video"] not in ("test_0", "broken")]


ANNOTATED: Collection[tuple[Callable[[SmallWorld], None], set[str]]] = (
    (change_a_text, set()),
    (annotate_another_split, {"test_0"}),
    (annotate_a_broken_one_in_another_split, {"broken", "nowhere"}),
    (annotate_a_new_video, {"0_first", "zz_last"}),
    (forget_a_video, {"test_0", "broken"}),
)


@pytest.mark.parametrize(("edit", "moved"), ANNOTATED, ids=[edit.__name__ for edit, _ in ANNOTATED])
def test_only_videos_of_which_the_splits_moved_are_looked_at(
    world: SmallWorld, edit: Callable[[SmallWorld], None], moved: set[str]
) -> None:
    edit(world)
    for split in world.rows:
        world.write_annotations(split)
    view = view_of(world)
    assert set(Videos().moved_beside(view) or ()) == moved
    assert ("videos" in looked_at(view)) == bool(moved)
    assert_short_cuts_are_exact(view_of(world))
    build(view_of(world))
    assert looked_at(view_of(world)) == {"annotation_files"}


def test_videos_without_annotations_are_looked_at_when_they_are_annotated(tmp_path: Path) -> None:
    world, table = SmallWorld(tmp_path / "home"), tmp_path / "home/a.csv"
    for name in ("a", "b"):
        world.put_video(name, clip(0))
    entry = DatasetEntry("small", "folder", str(world.videos), str(table), "nano")
    table.write_text("video,start,end,query,split\na,0,2,a dog runs,train\n")
    build(view_of(world, entry))
    table.write_text("video,start,end,query,split\na,0,2,a dog runs,train\nb,0,2,a cat sits,train\n")
    assert set(Videos().moved_beside(view_of(world, entry)) or ()) == {"b"}
    assert_short_cuts_are_exact(view_of(world, entry))


def test_what_is_known_of_digests_is_no_part_of_what_is_planned(world: SmallWorld) -> None:
    view = view_of(world)
    RawVideos().planned_rows(view)
    assert view.read_by["raw_videos"] == frozenset()


@pytest.mark.parametrize("size", [1, 2, 3, 4096])
def test_rows_are_compared_with_what_is_said_wherever_blocks_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Also a row whose inputs do not have the text is named where it is not said: it may be one to drop."""
    monkeypatch.setattr(row_files, "BLOCK_ROWS", size)
    monkeypatch.setattr(row_files, "SMALL_FILE", 0)
    view = view_of(SmallWorld(tmp_path / "home"))
    table, known = view.table("videos"), {"A": "1", "a": "2", "a b": None, "z": "3", "é": "4", "\uffff": "5", "😀": "6"}
    inputs = {i: "{}" if text is None else f'{{"splits": "{text}"}}' for i, text in known.items()}
    table.commit(table.frame([{"video_id": i, "status": "ok", "row_inputs": text} for i, text in inputs.items()]), {})
    for said in (
        {},
        {"z": "3"},
        {i: text or "1" for i, text in known.items()},
        {"0": "1", "z": "0", "é": "4", "🙂": "1"},
    ):
        frame = pl.DataFrame([*said.items()], schema={"video_id": pl.String, "splits": pl.String}, orient="row")
        moved = Videos().said_otherwise(view, frame.reverse(), pl.col("row_inputs").str.json_path_match("$.splits"))
        same = {i for i in said if said[i] == known.get(i)}
        assert moved == (known.keys() | said.keys()) - same
