"""Absence is not deletion: what is gone by mistake stops a build before any row is dropped."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from vsr1_core.configurations import NANO
from vsr1_core.datasets.folder import find_videos
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.rows.lake import Lake
from vsr1_core.stages import corpus
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import all_stages, in_order
from vsr1_core.stages.removals import FEW_ROWS, RemovalsRefused

NUM_VIDEOS = 40


class Files:
    """A dataset of files that are no videos, which no stage here opens, with one query each."""

    def __init__(self, root: Path, num_videos: int, kind: str = "folder") -> None:
        self.root, self.kind, self.num_videos = root, kind, num_videos
        self.videos = root / "videos"
        self.annotations = root / ("a.jsonl" if kind == "folder" else "own_fig_test.jsonl")
        self.videos.mkdir()
        for number in range(num_videos):
            (self.videos / f"v{number:02}.mp4").write_bytes(b"%d" % number)
        self.annotate(num_videos)

    def annotate(self, num_rows: int, query: str = "it moves", first: int = 0) -> None:
        rows = [
            {
                "video": f"v{n % self.num_videos:02}",
                "time": [0, 1],
                "desc_id": n,
                "duration": 3.0,
                "cog_desc": "x",
                "fig_desc": query,
            }
            for n in range(first, first + num_rows)
        ]
        self.annotations.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def view(self) -> View:
        place = self.annotations if self.kind == "folder" else self.root
        entry = DatasetEntry("own", self.kind, str(self.videos), str(place), "nano")
        stages = in_order([stage() for stage in corpus.STAGES])
        return View(Lake(self.root / "lake"), entry, NANO, stages, home=self.root)

    def build(self, max_removed: float | None = 0.1) -> dict[str, int]:
        view, run = self.view(), Execution(workers=1, max_removed=max_removed)
        return {name: stage.build(view, run).manifest["num_rows"] for name, stage in view.stages.items()}

    def num_rows(self) -> dict[str, int]:
        view = self.view()
        return {name: view.table(name).rows().height for name in view.stages}


@pytest.fixture
def many(tmp_path: Path) -> Files:
    files = Files(tmp_path, NUM_VIDEOS)
    assert files.build() == built(NUM_VIDEOS)
    return files


def built(number: int) -> dict[str, int]:
    return {"annotation_files": 1, "raw_videos": number, "videos": number, "moments": number}


def empty(folder: Path, keep: int = 0) -> None:
    for path in sorted(folder.iterdir())[keep:]:
        path.unlink()


def refused(files: Files, *said: str) -> None:
    """A build stops, says `said`, and drops nothing."""
    before = files.num_rows()
    with pytest.raises(RemovalsRefused) as raised:
        files.build()
    for text in (*said, "--allow-removals"):
        assert text in str(raised.value)
    assert files.num_rows() == before


def test_an_empty_mount_point_stops_the_build_and_drops_nothing(many: Files) -> None:
    empty(many.videos)
    refused(many, "40 of 40 known video files of own are gone at once (v00, v01, v02, ...)", "is an empty folder")


def test_what_was_removed_on_purpose_is_dropped_when_the_run_says_so(many: Files) -> None:
    empty(many.videos)
    many.annotate(0)
    assert many.build(max_removed=None) == {"annotation_files": 1, "raw_videos": 0, "videos": 0, "moments": 0}


def test_a_folder_that_is_there_in_part_stops_the_build(many: Files) -> None:
    empty(many.videos, keep=NUM_VIDEOS - FEW_ROWS)
    refused(many, "10 of 40 known video files")


def test_the_share_is_a_setting_of_the_run(many: Files) -> None:
    empty(many.videos, keep=NUM_VIDEOS - FEW_ROWS)
    assert many.build(max_removed=0.25)["raw_videos"] == NUM_VIDEOS - FEW_ROWS


def test_a_share_that_is_small_enough_is_dropped(tmp_path: Path) -> None:
    files = Files(tmp_path, 10 * FEW_ROWS)
    files.build()
    empty(files.videos, keep=9 * FEW_ROWS)
    assert files.build()["raw_videos"] == 9 * FEW_ROWS


def test_one_of_five_videos_may_be_removed_and_five_of_five_may_not(tmp_path: Path) -> None:
    files = Files(tmp_path, 5)
    files.build()
    empty(files.videos, keep=4)
    assert files.build()["raw_videos"] == 4
    empty(files.videos)
    refused(files, "4 of 4 known video files")


def test_renamed_videos_are_not_gone(many: Files) -> None:
    many.videos.rename(many.root / "kept")
    many.videos.mkdir()
    (many.root / "kept").rename(many.videos / "2026")
    many.build()
    assert many.view().table("raw_videos").rows()["video_id"][0] == "2026/v00"


def test_another_folder_in_its_place_stops_the_build(many: Files) -> None:
    empty(many.videos)
    for number in range(NUM_VIDEOS):
        (many.videos / f"other{number}.mp4").write_bytes(b"other %d" % number)
    refused(many, "40 of 40 known video files", "is there, without them")


def test_renamed_videos_that_nothing_annotates_are_not_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "probe_video", lambda task: {"duration_s": 3.0})
    files = Files(tmp_path, NUM_VIDEOS)
    files.annotate(0)
    files.build()
    files.videos.rename(files.root / "kept")
    files.videos.mkdir()
    (files.root / "kept").rename(files.videos / "2026")
    files.build()
    assert files.view().table("videos").rows()["video_id"].to_list() == [f"2026/v{n:02}" for n in range(NUM_VIDEOS)]


def test_new_videos_do_not_stand_for_gone_ones(many: Files) -> None:
    """As many new files as there are gone ones, and others with the same annotations."""
    empty(many.videos, keep=NUM_VIDEOS - FEW_ROWS)
    for number in range(FEW_ROWS):
        (many.videos / f"other{number}.mp4").write_bytes(b"other %d" % number)
    refused(many, "10 of 40 known video files of own are gone at once (v30, v31, v32, ...)")


def test_new_annotated_videos_do_not_stand_for_gone_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All files are there; the annotations name other ones of them."""
    monkeypatch.setattr(corpus, "probe_video", lambda task: {"duration_s": 3.0})
    files = Files(tmp_path, 2 * NUM_VIDEOS, kind="verified")
    files.annotate(NUM_VIDEOS)
    files.build()
    files.annotate(NUM_VIDEOS, first=FEW_ROWS)
    refused(files, "10 of 40 known videos of own are gone at once (v00, v01, v02, ...)")


