"""The stages from files to frames: what a change makes due, and what becomes of bad files."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.videos import ffprobe_times_s, write_video
from vsr1_core.configurations import CONFIGURATIONS
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.media.container import VideoError
from vsr1_core.media.frame_store import read_frames
from vsr1_core.media.probe import probe_caged
from vsr1_core.recipes import Configuration, FrameRecipe
from vsr1_core.rows.lake import Lake
from vsr1_core.stages import corpus, frames
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import in_order, plan_graph

NANO = CONFIGURATIONS["nano"]
TIMES = [k / 5 for k in range(15)]


class Corpus:
    """One dataset in a folder of its own, and its stages."""

    def __init__(self, root: Path, entry: DatasetEntry, config: Configuration = NANO) -> None:
        self.root, self.entry, self.config = root, entry, config

    def view(self) -> View:
        stages = in_order([stage() for stage in (*corpus.STAGES, *frames.STAGES)])
        return View(Lake(self.root / "lake"), self.entry, self.config, stages)

    def plan(self) -> dict[str, dict[str, int]]:
        return {p.asset: p.plan.counts() for p in plan_graph(self.view()) if p.plan is not None}

    def build(self, workers: int = 1) -> dict[str, int]:
        """Rows processed per stage, after checking that the plan said so."""
        planned = {name: counts["new"] + counts["stale"] for name, counts in self.plan().items()}
        view = self.view()
        done = {n: s.build(view, Execution(workers=workers)).num_processed for n, s in view.stages.items()}
        self.planned = planned
        return done

    def rows(self, asset: str) -> dict[str, dict[str, Any]]:
        table = self.view().table(asset)
        return {row[table.key]: row for row in table.rows().iter_rows(named=True)}


def annotate(root: Path, *moments: tuple[str, float, float, str]) -> None:
    rows = [
        {"video": video, "time": [start, end], "desc_id": n, "duration": 3.0, "cog_desc": "x", "fig_desc": query}
        for n, (video, start, end, query) in enumerate(moments)
    ]
    (root / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def clips(tmp_path: Path) -> Corpus:
    """Three videos; two of them annotated."""
    (tmp_path / "videos/sub").mkdir(parents=True)
    for name in ("a", "sub/b", "c"):
        write_video(tmp_path / f"videos/{name}.mp4", TIMES)
    annotate(tmp_path, ("a", 0, 2, "one"), ("sub/b.mp4", 1, 9, "two"))
    made = Corpus(tmp_path, DatasetEntry("own", "folder", str(tmp_path / "videos"), str(tmp_path / "a.jsonl")))
    assert made.build() == {"annotation_files": 1, "raw_videos": 3, "videos": 3, "moments": 2, "frame_tensors": 3}
    assert made.planned == {"annotation_files": 1, "raw_videos": 3, "videos": 3, "moments": 2, "frame_tensors": 3}
    return made


def due(made: Corpus) -> dict[str, int]:
    return {name: count for name, count in made.build().items() if count}


def test_rows_hold_what_the_files_hold(clips: Corpus) -> None:
    video, frame = clips.rows("videos")["sub/b"], clips.rows("frame_tensors")["sub/b"]
    assert (video["splits"], video["num_frames"], video["width"], video["codec"]) == (["test"], 15, 64, "h264")
    assert video["duration_s"] == pytest.approx(3.0, abs=0.21)
    pixels = read_frames(frame["path"])
    assert pixels.shape == (frame["num_frames"], frame["height"], frame["width"], 3)
    assert len(frame["timestamps_s"]) == frame["num_frames"]
    assert Path(frame["path"]).is_absolute()
    moment = clips.rows("moments")["1_fig"]
    assert (moment["video_id"], moment["end_s"], moment["clamped"]) == ("sub/b", 3.0, True)
    assert clips.rows("annotation_files")["a.jsonl"]["num_rows"] == 2


def test_building_again_does_nothing(clips: Corpus) -> None:
    assert due(clips) == {}


def test_touching_a_file_recomputes_nothing(clips: Corpus) -> None:
    os.utime(clips.root / "videos/a.mp4", ns=(1, 1))
    assert due(clips) == {}


def test_a_known_file_is_not_read_again(clips: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(corpus, "digest_file", refuse)
    assert corpus.RawVideos().due(clips.view()).counts()["unchanged"] == 3


def test_a_changed_video_is_the_only_one_decoded_again(clips: Corpus) -> None:
    write_video(clips.root / "videos/a.mp4", TIMES[:9])
    assert due(clips) == {"raw_videos": 1, "videos": 1, "frame_tensors": 1}


def test_a_moved_video_is_not_decoded_again(clips: Corpus) -> None:
    (clips.root / "videos/a.mp4").rename(clips.root / "videos/a.m4v")
    assert due(clips) == {"raw_videos": 1, "videos": 1}
    assert clips.rows("videos")["a"]["path"].endswith("a.m4v")


def test_a_changed_span_touches_one_moment(clips: Corpus) -> None:
    annotate(clips.root, ("a", 0, 1.5, "one"), ("sub/b.mp4", 1, 9, "two"))
    assert due(clips) == {"annotation_files": 1, "moments": 1}
    assert clips.planned["moments"] == 1


def test_a_removed_video_and_moment_are_dropped(clips: Corpus) -> None:
    (clips.root / "videos/c.mp4").unlink()
    annotate(clips.root, ("a", 0, 2, "one"))
    clips.build()
    assert set(clips.rows("frame_tensors")) == {"a", "sub/b"}
    assert set(clips.rows("moments")) == {"0_fig"}


def test_a_changed_split_decodes_nothing(clips: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(task: object) -> dict[str, Any]:
        raise AssertionError("decoded again")

    monkeypatch.setattr(frames, "sample_video", refuse)
    rows = [json.loads(line) for line in (clips.root / "a.jsonl").read_text().splitlines()]
    (clips.root / "a.jsonl").write_text("".join(json.dumps({**row, "split": "val"}) + "\n" for row in rows))
    before = clips.rows("frame_tensors")["a"]
    assert due(clips)["frame_tensors"] == 2
    after = clips.rows("frame_tensors")["a"]
    assert after["splits"] == ["val"]
    assert after["status"] == "ok"
    unchanged = ("path", "content", "timestamps_s", "num_frames")
    assert [after[c] for c in unchanged] == [before[c] for c in unchanged]


def test_another_frame_recipe_decodes_all(clips: Corpus) -> None:
    clips.config = dataclasses.replace(NANO, frames=FrameRecipe(fps=2.0, max_frames=4, max_pixels=64 * 64))
    assert due(clips) == {"frame_tensors": 3}
    assert clips.rows("frame_tensors")["a"]["num_frames"] == 4


def test_a_missing_video_is_a_failed_row_until_it_is_there(clips: Corpus) -> None:
    annotate(clips.root, ("a", 0, 2, "one"), ("gone", 0, 2, "three"))
    clips.build()
    row = clips.rows("videos")["gone"]
    assert row["status"] == "failed"
    assert f"put gone.mp4 (or .mkv, .avi, .mov, .webm, ...) into {clips.root / 'videos'}" in row["error"]
    assert clips.rows("moments")["1_fig"]["status"] == "ok"
    assert "gone" not in clips.rows("frame_tensors")
    assert due(clips) == {}
    write_video(clips.root / "videos/gone.mp4", TIMES)
    assert due(clips) == {"raw_videos": 1, "videos": 1, "frame_tensors": 1}
    assert clips.rows("frame_tensors")["gone"]["status"] == "ok"


def test_two_files_with_one_id_are_reported(clips: Corpus) -> None:
    write_video(clips.root / "videos/a.mkv", TIMES)
    clips.build()
    for asset in ("raw_videos", "videos"):
        assert "rename or remove all but one" in clips.rows(asset)["a"]["error"]
    (clips.root / "videos/a.mkv").unlink()
    clips.build()
    assert clips.rows("frame_tensors")["a"]["status"] == "ok"


@pytest.mark.slow
def test_bad_files_and_lines_are_failed_rows(clips: Corpus) -> None:
    (clips.root / "videos/bad.mp4").write_text("no video")
    with (clips.root / "a.jsonl").open("a") as out:
        out.write("{broken\n")
    clips.build(workers=2)
    assert "bad.mp4 cannot be opened as a video" in clips.rows("videos")["bad"]["error"]
    assert "a.jsonl:3 is not valid JSON" in clips.rows("moments")["a.jsonl:3"]["error"]
    assert clips.planned["moments"] == 1
    assert due(clips) == {}


def test_a_folder_without_annotations_has_videos_and_frames(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos/a.mp4", TIMES)
    made = Corpus(tmp_path, DatasetEntry("own", "folder", str(tmp_path / "videos")))
    assert due(made) == {"raw_videos": 1, "videos": 1, "frame_tensors": 1}
    assert made.rows("frame_tensors")["a"]["splits"] == ["test"]


def test_a_csv_without_durations_takes_them_from_the_videos(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos/a.mp4", TIMES)
    (tmp_path / "a.csv").write_text("video,start,end,query,id\na,1,9,x,1\na,7,9,y,2\ngone,7,9,z,3\n")
    made = Corpus(tmp_path, DatasetEntry("own", "folder", str(tmp_path / "videos"), str(tmp_path / "a.csv")))
    made.build()
    rows = made.rows("moments")
    length = made.rows("videos")["a"]["duration_s"]
    assert (rows["1_fig"]["duration_s"], rows["1_fig"]["end_s"], rows["1_fig"]["clamped"]) == (length, length, True)
    assert "begins after the video's end" in rows["2_fig"]["error"]
    assert (rows["3_fig"]["duration_s"], rows["3_fig"]["end_s"]) == (None, 9.0)
    assert due(made) == {}


@pytest.mark.slow
def test_the_toy_corpus_is_made_and_made_once(tmp_path: Path) -> None:
    entry = DatasetEntry("toy", "toy", str(tmp_path / "data/toy/videos"), str(tmp_path / "data/toy"))
    made = Corpus(tmp_path, entry)
    done = made.build(workers=2)
    assert done == made.planned
    assert (done["raw_videos"], done["videos"], done["frame_tensors"]) == (36, 36, 36)
    assert all(row["status"] == "ok" for name in done for row in made.rows(name).values())
    splits = pl.Series([row["splits"][0] for row in made.rows("videos").values()]).value_counts()
    assert dict(splits.iter_rows()) == {"train": 24, "val": 4, "test": 8}
    assert (tmp_path / "data/toy/videos/toy_test_00000.mp4").is_file()
    assert due(made) == {}
    path = tmp_path / "data/toy/toy_fig_test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["time"][1] -= 1
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert due(made) == {"annotation_files": 1, "moments": 1}
    more = dataclasses.replace(NANO, toy=dataclasses.replace(NANO.toy, num_test=10))
    made.config = more
    assert due(made)["raw_videos"] == 2


def test_a_newer_probe_reads_what_an_older_one_refused_and_decodes_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_b(path: Path, *limits: Any) -> Any:
        if path.name == "b.mp4":
            raise VideoError("b.mp4 is cut short")
        return probe_caged(path, *limits)

    (tmp_path / "videos").mkdir()
    for name in "ab":
        write_video(tmp_path / f"videos/{name}.mp4", TIMES)
    annotate(tmp_path, ("a", 0, 2, "one"), ("b", 1, 2, "two"))
    made = Corpus(tmp_path, DatasetEntry("own", "folder", str(tmp_path / "videos"), str(tmp_path / "a.jsonl")))
    with monkeypatch.context() as older:
        older.setattr(corpus.Videos, "version", corpus.Videos.version - 1)
        older.setattr("vsr1_core.media.probe.probe_caged", refuse_b)
        assert due(made) == {"annotation_files": 1, "raw_videos": 2, "videos": 2, "moments": 2, "frame_tensors": 1}
    assert due(made) == {"videos": 2, "frame_tensors": 1}
    assert set(made.rows("frame_tensors")) == {"a", "b"}


@pytest.mark.slow
def test_charades_without_videos_lists_each_missing_one(shared_data: Path, tmp_path: Path) -> None:
    entry = DatasetEntry("charades", "verified", str(tmp_path / "videos"), str(shared_data / "verified_fig"))
    made = Corpus(tmp_path, entry)
    made.build()
    moments = made.view().table("moments").ok_rows()
    assert moments.filter(pl.col("split") == "test").height == 3720
    videos = made.view().table("videos").rows().filter(pl.col("splits").list.contains("test"))
    assert videos.height == 1334
    assert set(videos["status"]) == {"failed"}
    assert all(str(tmp_path / "videos") in error for error in videos["error"])
    assert made.rows("frame_tensors") == {}


@pytest.mark.slow
@pytest.mark.long
def test_real_clips_are_all_ok_and_have_the_time_stamps_of_ffprobe(shared_data: Path, tmp_path: Path) -> None:
    clips = shared_data / "clips"
    made = Corpus(tmp_path, DatasetEntry("clips", "folder", str(clips / "videos"), str(clips / "annotations.jsonl")))
    made.build(workers=2)
    for asset in ("videos", "moments", "frame_tensors"):
        assert [row["status"] for row in made.rows(asset).values()] == ["ok"] * 18
    sampled = made.rows("frame_tensors")
    for video_id, video in made.rows("videos").items():
        path = Path(video["path"])  # the file of this name has a small video first, and a larger one as stream 3
        truth = np.array(ffprobe_times_s(path, "3" if path.name == "torchcodec__nasa_13013.mp4" else "v:0"))
        assert len(truth) == video["num_frames"]
        times = np.array(sampled[video_id]["timestamps_s"])
        distance = np.abs(times[:, None] - (truth - truth.min())[None, :]).min(axis=1)
        assert distance.max() < 0.5 / video["fps"], video_id
        assert np.all(np.diff(times) > 0)
        assert len(times) % 2 == 0


@pytest.mark.slow
def test_odd_videos_are_decoded_or_failed_rows(shared_data: Path, tmp_path: Path) -> None:
    made = Corpus(tmp_path, DatasetEntry("odd", "folder", str(shared_data / "odd_videos")))
    made.build(workers=2)
    videos = made.rows("videos")
    assert len(videos) == 8
    failed = {name: row["error"] for name, row in videos.items() if row["status"] != "ok"}
    assert set(failed) == {"mp4parse_rust__invalid_userdata", "mp4parse_rust__sine-3s-xhe-aac-44khz-mono"}
    assert [row["status"] for row in made.rows("frame_tensors").values()] == ["ok"] * 6
