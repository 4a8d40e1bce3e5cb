"""The three public datasets: their annotation files and numbers of rows, the form of their ids, and where to get them.

This module contains only facts; `verified` reads the files, and `file_check` compares the facts with the disk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

VERIFIED_FIG = "https://github.com/hlchen23/VERIFIED"


@dataclass(frozen=True)
class AnnotationSpec:
    """One annotation file as published. num_rows: the number of its lines."""

    name: str
    split: str
    num_rows: int


@dataclass(frozen=True)
class Benchmark:
    """One public dataset.

    folder: the folder of its files in the annotation repository. files: in the order train, val, test. id_pattern: a
    regular expression that matches every video id as a whole. suffixes: the suffixes of the published videos, the most
    frequent first.
    """

    name: str
    title: str
    folder: str
    files: tuple[AnnotationSpec, ...]
    id_pattern: str
    id_example: str
    suffixes: tuple[str, ...]
    videos_from: str
    videos_note: str

    @property
    def splits(self) -> dict[str, str]:
        """Map file name -> split."""
        return {file.name: file.split for file in self.files}

    @property
    def annotations_from(self) -> str:
        return f"{VERIFIED_FIG} (fine-grained-anno/{self.folder})"

    def is_video_id(self, video_id: str) -> bool:
        return re.fullmatch(self.id_pattern, video_id) is not None


BENCHMARKS: Mapping[str, Benchmark] = {
    b.name: b
    for b in (
        Benchmark(
            name="charades",
            title="Charades-FIG",
            folder="charades-fig",
            files=(
                AnnotationSpec("charades_fig_train.jsonl", "train", 12_408),
                AnnotationSpec("charades_fig_test.jsonl", "test", 3_720),
            ),
            id_pattern=r"[A-Z0-9]{5}",
            id_example="TAQ25",
            suffixes=(".mp4",),
            videos_from="https://prior.allenai.org/projects/charades (Charades_v1_480.zip)",
            videos_note="the archive has more videos than the annotations: `vsr1 dataset check charades --allow-extra`",
        ),
        Benchmark(
            name="didemo",
            title="DiDeMo-FIG",
            folder="didemo-fig",
            files=(
                AnnotationSpec("didemo_fig_train.jsonl", "train", 32_903),
                AnnotationSpec("didemo_fig_val.jsonl", "val", 4_175),
                AnnotationSpec("didemo_fig_test.jsonl", "test", 4_013),
            ),
            id_pattern=r"\d+@N\d+_\d+_[0-9a-f]+",
            id_example="58792004@N06_8544469262_fd25eddb2e",
            suffixes=(".mp4", ".mov", ".avi", ".mpg", ".m4v", ".wmv", ".3gp"),
            videos_from="https://github.com/LisaAnne/LocalizingMoments (download/download_videos_AWS.py)",
            videos_note="annotations name a video without its suffix; the file is `<id>` with any of the suffixes",
        ),
        Benchmark(
            name="activitynet",
            title="ActivityNet-FIG",
            folder="activitynet-fig",
            files=(
                AnnotationSpec("activitynet_fig_train.jsonl", "train", 37_261),
                AnnotationSpec("activitynet_fig_val_1.jsonl", "val", 17_429),
                AnnotationSpec("activitynet_fig_val_2.jsonl", "test", 16_966),
            ),
            id_pattern=r"v_[A-Za-z0-9_-]{11}",
            id_example="v_vYxBAbbvSxc",
            suffixes=(".mp4", ".mkv", ".webm"),
            videos_from="http://activity-net.org/download.html",
            videos_note="file names begin with `v_`, as the ids do; val_2 is the test split",
        ),
    )
}


def wrong_row_count(file_name: str, num_rows: int) -> str:
    """The message for an annotation file that has `num_rows` rows instead of the published number. It is empty when the
    number is right, and for a file that is not a published one."""
    for benchmark in BENCHMARKS.values():
        for file in benchmark.files:
            if file.name == file_name and file.num_rows != num_rows:
                return f"{file_name} has {num_rows:,} rows, the published file has {file.num_rows:,}: fetch it again"
    return ""
