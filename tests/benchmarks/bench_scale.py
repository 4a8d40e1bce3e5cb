"""The whole data construction over many rows: processor time, rows per second and memory of each stage.

    python -m tests.benchmarks.bench_scale 10000 100000     # numbers of queries; there is a video for every fourth
    python -m tests.benchmarks.bench_scale 100000 1000000 --ranked 2500
    python -m tests.benchmarks.bench_scale 100000 1000000 --videos 25000
    python -m tests.benchmarks.bench_scale 1000000 --ranked 2500 --homes FOLDER                     # is kept there
    python -m tests.benchmarks.bench_scale 1000000 --ranked 2500 --homes FOLDER --only hard_negatives top1_pool

Videos, frames and models are not there: an embedder of `DIM` dimensions gives each query a vector near that of its
video. Which rows are wanted, their versions, the index, rankings, pool, traces, examples, prompts, and the tables on
disk are those of the real stages. Each size has a folder of its own, and each of its stages a process of its own:
memory that one stage took and gave back would else not be counted for the next one.

Exact ranking compares each query with each video of its split, so its work grows with the square; that of all other
stages with the number of rows. With `--ranked`, each query is ranked among so many videos only, its own among them, and
the work of the ranking grows with the number of rows as well. So it does with `--videos`, where the number of videos is
the same for all sizes; then the traces, which tell of all queries about a video, grow longer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tests.benchmarks.measuring import as_of_a_command, resident_bytes
from tests.benchmarks.stand_in import BUILT
from tests.benchmarks.test_planning import instant_stages, write_world
from tests.small_world import SmallWorld
from vsr1_core.configurations import TINY
from vsr1_core.models.peak_memory import PeakMemory
from vsr1_core.recipes import Configuration
from vsr1_core.rows.boundary import parts
from vsr1_core.stages import retrieval
from vsr1_core.stages.base import Row, Stage, View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.unmoved import build_stage
from vsr1_core.stages.work_reads import rows_with

DIM = 64
NOISE = 0.9
"""Length of what sets a query apart from its video, whose vector has length 1: some queries find it first, some not."""
VIDEO_OF = {"query_embeddings": "gt_video_id", "video_embeddings": "video_id"}
SUPPORTING = ("base_models",)


def fake_vector(video_id: str, noise: np.random.Generator | None = None) -> list[float]:
    """The vector of a video, or with `noise` that of a query about it; of length 1."""
    vector = np.random.default_rng(int(video_id.lstrip("v"))).standard_normal(DIM)
    vector /= np.linalg.norm(vector)
    if noise is not None:
        vector += NOISE / DIM**0.5 * noise.standard_normal(DIM)
    return (vector / np.linalg.norm(vector)).astype(np.float32).tolist()


def embed(stage: Any, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
    """`make` of both embedding stages."""
    noise = np.random.default_rng(0) if stage.name == "query_embeddings" else None
    for row_id, row in rows.items():
        video_id = row.known.get("gt_video_id", row_id)
        yield {stage.key: row_id, **row.known, "vector": fake_vector(video_id, noise)}


def rank_among(num_videos: int) -> Callable[..., Iterator[dict[str, Any]]]:
    """`make` of the first ranking: some thousands of queries at a time are ranked among so many videos, those of the
    queries and any others."""

    def make(stage: Any, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        from vsr1_core.search.index import build_index, read_index

        columns = ["query_id", "split", "gt_video_id", "vector"]
        for split, path in view.rows("video_index", ["split", "path"]).iter_rows():
            index = read_index(Path(path))
            for some in parts(rows, retrieval.QUERIES_PER_SEARCH):
                queries = rows_with(view, "query_embeddings", columns, some).filter(pl.col("split") == split)
                for asked in queries.iter_slices(num_videos // 2):
                    right = dict.fromkeys(asked["gt_video_id"])
                    others = (video_id for video_id in index.ids if video_id not in right)
                    chosen = [*right, *itertools.islice(others, num_videos - len(right))]
                    vectors = index.vectors[[index.row_of[video_id] for video_id in chosen]]
                    yield from retrieval._ranked(build_index(chosen, vectors), asked, view.config.retrieval.top_k)

    return make


def stages(num_ranked: int = 0) -> dict[str, Stage]:
    """Those of the data construction, in order. num_ranked: see `rank_among`; 0 for all videos of the split."""
    found = {name: stage for name, stage in instant_stages().items() if name in (*BUILT, *SUPPORTING)}
    made = dict.fromkeys(VIDEO_OF, embed) | ({"first_ranking": rank_among(num_ranked)} if num_ranked else {})
    for name, make in made.items():
        found[name].__class__ = type(f"Fake{type(found[name]).__name__}", (type(found[name]),), {"make": make})
    return found


def configuration(num_queries: int) -> Configuration:
    """With a pool that grows with the corpus: a fifth of the queries."""
    return replace(TINY, pool=replace(TINY.pool, num_matched=num_queries // 10, num_not_matched=num_queries // 10))


def measured(num_queries: int, home: Path, name: str, num_ranked: int) -> dict[str, float]:
    """Rows of one stage, processor seconds, MiB of growth while it ran, and MiB of its table."""
    import faiss  # noqa: F401  # before anything is counted

    view = SmallWorld(home).view(stages(num_ranked), configuration(num_queries))
    with PeakMemory("cpu", resident_bytes) as memory:
        started = time.process_time()
        num_rows = build_stage(view, view.stages[name], Execution(workers=1)).num_processed
        seconds = time.process_time() - started
    table = view.table(name).rows_path.stat().st_size
    return {"rows": num_rows, "s": seconds, "mib": memory.grown_bytes / 2**20, "table_mib": table / 2**20}


def report(by_size: Mapping[int, Mapping[str, Mapping[str, float]]]) -> str:
    """A Markdown table with a row for each stage. Rows, rates and sizes of tables are those of the largest size,
    seconds and memory those of all sizes. The ratio is that of the two largest sizes' seconds."""
    sizes = sorted(by_size)
    named = " / ".join(f"{size:,}" for size in sizes)
    head = ["stage", "rows", f"s, {named}", "times the time", "rows per s", f"MiB more, {named}", "MiB of its table"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [_line(name, [by_size[size][name] for size in sizes]) for name in by_size[sizes[0]]]
    seconds_of = [{name: of["s"] for name, of in by_size[size].items()} for size in sizes]
    totals = [sum(of.values()) for of in seconds_of]
    linear = [total - of.get("first_ranking", 0) for total, of in zip(totals, seconds_of, strict=True)]
    for what, seconds in (("all stages", totals), ("all but first_ranking", linear)):
        lines.append(f"{what}: {' / '.join(f'{s:.1f}' for s in seconds)} s, {_ratio(seconds)} times the time")
    return "\n".join(lines)


def _line(name: str, of_sizes: Sequence[Mapping[str, float]]) -> str:
    last, seconds = of_sizes[-1], [of["s"] for of in of_sizes]
    memory = " / ".join(f"{of['mib']:,.0f}" for of in of_sizes)
    return (
        f"| `{name}` | {last['rows']:,.0f} | {' / '.join(f'{s:.2f}' for s in seconds)} | {_ratio(seconds)} "
        f"| {last['rows'] / max(last['s'], 1e-3):,.0f} | {memory} "
        f"| {last['table_mib']:,.1f} |"
    )


def _ratio(seconds: Sequence[float]) -> str:
    return f"{seconds[-1] / max(seconds[-2], 1e-3):.1f}" if len(seconds) > 1 else "-"


def in_own_processes(num_queries: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Stage -> its numbers."""
    numbers = {}
    with tempfile.TemporaryDirectory() as folder:
        home = (options.homes or Path(folder)) / str(num_queries)
        if not home.exists():
            write_world(home, num_queries, options.videos)
        # What is annotated is kept for the code of now before it is read.
        for name in dict.fromkeys(["annotation_files", *options.only]) if options.only else stages():
            if name in options.only:
                shutil.rmtree(home / "lake/tables" / name)
            of_stage = [str(num_queries), "--ranked", str(options.ranked), "--stage", name, str(home)]
            command = [sys.executable, "-m", "tests.benchmarks.bench_scale", *of_stage]
            ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=as_of_a_command())
            numbers[name] = json.loads(ended.stdout)
            seconds, mib = numbers[name]["s"], numbers[name]["mib"]
            print(f"{num_queries:,}: {name}, {seconds:.2f} s, {mib:,.0f} MiB", file=sys.stderr)
    return {name: numbers[name] for name in numbers if name in (options.only or BUILT)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("queries", type=int, nargs="+", help="numbers of queries")
    parser.add_argument("--videos", type=int, default=0, help="so many videos for each size")
    parser.add_argument(
        "--ranked", type=int, default=0, help="rank each query among so many videos; 0: all of its split"
    )
    parser.add_argument("--homes", type=Path, help="keep the homes here, and take those that are there already")
    parser.add_argument("--only", nargs="+", default=[], help="make these tables anew, in homes kept before")
    parser.add_argument("--stage", nargs=2, metavar=("NAME", "HOME"), help="one stage of a home, in this process")
    options = parser.parse_args()
    if options.stage:
        name, home = options.stage
        print(json.dumps(measured(options.queries[0], Path(home), name, options.ranked)))
    else:
        print(report({size: in_own_processes(size, options) for size in options.queries}))


if __name__ == "__main__":
    main()
