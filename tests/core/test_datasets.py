"""Annotations and folders as files: each trap of the published data is a test, and no line is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.videos import number_of
from vsr1_core.configurations import CONFIGURATIONS
from vsr1_core.datasets import folder, sources, toy, toy_files, verified
from vsr1_core.datasets.registry import DatasetEntry, load_entries
from vsr1_core.datasets.verified import BadLine, Moment
from vsr1_core.media.decode import sample_frames
from vsr1_core.media.probe import probe
from vsr1_core.recipes import FrameRecipe
from vsr1_core.toy_recipe import ToyRecipe

TINY = CONFIGURATIONS["tiny"]
NANO = CONFIGURATIONS["nano"]


def fig(**changes: Any) -> dict[str, Any]:
    row = {"video": "abc", "time": [1.0, 4.5], "desc_id": 7, "duration": 10.0, "cog_desc": "plain", "fig_desc": "fine"}
    return {**row, "fig_desc_score": 1.0, **changes}


def write_lines(path: Path, *lines: str | dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{x if isinstance(x, str) else json.dumps(x)}\n" for x in lines))
    return path


def verified_entry(root: Path, name: str) -> DatasetEntry:
    return DatasetEntry(name, "verified", str(root / "videos"), str(root))


def test_a_moment_has_the_fields_of_its_line() -> None:
    moment = verified.fig_moment(fig(time=[25, 30], duration=38.57), "val")
    assert moment == Moment("7_fig", "val", "fine", "plain", "abc", 25.0, 30.0, 38.57, False)


def test_an_end_beyond_the_duration_is_clamped() -> None:
    moment = verified.fig_moment(fig(time=[5.0, 12.0]), "test")
    assert (moment.end_s, moment.clamped) == (10.0, True)
    assert not verified.fig_moment(fig(time=[5.0, 10.0]), "test").clamped


@pytest.mark.parametrize("video", ["a.b/x1", "a.b/x1.mp4", "a.b\\x1.AVI", " a.b/x1.3gp "])
def test_a_video_is_named_with_or_without_its_suffix(video: str) -> None:
    assert verified.fig_moment(fig(video=video), "test").video_id == "a.b/x1"
    assert verified.video_id_of("58792004@N06_8544469262_fd25eddb2e") == "58792004@N06_8544469262_fd25eddb2e"
    assert verified.video_id_of("v_1.5x_speed") == "v_1.5x_speed"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"time": [4, 2]}, "reversed"),
        ({"time": [2, 2]}, "empty"),
        ({"time": [-1, 2]}, "negative"),
        ({"time": [11, 12]}, "begins after the video's end"),
        ({"time": [1]}, "time must be"),
        ({"time": [1, "x"]}, "end must be a number"),
        ({"time": [1, float("nan")]}, "end must be a number"),
        ({"duration": "long"}, "duration must be a number"),
        ({"fig_desc": "  "}, "fig_desc must be a text"),
        ({"video": None}, "video must be a text"),
        ({"desc_id": None}, "desc_id must be"),
    ],
)
def test_a_bad_line_is_kept_with_its_reason(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    path = write_lines(tmp_path / "x.jsonl", fig(desc_id=1), fig(**{"desc_id": 2, **changes}))
    good, bad = [row for _, row in verified.read_fig(path, "test")]
    assert isinstance(good, Moment)
    assert isinstance(bad, BadLine)
    assert bad.query_id == "x.jsonl:2"
    assert reason in bad.reason


def test_broken_json_is_a_bad_line_and_blank_lines_are_none(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", fig(), "", "{not json", "[1, 2]")
    rows = [row for _, row in verified.read_fig(path, "test")]
    assert [row.query_id for row in rows] == ["7_fig", "x.jsonl:3", "x.jsonl:4"]
    assert "not valid JSON" in rows[1].reason  # type: ignore[union-attr]


def test_a_repeated_id_is_a_bad_line_that_names_both_places(tmp_path: Path) -> None:
    write_lines(tmp_path / "charades_fig_train.jsonl", fig(desc_id=1), fig(desc_id=2))
    write_lines(tmp_path / "charades_fig_test.jsonl", fig(desc_id=3), fig(desc_id=2, fig_desc="other"))
    rows = sources.moments(verified_entry(tmp_path, "charades"), TINY)
    assert list(rows) == ["1_fig", "2_fig", "3_fig", "charades_fig_test.jsonl:2"]
    assert rows["2_fig"].query == "fine"  # type: ignore[union-attr]
    reason = rows["charades_fig_test.jsonl:2"].reason  # type: ignore[union-attr]
    assert "charades_fig_train.jsonl:2" in reason


def test_rows_that_share_a_text_are_all_kept(tmp_path: Path) -> None:
    write_lines(tmp_path / "charades_fig_test.jsonl", *(fig(desc_id=n) for n in range(5)))
    assert len(sources.moments(verified_entry(tmp_path, "charades"), TINY)) == 5


def test_activitynets_second_validation_file_is_the_test_split(tmp_path: Path) -> None:
    for number, word in enumerate(("train", "val_1", "val_2")):
        write_lines(tmp_path / f"activitynet_fig_{word}.jsonl", fig(desc_id=number, video=f"v_{word}"))
    rows = sources.moments(verified_entry(tmp_path, "activitynet"), TINY)
    assert [row.split for row in rows.values()] == ["train", "val", "test"]  # type: ignore[union-attr]
    assert sources.corpus_splits(verified_entry(tmp_path, "activitynet"), TINY)["v_val_2"] == ["test"]


def test_no_annotations_at_all_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        sources.moments(verified_entry(tmp_path / "none", "didemo"), TINY)
    for word in ("didemo_fig_train.jsonl", "didemo_fig_val.jsonl", "didemo_fig_test.jsonl", str(tmp_path / "none")):
        assert word in str(caught.value)


def test_one_missing_file_is_reported_and_the_others_are_read(tmp_path: Path) -> None:
    write_lines(tmp_path / "didemo_fig_test.jsonl", fig())
    files = sources.annotation_files(verified_entry(tmp_path, "didemo"), TINY)
    assert [f.error is None for f in files.values()] == [False, False, True]
    assert str(tmp_path) in str(files["didemo_fig_train.jsonl"].error)
    assert list(sources.moments(verified_entry(tmp_path, "didemo"), TINY)) == ["7_fig"]


def test_real_annotations_have_the_published_counts(shared_data: Path) -> None:
    entry = verified_entry(shared_data / "verified_fig", "charades")
    rows = list(sources.moments(entry, TINY).values())
    test = [m for m in rows if isinstance(m, Moment) and m.split == "test"]
    assert (len(test), sum(m.clamped for m in test), len({m.video_id for m in test})) == (3720, 543, 1334)
    assert all(0 <= m.start_s < m.end_s <= (m.duration_s or 0) for m in test)
    bad = [row for row in rows if isinstance(row, BadLine)]
    assert [(b.query_id, "after the video's end" in b.reason) for b in bad] == [("charades_fig_train.jsonl:8500", True)]
    didemo = sources.moments(verified_entry(shared_data / "verified_fig", "didemo"), TINY)
    assert sum(isinstance(m, Moment) and m.split == "val" for m in didemo.values()) == 4175
    assert sum(isinstance(m, Moment) and m.split == "test" for m in didemo.values()) == 4013


def test_csv_columns_are_found_in_any_case_and_order(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('\ufeffQuery,VIDEO, End ,start,Split\n"a dog, running",sub/a.mp4,4.5,1,train\na cat,b,3,0,\n')
    rows = [row for _, row in folder.read_annotations(path)]
    assert [(m.video_id, m.start_s, m.end_s, m.query, m.split) for m in rows] == [  # type: ignore[union-attr]
        ("sub/a", 1.0, 4.5, "a dog, running", "train"),
        ("b", 0.0, 3.0, "a cat", "test"),
    ]
    assert all(m.duration_s is None for m in rows)  # type: ignore[union-attr]


def test_csv_ids_are_the_same_next_time_and_do_not_move_with_the_span(tmp_path: Path) -> None:
    head = "video,start,end,query\n"
    (tmp_path / "a.csv").write_text(head + "a,0,1,dog\nb,0,1,dog\na,2,3,dog\n")
    (tmp_path / "b.csv").write_text(head + "a,0,9,dog\nb.mp4,0,1,dog\na,2,3,dog\n")
    first, second = ([r.query_id for _, r in folder.read_annotations(tmp_path / n)] for n in ("a.csv", "b.csv"))
    assert first == second
    assert len(set(first)) == 3
    (tmp_path / "c.csv").write_text("id,video,start,end,query\nq1,a,0,1,dog\n")
    assert [r.query_id for _, r in folder.read_annotations(tmp_path / "c.csv")] == ["q1_fig"]


def test_csv_mistakes_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("video,start,query\na,0,dog\n")
    with pytest.raises(ValueError, match="no column end"):
        list(folder.read_annotations(tmp_path / "a.csv"))
    (tmp_path / "b.csv").write_text("video,start,end,query\na,x,1,dog\n\na,0,1,\na,0\n")
    rows = [r for _, r in folder.read_annotations(tmp_path / "b.csv")]
    assert [r.query_id for r in rows] == ["b.csv:2", "b.csv:4", "b.csv:5"]
    assert "start must be a number of seconds, got 'x'" in rows[0].reason  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"must be a \.jsonl"):
        list(folder.read_annotations(write_lines(tmp_path / "c.txt", "x")))
    with pytest.raises(FileNotFoundError):
        list(folder.read_annotations(tmp_path / "none.csv"))


def test_videos_are_found_in_subfolders_and_clashes_are_seen(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.MKV", "sub/deep/b.webm", ".hidden.mp4", ".trash/c.mp4", "notes.txt", "sub/a.mov"):
        write_lines(tmp_path / name, "x")
    found = folder.find_videos(tmp_path)
    assert {video_id: len(paths) for video_id, paths in found.items()} == {"a": 2, "sub/a": 1, "sub/deep/b": 1}
    by_name = folder.find_videos(tmp_path, by_name=True)
    assert {video_id: len(paths) for video_id, paths in by_name.items()} == {"a": 3, "b": 1}
    with pytest.raises(FileNotFoundError, match="create it"):
        folder.find_videos(tmp_path / "none")


def test_links_are_followed_and_those_that_lead_nowhere_are_none(tmp_path: Path) -> None:
    write_lines(tmp_path / "away" / "one.mp4", "x")
    videos = tmp_path / "videos"
    for name in ("b/z.mp4", "b/a.mp4", "b.d/a.mkv", "a.mp4", "c.mp4/inside.mov"):
        write_lines(videos / name, "x")
    for name, target in (("linked.mp4", "one.mp4"), ("folder", "."), ("folder.mp4", "."), ("nowhere.mp4", "no file")):
        (videos / name).symlink_to(tmp_path / "away" / target)
    (videos / "itself.mp4").symlink_to(videos / "itself.mp4")
    (videos / "b" / "up").symlink_to(videos)
    found = folder.find_videos(videos)
    assert list(found) == ["a", "b.d/a", "b/a", "b/z", "c.mp4/inside", "folder/one", "linked"]
    assert found["linked"] == [videos / "linked.mp4"]
    by_name = folder.find_videos(videos, by_name=True)
    assert list(by_name) == ["a", "inside", "linked", "one", "z"]
    assert by_name["a"] == [videos / "a.mp4", videos / "b/a.mp4", videos / "b.d/a.mkv"], "as folders are sorted"


def linked_corpus(tmp_path: Path) -> Path:
    """A folder with links to folders outside, to itself, to a folder above it, to a sibling, and in a circle."""
    root = tmp_path / "clips"
    for name in ("clips/a.mp4", "clips/sub/b.mp4", "disk/c.mp4", "disk/deep/d.mp4", "other/e.mp4", "disk/.trash/f.mp4"):
        write_lines(tmp_path / name, "x")
    for link, target in {
        "clips/disk": "disk",
        "clips/again": "disk/deep",
        "clips/same": "clips/sub",
        "clips/self": "clips",
        "clips/sub/up": ".",
        "disk/back": "clips",
        "disk/deep/circle": "disk",
        "disk/deep/further": "other",
        "other/circle": "other",
    }.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    (root / "lost").symlink_to(tmp_path / "not there")
    return root


def test_links_to_folders_are_followed_and_no_folder_is_read_twice(tmp_path: Path) -> None:
    root = linked_corpus(tmp_path)
    found = {
        video_id: [str(p.relative_to(root)) for p in paths] for video_id, paths in folder.find_videos(root).items()
    }
    assert found == {
        "a": ["a.mp4"],
        "disk/c": ["disk/c.mp4"],
        "disk/deep/d": ["disk/deep/d.mp4"],
        "disk/deep/further/e": ["disk/deep/further/e.mp4"],
        "sub/b": ["sub/b.mp4"],
    }
    assert list(folder.find_videos(root, by_name=True)) == ["a", "b", "c", "d", "e"]
    (tmp_path / "entrance").symlink_to(root)
    assert list(folder.find_videos(tmp_path / "entrance")) == list(found), "the folder itself may be a link"


def test_a_file_behind_a_link_clashes_with_none_of_the_folder_itself(tmp_path: Path) -> None:
    for name in ("clips/sub/a.mp4", "disk/a.mp4", "disk/b.mp4", "disk/deep/b.mp4"):
        write_lines(tmp_path / name, "x")
    (tmp_path / "clips" / "0").symlink_to(tmp_path / "disk")
    found = folder.find_videos(tmp_path / "clips", by_name=True)
    assert found["a"] == [tmp_path / "clips/sub/a.mp4"]
    assert len(found["b"]) == 2, "two files behind links do clash"


def test_a_link_whose_target_is_gone_takes_no_other_video_away(tmp_path: Path) -> None:
    root = linked_corpus(tmp_path)
    shutil.rmtree(tmp_path / "other")
    assert list(folder.find_videos(root)) == ["a", "disk/c", "disk/deep/d", "sub/b"]


def test_a_toy_clip_is_a_real_video_of_its_scene(tmp_path: Path) -> None:
    scene = toy.scenes(NANO.toy)[0]
    toy_files.render_clip(scene, NANO.toy, tmp_path / "a.mp4")
    info = probe(tmp_path / "a.mp4")
    assert (info.codec, info.width, info.height, info.fps) == ("h264", 64, 64, 4.0)
    assert info.duration_s == pytest.approx(scene.duration_s, abs=0.01)
    frames = sample_frames(tmp_path / "a.mp4", FrameRecipe(max_pixels=64 * 64))
    drawn = toy.draw(scene, NANO.toy)[np.round(frames.timestamps_s * 4).astype(int)]
    assert np.abs(drawn.astype(int) - frames.pixels).mean() < 6


def test_a_toy_clip_is_the_same_bytes_again_and_is_rendered_once(tmp_path: Path) -> None:
    first, second = toy.scenes(NANO.toy)[:2]
    for name in ("a.mp4", "b.mp4"):
        toy_files.render_clip(first, NANO.toy, tmp_path / name)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    before = (tmp_path / "a.mp4").stat().st_mtime_ns
    toy_files.render_clip(first, NANO.toy, tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").stat().st_mtime_ns == before
    toy_files.render_clip(second, NANO.toy, tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").read_bytes() != (tmp_path / "b.mp4").read_bytes()


def test_encoding_keeps_frames_apart(tmp_path: Path) -> None:
    levels = np.stack([np.full((32, 32, 3), 12 + 4 * k, np.uint8) for k in range(20)])
    toy_files.encode_clip(tmp_path / "a.mp4", levels, 4, "mark")
    assert toy_files.clip_mark(tmp_path / "a.mp4") == "mark"
    frames = sample_frames(tmp_path / "a.mp4", FrameRecipe(fps=2.0, max_pixels=1024))
    assert [number_of(p) for p in frames.pixels] == [round(t * 4) for t in frames.timestamps_s]


def test_toy_moments_are_the_same_before_and_after_their_files_are_written(tmp_path: Path) -> None:
    entry = DatasetEntry("toy", "toy", str(tmp_path / "videos"), str(tmp_path))
    before = sources.moments(entry, NANO)
    toy_files.write_annotations(tmp_path, NANO.toy)
    assert sources.moments(entry, NANO) == before
    assert len(before) > 30


def test_edited_toy_annotations_count_until_the_recipe_changes(tmp_path: Path) -> None:
    entry = DatasetEntry("toy", "toy", str(tmp_path / "videos"), str(tmp_path))
    toy_files.write_annotations(tmp_path, NANO.toy)
    as_written = sources.annotation_files(entry, NANO)["toy_fig_test.jsonl"].content
    path = toy_files.annotation_path(tmp_path, "test")
    path.write_text(path.read_text().replace("red", "crimson"))
    assert sources.annotation_files(entry, NANO)["toy_fig_test.jsonl"].content != as_written
    assert not toy_files.is_written(tmp_path, ToyRecipe(num_train=3, num_val=1, num_test=2))


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"name": "mine"}, "no field 'kind'"), ({"name": "mine", "kind": "folder", "x": 1}, "the unknown field 'x'")],
)
def test_a_registration_of_another_version_is_named(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    path = tmp_path / "datasets/mine.json"
    path.parent.mkdir()
    path.write_text(json.dumps(fields))
    with pytest.raises(
        ValueError, match=rf"mine\.json is no registration of a dataset: it has {said}, so it is of another version"
    ):
        load_entries(tmp_path)
