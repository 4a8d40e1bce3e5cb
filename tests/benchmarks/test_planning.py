"""What a plan costs for each annotated query, over all stages of the graph.

The lake holds videos with four queries each. Work is replaced by fixed values; which rows are wanted, their
versions and the tables are those of the real stages. Judged are ratios of times in the same run, as machines differ.

    python -m pytest -s tests/benchmarks/test_planning.py
    python -m tests.benchmarks.test_planning 100000 HOME   # the numbers of docs/results: so many queries, a new folder
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.benchmarks.measuring import resident_bytes
from tests.cheap_stages import cheap_main_stages, digest
from tests.small_world import DURATION_S, SmallWorld
from vsr1_core.configurations import TINY
from vsr1_core.models.peak_memory import PeakMemory
from vsr1_core.stages.base import Row, Stage, View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import plan_graph
from vsr1_core.stages.unmoved import build_stage

NUM_QUERIES = 10_000
MAX_SHORT_SHARE = 0.3
"""Of the processor time of a plan that looks at every row. What is left are the files: they are looked at each time."""
MAX_TEXT_SHARE = 0.45
"""The same where the text of a test query changed: what reads train rows only is not looked at, and of the others the
rows that changed."""
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


def planned(world: SmallWorld) -> tuple[float, int]:
    """(processor seconds of a plan, number of rows that it finds due)."""
    view, started = view_of(world), time.process_time()
    plans = plan_graph(view)
    seconds = time.process_time() - started
    return seconds, sum(len(p.plan.due()) for p in plans if p.plan)


def forget(world: SmallWorld) -> None:
    """Forget from what the tables were planned, so that the next plan looks at all rows."""
    shutil.rmtree(world.home / "lake/cache/plans", ignore_errors=True)


def change_a_text(world: SmallWorld) -> None:
    world.rows["test"][0]["fig_desc"] += " again"
    world.write_annotations("test")


def add_a_video(world: SmallWorld) -> None:
    world.put_video("another", b"another video")
    world.add_query("test", 10_000_000, "another")
    world.write_annotations("test")


def test_a_plan_looks_at_rows_of_which_something_moved(tmp_path: Path) -> None:
    world = write_world(tmp_path, NUM_QUERIES)
    build(world)
    short = min(shown("nothing to do", world) for _ in range(3))
    change_a_text(world)
    one_text = min(shown("one test text changed", world) for _ in range(3))
    build(world)
    forget(world)
    full = min(shown("every row looked at", world) for _ in range(3))
    print(f"\nshares: {short / full:.2f}, {one_text / full:.2f}")
    assert short < MAX_SHORT_SHARE * full
    assert one_text < MAX_TEXT_SHARE * full


def shown(what: str, world: SmallWorld) -> float:
    seconds, num_due = planned(world)
    num_queries = sum(map(len, world.rows.values()))
    print(f"\n{what}: {seconds:.2f} s, {1e6 * seconds / num_queries:.1f} us a query, {num_due} rows due", end="")
    return seconds


def measure(num_queries: int, home: Path) -> None:
    """Print what plans cost in a home that is kept, in this process, and the memory that they take."""
    world = write_world(home, num_queries)
    if not (home / "lake").exists():
        build(world)
    build(world)
    changes: dict[str, Callable[[SmallWorld], None]] = {
        "nothing to do": lambda world: None,
        "one test text changed": change_a_text,
        "a test video added as well": add_a_video,
        "every row looked at": forget,
    }
    for what, change in changes.items():
        change(world)
        with PeakMemory("cpu", resident_bytes) as memory:
            shown(what, world)
        print(f", {memory.grown_bytes / num_queries / 1024:.2f} KiB a query", end="")
    print()


if __name__ == "__main__":
    measure(int(sys.argv[1]), Path(sys.argv[2]))
