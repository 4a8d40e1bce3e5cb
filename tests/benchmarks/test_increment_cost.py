"""What changing 1 % of the annotations costs, as a share of building the training data from scratch.

The corpus is toy's: 1,950 rendered videos. Its models are lent, of the tiny configuration's size and untrained: a toy
dataset that makes its own would make them again when a caption of the train split changes, where published ones stay.
Counted is the processor time of one process from the files to the prompts of stage 2, without rendering and training.

    python -m pytest -s tests/benchmarks/test_increment_cost.py
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.lent_models import LENDER, lend_untrained_models
from tests.benchmarks.measuring import in_seconds, line
from vsr1_core.configurations import TINY
from vsr1_core.datasets import toy, toy_files
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.recipes import Configuration
from vsr1_core.rows.files import write_jsonl
from vsr1_core.rows.lake import Lake
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import all_stages

CORPUS = TINY.toy
SHARE_CHANGED = 0.01
WANTED = "at most 0.05"
NUM_EDITS = 3
"""The median of so many: on a busy machine one more or less takes a third more time."""
EXECUTION = Execution(workers=1)


def test_changing_one_percent_of_the_annotations(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    lend_untrained_models(tmp_path)
    annotations = write_corpus(tmp_path)
    full_s, rows = timed_build(tmp_path)
    print(f"\nfrom scratch: {full_s:.1f} s of processor time, {sum(rows.values()):,} rows")

    seconds = []
    for offset in range(NUM_EDITS):
        changed = change(annotations, offset)
        write_annotations(tmp_path, annotations)
        part_s, again = timed_build(tmp_path)
        print(f"after {changed} of {rows['moments']:,} annotations changed: {part_s:.2f} s, {again}")
        assert again["moments"] == changed
        assert again["query_embeddings"] == changed
        assert again.get("video_embeddings", 0) == 0
        seconds.append(part_s)
    part_s = statistics.median(seconds)
    what = f"a build after {SHARE_CHANGED:.0%} of {rows['moments']:,} annotations changed"
    print(line(what, *in_seconds(full_s, part_s), part_s / full_s, WANTED, against="the build from scratch"))

    nothing_s, none = timed_build(tmp_path)
    print(f"after nothing changed: {nothing_s:.2f} s")
    assert none == {}


def write_corpus(home: Path) -> dict[str, list[dict[str, Any]]]:
    for scene in toy.scenes(CORPUS):
        toy_files.render_clip(scene, CORPUS, home / "corpus/videos" / f"{scene.video_id}.mp4")
    annotations = toy.annotations(CORPUS)
    write_annotations(home, annotations)
    return annotations


def write_annotations(home: Path, annotations: dict[str, list[dict[str, Any]]]) -> None:
    for split, rows in annotations.items():
        write_jsonl(home / "corpus" / f"corpus_fig_{split}.jsonl", rows)


def change(annotations: dict[str, list[dict[str, Any]]], offset: int) -> int:
    """Give one row in a hundred, from row `offset` on, another text and another span. Returns how many."""
    chosen = [row for rows in annotations.values() for row in rows][offset :: round(1 / SHARE_CHANGED)]
    for row in chosen:
        row["fig_desc"] += " again"
        row["time"] = [row["time"][0], row["time"][1] - 0.5]
    return len(chosen)


def timed_build(home: Path) -> tuple[float, dict[str, int]]:
    """Processor seconds from the files to the prompts of stage 2; asset -> rows processed, where there were any."""
    folder = home / "corpus"
    entry = DatasetEntry("corpus", "verified", str(folder / "videos"), str(folder), "tiny", models_from=LENDER)
    started = time.process_time()
    processed = build(view_of(home, entry, TINY), "grpo_prompts")
    return time.process_time() - started, processed


def view_of(home: Path, entry: DatasetEntry, config: Configuration) -> View:
    return View(Lake(home / "lake"), entry, config, all_stages(), home=home)


def build(view: View, last: str) -> dict[str, int]:
    """Every stage up to `last`, without those that train."""
    processed = {}
    for name, stage in view.stages.items():
        if stage.group != "checkpoints" or name == "base_models":
            processed[name] = stage.build(view, EXECUTION).num_processed
        if name == last:
            break
    return {name: number for name, number in processed.items() if number}
