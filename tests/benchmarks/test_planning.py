"""What a plan costs for each annotated query, over all stages of the graph.

The lake holds videos with four queries each. Work is replaced by fixed values; which rows are wanted, their
versions and the tables are those of the real stages. Each plan is made in a new process, as `vsr1 plan` makes it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.benchmarks.measuring import as_of_a_command, line, resident_bytes, scaled
from tests.cheap_stages import cheap_main_stages, digest
from tests.small_world import DURATION_S, SmallWorld
from vsr1_core.configurations import TINY
from vsr1_core.models.peak_memory import PeakMemory
from vsr1_core.stages.base import Row, Stage, View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import plan_graph
from vsr1_core.stages.unmoved import build_stage

NUM_QUERIES, REPEATS = scaled(100_000), 3
WANTED = {"nothing to do": "at most 20 us", "a test query's text changed": "at most 40 us"}
"""Processor time per query: 2 s for 100,000 queries where nothing is to be done."""
MOST_MEMORY = "at most 0.5 KiB"
QUERIES_PER_VIDEO = 4
TRAIN_SHARE = 0.8
CONFIG = replace(
    TINY,
    pool=replace(TINY.pool, num_matched=2000, num_not_matched=2000),
)


def instantly(stage: Any, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
    """Rows that consist of what is known of them before, and of fixed values of the other columns."""
    for row_id, row in rows.items():
        yield {stage.key: row_id, **row.known, **stage.fixed}


def instant_model(stage: Any, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
    """`make_own` of models: a row is a folder, and the options that are known before."""
    for row_id, row in rows.items():
        yield stage.model_row(view, row_id, digest(row_id), row.known.get("options"))


VECTOR = [1.0] + [0.0] * 7
FIXED: dict[str, dict[str, Any]] = {
    "videos": {"duration_s": DURATION_S, "fps": 1.0, "num_frames": 6, "width": 32, "height": 32},
    "frame_tensors": {"num_frames": 2, "timestamps_s": [0.0, 5.0], "duration_s": DURATION_S},
    "query_embeddings": {"vector": VECTOR},
    "video_embeddings": {"vector": VECTOR},
    "predictions": {"rank": 1, "first_rank": 1, "decision": "matched", "turns": []},
    "verification_probe": {"decision": "matched", "matched_probability": 1.0},
    "metrics": {"value": 0.5},
    "refinement_curves": {"value": 0.5},
}


def instant_stages() -> dict[str, Stage]:
    """The graph, with instant work where a row would otherwise cost much more than it does to plan it."""
    stages = cheap_main_stages()
    for name, stage in stages.items():
        replaced: dict[str, Any] = {}
        if fixed := FIXED.get(name.partition(".")[0]):
            replaced = {"fixed": fixed, "make": instantly}
        elif stage.group == "checkpoints":
            replaced = {"make_own": instant_model}
        stage.__class__ = type(f"Instant{type(stage).__name__}", (type(stage),), replaced)
    return stages


def write_world(home: Path, num_queries: int, num_videos: int = 0) -> SmallWorld:
    """num_videos: one for every QUERIES_PER_VIDEO queries where it is 0."""
    world, num_videos = SmallWorld(home), num_videos or num_queries // QUERIES_PER_VIDEO
    for number in range(num_videos):
        world.put_video(f"v{number:06d}", b"video %d" % number)
    for number in range(num_queries):
        video = number * num_videos // num_queries
        split = "train" if video < TRAIN_SHARE * num_videos else "test"
        text = f"the thing {number} moves along and is seen from the left"
        world.add_query(split, number, f"v{video:06d}", time=[number % 3, 4.0], fig_desc=text)
    for split in world.rows:
        world.write_annotations(split)
    return world.register()


def view_of(world: SmallWorld) -> View:
    return world.view(instant_stages(), CONFIG)


def build(world: SmallWorld) -> None:
    view = view_of(world)
    for stage in view.stages.values():
        build_stage(view, stage, Execution(workers=1))


def plan_here(home: Path) -> dict[str, float]:
    """Plan the world of a home: processor seconds, bytes that this process grew by, number of rows that are due."""
    with tempfile.TemporaryDirectory() as folder:
        plan_graph(view_of(write_world(Path(folder), 8)))  # imports, and the memory that polars takes for itself
    view = view_of(SmallWorld(home))
    with PeakMemory("cpu", resident_bytes) as memory:
        started = time.process_time()
        plans = plan_graph(view)
        seconds = time.process_time() - started
    num_due = sum(len(each.plan.due()) for each in plans if each.plan)
    return {"seconds": seconds, "bytes": memory.grown_bytes, "due": num_due}


def planned(world: SmallWorld) -> dict[str, float]:
    """`plan_here` in new processes: the least of each number."""
    command = [sys.executable, "-m", "tests.benchmarks.test_planning", str(world.home)]
    found = [
        json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, env=as_of_a_command()).stdout.splitlines()[-1]
        )
        for _ in range(REPEATS)
    ]
    return {name: min(each[name] for each in found) for name in found[0]}


def forget(world: SmallWorld) -> None:
    """Forget from what the tables were planned, so that the next plan looks at all rows."""
    shutil.rmtree(world.home / "lake/cache/plans", ignore_errors=True)


def change_a_text(world: SmallWorld) -> None:
    world.rows["test"][0]["fig_desc"] += " again"
    world.write_annotations("test")


def test_a_plan_looks_at_rows_of_which_something_moved(tmp_path: Path) -> None:
    world = write_world(tmp_path, NUM_QUERIES)
    build(world)
    found = {"nothing to do": planned(world)}
    change_a_text(world)
    found["a test query's text changed"] = planned(world)
    forget(world)
    full = planned(world)
    assert found["nothing to do"]["due"] == 0
    assert found["a test query's text changed"]["due"] == full["due"] > 0
    for what, ours in found.items():
        shown(what, full, ours, "seconds", 1e6, "us", WANTED[what])
        shown(f"{what}, memory", full, ours, "bytes", 1 / 1024, "KiB", MOST_MEMORY)


def shown(
    what: str, full: Mapping[str, float], ours: Mapping[str, float], name: str, units: float, unit: str, wanted: str
) -> None:
    """A row per query: units: how many of `unit` there are in a second or byte."""
    per_query = [each[name] * units / NUM_QUERIES for each in (full, ours)]
    texts, against = (f"{value:.2f} {unit}" for value in per_query), "a plan that looks at every row"
    name = f"a plan of {NUM_QUERIES:,} queries, per query: {what}"
    print(line(name, *texts, per_query[1] / per_query[0], wanted, against=against, judged=per_query[1]))


if __name__ == "__main__":
    print(json.dumps(plan_here(Path(sys.argv[1]))))
