"""The whole data construction at the true scale of Charades, without its videos: rows per second and memory a stage.

    python -m tests.benchmarks.stand_in --annotations FOLDER --home FOLDER [--videos 300]
    python -m tests.benchmarks.stand_in --annotations FOLDER --home FOLDER --edit 0.01

FOLDER of the annotations holds the real charades_fig_{train,test}.jsonl. For each of their 6,672 videos a small h264
clip with the real id is made, as long as annotated (rounded up to whole steps of a few seconds, so that every span lies
inside); then everything from annotation files to the stage 2 prompts is built with untrained models of the size of
`tiny`, in one `vsr1 build`.

The same command goes on where it was stopped: clips and rows that are there are not made again, and a stage's numbers
are those of all runs that made rows of it (`<home>/stand_in.json`). `--videos` takes so many of the videos, and their
queries. `--edit` gives that share of the annotations another text and another span, and says what the build after it
costs; each time others are taken.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.benchmarks.lent_models import LENDER, lend_untrained_models
from tests.benchmarks.stand_in_clips import CHARADES, change_annotations, clips, make_clip, place_annotations
from vsr1_core.datasets.registry import DatasetEntry, save_entry
from vsr1_core.rows.files import read_json, write_json
from vsr1_core.rows.workers import map_rows
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import open_view

RECORD = "stand_in.json"
BUILT = ("annotation_files", "raw_videos", "videos", "moments", "frame_tensors", "query_embeddings", "video_embeddings",
         "video_index", "first_ranking", "hard_negatives", "top1_pool", "reasoning_traces", "sft_examples",
         "grpo_prompts")  # fmt: skip
SAMPLE_S = 1.0


@dataclass
class Watched:
    """What a process and its children have taken, looked at once a second.

    samples: (time, MiB without counting shared pages twice, processor seconds so far).
    """

    pid: int
    samples: list[tuple[float, float, float]] = field(default_factory=list)
    _taken: dict[int, float] = field(default_factory=dict)

    def watch(self, stop: threading.Event) -> None:
        while not stop.wait(SAMPLE_S):
            self.samples.append((time.time(), *self._now()))

    def _now(self) -> tuple[float, float]:
        memory = 0
        try:
            root = psutil.Process(self.pid)
            for process in [root, *root.children(recursive=True)]:
                memory += process.memory_full_info().pss
                times = process.cpu_times()
                self._taken[process.pid] = times.user + times.system
        except psutil.Error:  # a worker that has just ended
            pass
        return memory / 2**20, sum(self._taken.values())

    def memory(self, start: float, end: float) -> list[float]:
        """MiB of each sample between two times, or around them where they lie closer than the samples."""
        return [m for at, m, _ in self.samples if start <= at <= end] or [
            m for at, m, _ in self.samples if start - 2 <= at <= end + 2
        ] or [0.0]  # fmt: skip

    def processor_s(self, start: float, end: float) -> float:
        """Processor seconds taken between two times, all processes together."""
        at, taken = [0.0, *(s[0] for s in self.samples)], [0.0, *(s[2] for s in self.samples)]
        return float(np.interp(end, at, taken) - np.interp(start, at, taken))


@dataclass(frozen=True)
class Run:
    """One command, from its start to its end. processor_s: of all its processes."""

    started: float
    seconds: float
    processor_s: float
    watched: Watched


def vsr1(home: Path, *arguments: str) -> Run:
    """Run the command line on `home` to its end. CalledProcessError when it fails."""
    environ = {**os.environ, "VSR1_HOME": str(home), "VSR1_DEVICE": "cpu"}
    started, before = time.time(), _children_s()
    process = subprocess.Popen([sys.executable, "-m", "pipelines.cli", *arguments], env=environ)
    watched, stop = Watched(process.pid), threading.Event()
    watcher = threading.Thread(target=watched.watch, args=[stop])
    watcher.start()
    try:
        code = process.wait()
    finally:
        stop.set()
        watcher.join()
    if code:
        raise subprocess.CalledProcessError(code, arguments)
    return Run(started, time.time() - started, _children_s() - before, watched)


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def add_measured(stages: dict[str, dict[str, Any]], home: Path, run: Run) -> None:
    """Add to each stage's numbers what it did in `run`."""
    for asset, manifest, end in processed(home, run):
        start = end - manifest["seconds"]
        used = run.watched.memory(start, end)
        before = stages.get(asset, {"rows": 0, "seconds": 0.0, "processor_s": 0.0, "mib_first_quarter": 0,
                                    "mib_peak": 0})  # fmt: skip
        rows, seconds = before["rows"] + manifest["num_processed"], before["seconds"] + manifest["seconds"]
        stages[asset] = {
            "rows": rows,
            "failed": manifest["num_failed"],
            "seconds": round(seconds, 3),
            "processor_s": round(before["processor_s"] + run.watched.processor_s(start, end), 1),
            "rows_per_s": round(rows / max(seconds, 1e-3), 1),
            "mib_first_quarter": max(before["mib_first_quarter"], round(max(used[: max(1, len(used) // 4)]))),
            "mib_peak": max(before["mib_peak"], round(max(used))),
        }


def processed(home: Path, run: Run) -> Iterator[tuple[str, dict[str, Any], float]]:
    """(asset, manifest, time of its commit) of each table in which `run` made rows."""
    view = open_view(home, "charades")
    for asset in BUILT:
        manifest, end = view.table(asset).manifest(), view.table(asset).manifest_path.stat().st_mtime
        if end >= run.started and manifest["num_processed"]:
            yield asset, manifest, end


def report(record: dict[str, Any]) -> str:
    """A Markdown table, and how many rows each split has against the published counts."""
    lines = [
        "| stage | rows | failed | s | processor s | rows/s | MiB, first quarter | MiB, peak |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for asset in (a for a in BUILT if a in record["stages"]):
        cells = [f"{value:,}" if value else "0" for value in record["stages"][asset].values()]
        lines.append(f"| {' | '.join([asset, *cells])} |")
    lines += [
        f"{name}: {count:,} rows, as published {record['published'][name]:,}"
        for name, count in record["counts"].items()
    ]
    lines.append(f"clips: {record['clips']['made']:,} made in {record['clips']['seconds']:,} s")
    lines.append(
        f"build: {record['build_s']:,} s in all, {record['build_processor_s']:,} s of processor time, "
        f"{record['processors']} processors, {record['workers']} workers"
    )
    return "\n".join(lines + [edit_line(edit, record) for edit in record.get("edits", [])])


def edit_line(edit: dict[str, Any], record: dict[str, Any]) -> str:
    stages_s = sum(stage["processor_s"] for stage in record["stages"].values())
    rows = ", ".join(f"{asset} {count:,}" for asset, count in edit["rows"].items())
    return (
        f"{edit['changed']:,} annotations changed: {edit['work_s']} s of processor time in one process, "
        f"{edit['work_s'] / stages_s:.1%} of the {stages_s:,.0f} s of all stages; as a command {edit['seconds']} s, "
        f"{edit['processor_s']} s of processor time, with nothing changed {edit['idle_seconds']} s and "
        f"{edit['idle_processor_s']} s; rows: {rows}"
    )


def build(home: Path) -> Run:
    return vsr1(home, "build", "--dataset", "charades", "--assets", "sft_examples,grpo_prompts")


def make_clips(record: dict[str, Any], durations: dict[str, float], folder: Path, step_s: float, workers: int) -> None:
    """Those that are missing. SystemExit when one could not be made."""
    folder.mkdir(parents=True, exist_ok=True)
    started, made = time.time(), 0
    for result in map_rows(make_clip, clips(durations, folder, step_s), workers):
        if result.error is not None:
            raise SystemExit(f"{result.item.path} could not be made: {result.error}")
        made += bool(result.value)
    record["clips"]["made"] += made
    record["clips"]["seconds"] += round(time.time() - started) if made else 0


def construct(home: Path, record: dict[str, Any], options: argparse.Namespace) -> None:
    """Clips and base models, and then, counted, everything from annotation files to prompts."""
    data = home / "data/charades"
    durations = place_annotations(options.annotations, data / "annotations", options.videos)
    make_clips(record, durations, data / "videos", options.step, record["workers"])
    write_json(home / RECORD, record)
    lend_untrained_models(home, record["workers"])
    folders = str(data / "videos"), str(data / "annotations")
    save_entry(home, DatasetEntry("charades", "verified", *folders, options.config, LENDER))
    run = build(home)
    add_measured(record["stages"], home, run)
    record["build_s"] += round(run.seconds)
    record["build_processor_s"] += round(run.processor_s)
    files = open_view(home, "charades").rows("annotation_files")
    record["counts"] = dict(files.select("file_id", "num_rows").iter_rows())
    record["published"] = {file.name: file.num_rows for file in CHARADES.files}


def edit(home: Path, record: dict[str, Any], share: float) -> None:
    """Change this share of the annotations and build in this process; change others and build by the command; build
    by the command with nothing changed."""
    edits, annotations = record.setdefault("edits", []), home / "data/charades/annotations"
    changed = change_annotations(annotations, share, offset=2 * len(edits))
    rows, work_s = build_here(home)
    change_annotations(annotations, share, offset=2 * len(edits) + 1)
    run, idle = build(home), build(home)
    edits.append({
        "changed": changed, "rows": rows, "work_s": round(work_s, 1),
        "seconds": round(run.seconds, 1), "processor_s": round(run.processor_s, 1),
        "idle_seconds": round(idle.seconds, 1), "idle_processor_s": round(idle.processor_s, 1),
    })  # fmt: skip


def build_here(home: Path) -> tuple[dict[str, int], float]:
    """Every stage planned, made and committed in this one process: rows by stage, and processor seconds.

    Without the start of a process: what it imports is imported before, as it is in a process that has built before.
    """
    import faiss  # noqa: F401
    import torch
    from transformers.models.qwen3_vl import modeling_qwen3_vl  # noqa: F401

    from vsr1_core.models.qwen3_vl import family  # noqa: F401

    torch.set_num_threads(1)
    view, rows = open_view(home, "charades"), {}
    started = time.process_time()
    for asset in (name for name in view.stages if name in (*BUILT, "base_models")):
        rows[asset] = view.stages[asset].build(view, Execution(workers=1)).num_processed
    return {asset: count for asset, count in rows.items() if count}, time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--videos", type=int, help="so many of the videos (default: all)")
    parser.add_argument(
        "--step", type=float, default=3.0, help="durations are rounded up to whole steps of so many seconds"
    )
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--edit", type=float, metavar="SHARE", help="change so many of the annotations, as 0.01")
    options = parser.parse_args()
    home = options.home.absolute()
    path = home / RECORD
    new: dict[str, Any] = {"stages": {}, "clips": {"made": 0, "seconds": 0}, "build_s": 0, "build_processor_s": 0}
    record = read_json(path) if path.exists() else new
    record["processors"], record["workers"] = os.cpu_count(), int(os.environ.get("VSR1_WORKERS", os.cpu_count() or 1))
    if options.edit is not None:
        edit(home, record, options.edit)
    elif "edits" in record:
        raise SystemExit(f"the annotations in {home} were edited; take another --home, or --edit again")
    else:
        construct(home, record, options)
    write_json(path, record)
    print(report(record))


if __name__ == "__main__":
    main()
