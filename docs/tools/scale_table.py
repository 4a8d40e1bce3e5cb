"""Print the table of docs/scale.md: what a corpus costs, stage by stage, from the rates of `vsr1_core.home.capacity`.

`python docs/tools/scale_table.py` prints it for the sizes of the page, `... 5000000` for others. Stages whose work
grows with the corpus are forecast for 10,000 segments and multiplied; training and evaluation follow the annotated
queries, which are as many in each corpus.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from vsr1_core.configurations import CONFIGURATIONS
from vsr1_core.home.capacity import GPUS, Corpus, Estimate, Forecast, forecast
from vsr1_core.models.registry import model_size
from vsr1_core.recipes import Configuration
from vsr1_core.stages.execution import Execution

SIZES = (10_000, 1_000_000, 100_000_000)
BASE = 10_000
"""Segments of the forecast that is multiplied."""
SEGMENT_S = 30.0
TRAIN_QUERIES, TEST_QUERIES = 10_000, 4_000
GROWING = ("frame_tensors", "embeddings and index")
TABLE_BYTES = 3270
"""Bytes per segment of all tables of the data construction without vectors, with four queries a segment; measured."""
STAGES_US = 2090.0
"""Processor microseconds per segment, with four queries, of all stages without the work of models, of media and of the
ranking; measured."""
PRODUCTS_PER_S = 49e9
"""Multiplications and additions per second and core of an exact search of many queries, float32; measured."""


@dataclass(frozen=True)
class Cost:
    """What one stage costs. disk, memory: bytes; memory is that of data, without models. core_h, gpu_h: hours of one
    core, of one GPU."""

    stage: str
    disk: float = 0.0
    memory: float = 0.0
    core_h: float = 0.0
    gpu_h: float = 0.0


def configuration() -> Configuration:
    """The published 2B models, frames kept as JPEGs."""
    config = CONFIGURATIONS["qwen3-vl-2b"]
    return replace(config, frames=replace(config.frames, store="jpeg"))


def estimates() -> dict[str, Estimate]:
    """The forecast of a build with `BASE` segments on one H100, by stage."""
    config = configuration()
    num_test = BASE * TEST_QUERIES // (TRAIN_QUERIES + TEST_QUERIES)
    parts = {"train": BASE - num_test, "test": num_test}
    corpus = Corpus(
        {split: [SEGMENT_S] * count for split, count in parts.items()},
        {split: [int(SEGMENT_S * config.frames.fps)] * count for split, count in parts.items()},
        {"train": TRAIN_QUERIES, "test": TEST_QUERIES},
    )
    policy, embedder = model_size(config.models.policy), model_size(config.models.embedder)
    assert policy is not None
    assert embedder is not None
    base = Forecast(config, corpus, policy, embedder, Execution(workers=1), GPUS["H100"])
    return {estimate.stage: estimate for estimate in forecast(base)}


def costs(num_segments: int, found: dict[str, Estimate]) -> Iterator[Cost]:
    """What each stage costs with so many segments."""
    times = num_segments / BASE
    embedder = model_size(configuration().models.embedder)
    assert embedder is not None
    vectors = 4 * embedder.hidden_size * num_segments
    products = (TRAIN_QUERIES + TEST_QUERIES) * num_segments * embedder.hidden_size
    yield Cost("tables and plans", TABLE_BYTES * num_segments, core_h=STAGES_US * 1e-6 * num_segments / 3600)
    frames = found["frame_tensors"]
    yield Cost("frame_tensors", times * frames.disk, core_h=times * frames.hours)
    yield Cost("video_embeddings", vectors, gpu_h=times * found["embeddings and index"].hours)
    yield Cost("video_index, flat", vectors, vectors)
    yield Cost("first_ranking", core_h=products / PRODUCTS_PER_S / 3600)
    for stage, estimate in found.items():
        if stage not in GROWING:
            yield Cost(stage, estimate.disk, gpu_h=estimate.hours)


def table(sizes: Sequence[int]) -> str:
    """A Markdown table: one row per stage, disk, memory and hours of each size in one cell."""
    found = estimates()
    columns = [list(costs(size, found)) for size in sizes]
    lines = ["| stage | " + " | ".join(f"{size:,} segments" for size in sizes) + " |", "|---" * (len(sizes) + 1) + "|"]
    lines += ["| " + " | ".join([cells[0].stage, *map(_cell, cells)]) + " |" for cells in zip(*columns, strict=True)]
    totals = [
        Cost("all", sum(c.disk for c in of), max(c.memory for c in of), sum(c.core_h for c in of),
             sum(c.gpu_h for c in of))
        for of in columns
    ]  # fmt: skip
    return "\n".join([*lines, "| " + " | ".join(["all", *map(_cell, totals)]) + " |"])


def _cell(cost: Cost) -> str:
    parts = [
        _bytes(cost.disk) + " disk" if cost.disk else "",
        _bytes(cost.memory) + " memory" if cost.memory else "",
        _hours(cost.core_h) + " core h" if cost.core_h else "",
        _hours(cost.gpu_h) + " GPU h" if cost.gpu_h else "",
    ]
    return ", ".join(part for part in parts if part) or "-"


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e6:,.0f} MB"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}" if hours >= 0.1 else f"{hours:.2g}"


if __name__ == "__main__":
    sys.stdout.write(table([int(size) for size in sys.argv[1:]] or SIZES) + "\n")
