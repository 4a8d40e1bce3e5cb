"""Annotations against files on disk: each way in which they can disagree is found, and nothing else is."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.videos import write_video
from vsr1_core.configurations import CONFIGURATIONS
from vsr1_core.datasets import sources
from vsr1_core.datasets.benchmarks import BENCHMARKS, wrong_row_count
from vsr1_core.datasets.file_check import KINDS, Finding, check_files
from vsr1_core.datasets.registry import DatasetEntry

NANO = CONFIGURATIONS["nano"]


def annotate(root: Path, *rows: tuple[str, float, float]) -> DatasetEntry:
    lines = [
        {"video": v, "time": [start, end], "desc_id": n, "duration": 60.0, "cog_desc": "x", "fig_desc": f"query {n}"}
        for n, (v, start, end) in enumerate(rows)
    ]
    (root / "videos").mkdir()
    (root / "own_fig_test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return DatasetEntry("own", "verified", str(root / "videos"), str(root))


def found(entry: DatasetEntry, workers: int = 1) -> list[tuple[str, str]]:
    return [(f.kind, f.row_id) for f in check_files(entry, NANO, workers)]


def test_files_that_are_as_annotated_give_no_finding(tmp_path: Path) -> None:
    entry = annotate(tmp_path, ("a", 0, 4), ("a", 4.5, 60), ("b.mp4", 1, 2))
    for name in "ab":
        write_video(tmp_path / f"videos/{name}.mp4", range(5))
    assert found(entry, workers=2) == []


@pytest.mark.slow
def test_each_disagreement_is_found_and_says_why(tmp_path: Path) -> None:
    entry = annotate(
        tmp_path, ("good", 0, 4), ("short", 1, 9), ("short", 5, 9), ("gone", 0, 1), ("cut", 0, 1), ("two", 0, 1),
        ("good", 3, 2),
    )  # fmt: skip
    for name in ("good", "short", "extra", "cut", "two"):
        write_video(tmp_path / f"videos/{name}.mp4", range(5))
    cut = tmp_path / "videos/cut.mp4"
    cut.write_bytes(cut.read_bytes()[:500])
    write_video(tmp_path / "videos/two.mkv", range(5))
    findings = list(check_files(entry, NANO, workers=2))
    assert sorted((f.kind, f.row_id) for f in findings) == [
        ("bad row", "own_fig_test.jsonl:7"), ("clash", "two"), ("extra", "extra"), ("missing", "gone"),
        ("too short", "2_fig"), ("undecodable", "cut"),
    ]  # fmt: skip
    by_kind = {f.kind: f for f in findings}
    assert set(by_kind) <= set(KINDS)
    assert "[5, 9] s begins after the file's end at 5.00 s" in by_kind["too short"].detail
    assert by_kind["too short"].file.endswith("short.mp4")
    assert "cut.mp4" in by_kind["undecodable"].detail
    assert str(tmp_path / "videos") in by_kind["missing"].detail


def test_videos_of_an_own_folder_need_no_annotation(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", range(5))
    (tmp_path / "b.mp4").write_bytes(b"not a video")
    assert found(DatasetEntry("mine", "folder", str(tmp_path))) == [("undecodable", "b")]


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("charades", {"train": 12408, "test": 3720}),
        ("didemo", {"train": 32903, "val": 4175, "test": 4013}),
        ("activitynet", {"train": 37261, "val": 17429, "test": 16966}),
    ],
)
def test_the_published_row_counts_are_expected(name: str, counts: dict[str, int]) -> None:
    assert {f.split: f.num_rows for f in BENCHMARKS[name].files} == counts
    assert BENCHMARKS[name].is_video_id(BENCHMARKS[name].id_example)
    for file in BENCHMARKS[name].files:
        assert wrong_row_count(file.name, file.num_rows) == ""
        assert f"{file.num_rows:,}" in wrong_row_count(file.name, file.num_rows - 1)


def real_entry(shared_data: Path, name: str, videos: Path) -> DatasetEntry:
    return DatasetEntry(name, "verified", str(videos), str(shared_data / "verified_fig"))


def test_the_real_charades_annotations_lack_their_videos_and_nothing_else(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos/TAQ25.mp4", range(60))
    findings = list(check_files(real_entry(shared_data, "charades", tmp_path / "videos"), NANO))
    assert Counter(f.kind for f in findings) == {
        "missing": 6670,
        "bad row": 1,
    }  # one video has no other row than the bad one


def test_the_real_didemo_annotations_have_the_ids_and_counts_they_should(shared_data: Path, tmp_path: Path) -> None:
    findings = list(check_files(real_entry(shared_data, "didemo", tmp_path), NANO))
    others = [f for f in findings if f.kind != "missing"]
    assert [f.row_id for f in others] == ["didemo_fig_train.jsonl"]  # the one file that is not there
    assert "didemo_fig_train.jsonl is not there" in others[0].detail


def test_a_shortened_annotation_file_is_found(shared_data: Path, tmp_path: Path) -> None:
    for name in ("charades_fig_train.jsonl", "charades_fig_test.jsonl"):
        lines = (shared_data / "verified_fig" / name).read_text().splitlines(keepends=True)
        (tmp_path / name).write_text("".join(lines[:-1] if "test" in name else lines))
    entry = DatasetEntry("charades", "verified", str(tmp_path), str(tmp_path))
    wrong: list[Any] = [f for f in check_files(entry, NANO) if f.kind == "wrong count"]
    assert [(f.row_id, f.detail.split(":")[0]) for f in wrong] == [
        ("charades_fig_test.jsonl", "charades_fig_test.jsonl has 3,719 rows, the published file has 3,720")
    ]


def test_a_strange_id_is_found_in_a_public_dataset(tmp_path: Path) -> None:
    row = {"video": "abc", "time": [0, 1], "desc_id": 1, "duration": 9, "cog_desc": "x", "fig_desc": "y"}
    (tmp_path / "activitynet_fig_train.jsonl").write_text(json.dumps(row) + "\n")
    findings = list(check_files(DatasetEntry("activitynet", "verified", str(tmp_path), str(tmp_path)), NANO))
    assert Finding("strange id", "abc", "", "ids of activitynet look like v_vYxBAbbvSxc") in findings


def test_a_missing_video_says_how_to_list_all_of_them() -> None:
    message = sources.missing_video_error(DatasetEntry("didemo", "verified", "/v"), "x")
    assert "vsr1 dataset check didemo" in message
