"""The clips that stand in for a dataset's videos have its ids and lengths, and are not made twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.stand_in_clips import change_annotations, clips, make_clip, place_annotations
from vsr1_core.configurations import CONFIGURATIONS
from vsr1_core.datasets.file_check import check_files
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.media.probe import probe
from vsr1_core.rows.workers import map_rows


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    for name, videos in (("train", ("AAAAA", "BBBBB", "CCCCC")), ("test", ("DDDDD",))):
        rows = [
            {"video": v, "time": [2.0 * n, 9.5], "desc_id": f"{v}{n}", "duration": 10.2, "fig_desc": "x"}
            for v in videos
            for n in range(2)
        ]
        (tmp_path / f"charades_fig_{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_clips_stand_in_for_the_annotated_videos(annotations: Path, tmp_path: Path) -> None:
    durations = place_annotations(annotations, tmp_path / "all", None)
    (tmp_path / "videos").mkdir()
    made = list(map_rows(make_clip, clips(durations, tmp_path / "videos", 3.0), 2))
    assert [r.value for r in made] == [True] * 4
    assert [make_clip(clip) for clip in clips(durations, tmp_path / "videos", 3.0)] == [False] * 4
    assert probe(tmp_path / "videos/AAAAA.mp4").duration_s == pytest.approx(12)
    entry = DatasetEntry("charades", "verified", str(tmp_path / "videos"), str(tmp_path / "all"))
    assert {f.kind for f in check_files(entry, CONFIGURATIONS["nano"])} == {"wrong count"}


def test_a_part_holds_whole_videos_and_a_larger_part_holds_the_smaller(annotations: Path, tmp_path: Path) -> None:
    two, three = (set(place_annotations(annotations, tmp_path / str(n), n)) for n in (2, 3))
    assert two < three
    kept = [json.loads(text)["video"] for path in (tmp_path / "3").iterdir() for text in path.read_text().splitlines()]
    assert sorted(kept) == sorted([*three, *three])


def test_an_edit_changes_the_asked_share_of_the_rows_and_the_next_one_others(annotations: Path) -> None:
    before = texts(annotations)
    assert change_annotations(annotations, 0.5) == 4
    first = texts(annotations)
    assert sum(a != b for a, b in zip(before, first, strict=True)) == 4
    assert change_annotations(annotations, 0.5, offset=1) == 4
    assert all(a != b for a, b in zip(before, texts(annotations), strict=True))


def texts(folder: Path) -> list[str]:
    return [json.loads(line)["fig_desc"] for path in sorted(folder.glob("*.jsonl")) for line in path.open()]
