"""The whole data construction at the true scale of Charades, without its videos: rows per second and memory a stage.

    python -m tests.benchmarks.stand_in --annotations FOLDER --home FOLDER [--videos 300]

FOLDER of the annotations holds the real charades_fig_{train,test}.jsonl. For each of their 6,672 videos a small h264
clip with the real id is made, as long as annotated (rounded up to whole steps of a few seconds, so that every span lies
inside); then everything from annotation files to the stage 2 prompts is built with tiny models, in one `vsr1 build`.
The same command goes on where it was stopped: clips and rows that are there are not made again, and a stage's numbers
are those of all runs that made rows of it (`<home>/stand_in.json`). `--videos` takes so many of the videos, and their
queries.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.stand_in_clips import CHARADES, clips, make_clip, place_annotations
from vsr1_core.datasets.registry import DatasetEntry, save_entry
from vsr1_core.engine import map_rows
from vsr1_core.graph import open_view
from vsr1_core.lake import read_json, write_json

LENDER = "stand-in-models"
BUILT = ("annotation_files", "raw_videos", "videos", "moments", "frame_tensors", "query_embeddings", "video_embeddings",
         "video_index", "first_ranking", "hard_negatives", "top1_pool", "reasoning_traces", "sft_examples",
         "grpo_prompts")  # fmt: skip
SAMPLE_S = 0.25


@dataclass
class Memory:
    """What a process and its children take, in MiB without counting shared pages twice, a few times a second."""

    pid: int
    samples: list[tuple[float, float]] = field(default_factory=list)

    def watch(self, stop: threading.Event) -> None:
        while not stop.wait(SAMPLE_S):
            self.samples.append((time.time(), self._now()))

    def _now(self) -> float:
        total = 0
        try:
            root = psutil.Process(self.pid)
            for process in [root, *root.children(recursive=True)]:
                total += process.memory_full_info().pss
        except psutil.Error:  # a worker that has just ended
            pass
        return total / 2**20

    def between(self, start: float, end: float) -> list[float]:
        return [used for at, used in self.samples if start <= at <= end]


def vsr1(home: Path, *arguments: str) -> Memory:
    """Run the command line on `home` to its end. CalledProcessError when it fails."""
    environ = {**os.environ, "VSR1_HOME": str(home), "VSR1_DEVICE": "cpu"}
    process = subprocess.Popen([sys.executable, "-m", "pipelines.cli", *arguments], env=environ)
    memory, stop = Memory(process.pid), threading.Event()
    watcher = threading.Thread(target=memory.watch, args=[stop])
    watcher.start()
    try:
        code = process.wait()
    finally:
        stop.set()
        watcher.join()
    if code:
        raise subprocess.CalledProcessError(code, arguments)
    return memory


def add_measured(stages: dict[str, dict[str, Any]], home: Path, started: float, memory: Memory) -> None:
    """Add to each stage's numbers what it did in a run that began at `started`."""
    view = open_view(home, "charades")
    for asset in BUILT:
        manifest, end = view.table(asset).manifest(), view.table(asset).manifest_path.stat().st_mtime
        if end < started or not manifest["num_processed"]:
            continue
        used = memory.between(end - manifest["seconds"], end) or memory.between(end - 2, end + 2) or [0.0]
        before = stages.get(asset, {"rows": 0, "seconds": 0.0, "mib_first_quarter": 0, "mib_peak": 0})
        rows, seconds = before["rows"] + manifest["num_processed"], before["seconds"] + manifest["seconds"]
        stages[asset] = {
            "rows": rows,
            "failed": manifest["num_failed"],
            "seconds": round(seconds, 3),
            "rows_per_s": round(rows / max(seconds, 1e-3), 1),
            "mib_first_quarter": max(before["mib_first_quarter"], round(max(used[: max(1, len(used) // 4)]))),
            "mib_peak": max(before["mib_peak"], round(max(used))),
        }


def report(record: dict[str, Any]) -> str:
    """A Markdown table, and how many rows each split has against the published counts."""
    lines = ["| stage | rows | failed | s | rows/s | MiB, first quarter | MiB, peak |", "|---|---|---|---|---|---|---|"]
    for asset in (a for a in BUILT if a in record["stages"]):
        lines.append(
            "| " + " | ".join(f"{value:,}" if value else "0" for value in record["stages"][asset].values()) + " |"
        )
        lines[-1] = f"| {asset} {lines[-1]}"
    lines += [
        f"{name}: {count:,} rows, as published {record['published'][name]:,}"
        for name, count in record["counts"].items()
    ]
    lines.append(f"clips: {record['clips']['made']:,} made in {record['clips']['seconds']:,} s")
    lines.append(
        f"build: {record['build_s']:,} s in all, {record['processors']} processors, {record['workers']} workers"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--videos", type=int, help="so many of the videos (default: all)")
    parser.add_argument(
        "--step", type=float, default=3.0, help="durations are rounded up to whole steps of so many seconds"
    )
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--models-config", default="nano", help="of the rendered dataset whose base models are used")
    options = parser.parse_args()
    home = options.home.absolute()
    workers = int(os.environ.get("VSR1_WORKERS", os.cpu_count() or 1))
    path = home / "stand_in.json"
    record = read_json(path) if path.exists() else {"stages": {}, "clips": {"made": 0, "seconds": 0}, "build_s": 0}
    data = home / "data/charades"
    durations = place_annotations(options.annotations, data / "annotations", options.videos)
    (data / "videos").mkdir(parents=True, exist_ok=True)
    started = time.time()
    made = 0
    for result in map_rows(make_clip, clips(durations, data / "videos", options.step), workers):
        if result.error is not None:
            raise SystemExit(f"{result.item.path} could not be made: {result.error}")
        made += bool(result.value)
    record["clips"]["made"] += made
    record["clips"]["seconds"] += round(time.time() - started) if made else 0
    write_json(path, record)
    rendered = home / "data" / LENDER
    save_entry(home, DatasetEntry(LENDER, "toy", str(rendered / "videos"), str(rendered), options.models_config))
    folders = str(data / "videos"), str(data / "annotations")
    save_entry(home, DatasetEntry("charades", "verified", *folders, options.config, LENDER))
    vsr1(home, "build", "--dataset", LENDER, "--assets", "base_models")
    started = time.time()
    memory = vsr1(home, "build", "--dataset", "charades", "--assets", "sft_examples,grpo_prompts")
    add_measured(record["stages"], home, started, memory)
    record["build_s"] += round(time.time() - started)
    files = open_view(home, "charades").rows("annotation_files")
    record["counts"] = dict(files.select("file_id", "num_rows").iter_rows())
    record["published"] = {file.name: file.num_rows for file in CHARADES.files}
    record["processors"], record["workers"] = os.cpu_count(), workers
    write_json(path, record)
    print(report(record))


if __name__ == "__main__":
    main()