def test_new_annotation_rows_do_not_stand_for_gone_ones(many: Files) -> None:
    many.annotate(NUM_VIDEOS, first=FEW_ROWS)
    refused(many, "10 of 40 known annotation rows of own are gone at once (0_fig, 1_fig, 2_fig, ...)")


def test_a_new_annotation_file_does_not_stand_for_a_gone_one(tmp_path: Path) -> None:
    files = Files(tmp_path, 2, kind="verified")
    files.build()
    files.annotations.unlink()
    files.annotations = tmp_path / "own_fig_train.jsonl"
    files.annotate(2, query="it turns")
    refused(files, "1 of 1 known annotation files of own are gone at once (own_fig_test.jsonl)")
    files.annotate(2)
    assert files.build()["annotation_files"] == 1, "the same file under another name"


def test_a_dataset_that_was_registered_with_another_annotation_file_has_lost_none(tmp_path: Path) -> None:
    files = Files(tmp_path, 2)
    files.build()
    files.annotations.unlink()
    files.annotations = tmp_path / "b.jsonl"
    files.annotate(2, query="it turns")
    assert files.build() == built(2)


def test_lines_that_were_put_right_are_not_gone(many: Files) -> None:
    """A line that cannot be read is a row named after its place, which its moment is not."""
    right = many.annotations.read_text()
    many.annotations.write_text("".join(f"{line[:-2]}\n" for line in right.splitlines()))
    assert many.build(max_removed=None)["moments"] == NUM_VIDEOS
    many.annotations.write_text(right)
    assert many.build() == built(NUM_VIDEOS)
    assert many.view().table("moments").rows()["status"].to_list() == ["ok"] * NUM_VIDEOS


def test_a_truncated_annotation_file_stops_the_build(many: Files) -> None:
    many.annotate(NUM_VIDEOS - FEW_ROWS)
    refused(many, "10 of 40 known annotation rows", str(many.annotations))


def test_edited_queries_are_not_gone(tmp_path: Path) -> None:
    """In a CSV without ids, a query of another text is another row."""
    files = Files(tmp_path, NUM_VIDEOS)
    files.annotations = tmp_path / "a.csv"
    for query in ("it moves", "it turns"):
        lines = [f"v{number:02},0,1,{query}" for number in range(NUM_VIDEOS)]
        files.annotations.write_text("\n".join(["video,start,end,query", *lines]))
        assert files.build() == built(NUM_VIDEOS)


def test_a_person_may_remove_the_few_rows_of_an_annotation_file(tmp_path: Path) -> None:
    files = Files(tmp_path, 2)
    files.build()
    files.annotate(0)
    assert files.build()["moments"] == 0


def test_a_known_annotation_file_that_is_missing_stops_the_build(tmp_path: Path) -> None:
    files = Files(tmp_path, 2, kind="verified")
    files.build()
    (tmp_path / "own_fig_train.jsonl").write_text(files.annotations.read_text())
    files.build()
    files.annotations.unlink()
    refused(files, "known annotation files", "own_fig_test.jsonl")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_stops_the_build(many: Files) -> None:
    (many.videos / "more").mkdir()
    (many.videos / "more").chmod(0)
    with pytest.raises(OSError, match=r"more cannot be read \(Permission denied\): make it readable"):
        many.build()


def test_a_folder_that_cannot_be_listed_stops_the_build(many: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(OSError, match=r"videos cannot be read \(Permission denied\): make it readable"):
        find_videos(many.videos)


def test_a_folder_that_cannot_be_listed_to_its_end_stops_the_build(
    many: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system names no file in such an error."""

    class Cut:
        def __enter__(self) -> Any:
            raise OSError(5, "Input/output error")

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", lambda _: Cut())
    with pytest.raises(OSError, match=r"videos cannot be read \(Input/output error\): make it readable"):
        find_videos(many.videos)


def test_a_smaller_rendered_corpus_needs_no_leave(tmp_path: Path) -> None:
    entry = DatasetEntry("toy", "toy", str(tmp_path / "videos"), str(tmp_path), "nano")
    stage = all_stages()["raw_videos"]
    for num_train in (2 * FEW_ROWS, 1):
        toy = dataclasses.replace(NANO.toy, num_train=num_train, num_val=0, num_test=0)
        view = View(Lake(tmp_path / "lake"), entry, dataclasses.replace(NANO, toy=toy), {"raw_videos": stage})
        assert stage.build(view, Execution(workers=1)).manifest["num_rows"] == num_train
