"""Adding 1 % of the videos to an approximate index, against building it anew in the same run: `make bench`.

Each way ends as the stage does: with both files on the disk and the recall measured. The vectors lie in clusters, as
those of videos do; an index of vectors that are drawn evenly finds hardly more than it looks at.
"""

from __future__ import annotations

import os
from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.benchmarks.measuring import Clock, in_seconds, interleaved, line, scaled
from vsr1_core.search.index import VideoIndex, build_index, read_index, write_index
from vsr1_core.search.index_updates import updated_index
from vsr1_core.search.recall import recall_at

NUM_VIDEOS = {"ivf": 100_000, "hnsw": 20_000}
"""A graph of 100,000 x 128 takes two minutes of one core."""
SIZE = int(os.environ.get("BENCH_SIZE", "128"))
NUM_CLUSTERS, SPREAD = 2000, 1.0
WANTED = {"ivf": 3, "hnsw": 10}


def clustered(count: int, size: int) -> NDArray[np.float32]:
    """Unit vectors [count, size] around as many centres as there are clusters."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((NUM_CLUSTERS, size), dtype=np.float32)
    vectors = centres[rng.integers(0, NUM_CLUSTERS, count)]
    vectors += SPREAD * rng.standard_normal((count, size), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_adding_one_percent(tmp_path: Path, kind: str) -> None:
    faiss.omp_set_num_threads(1)
    count = scaled(NUM_VIDEOS[kind])
    vectors, folder = clustered(count, SIZE), tmp_path / "index"
    ids, most = [f"video-{i:07d}" for i in range(count)], count - count // 100
    before = build_index(ids[:most], vectors[:most], kind)
    write_index(folder, before)

    def finished(index: VideoIndex, name: str) -> list[float]:
        write_index(tmp_path / name, index)
        return recall_at(index, (10, 100))

    anew, updated = interleaved(
        1,
        Clock("cpu", "cpu"),
        lambda: finished(build_index(ids, vectors, kind), "anew"),
        lambda: finished(updated_index(folder, ids, vectors, kind).index, "updated"),
    )
    stored = read_index(tmp_path / "updated")
    assert (stored.vectors == vectors).all()
    name, against = f"1 % more videos in an index {kind}, {count:,} x {SIZE}", "building it anew"
    ratio, wanted = anew.median / updated.median, f"at least {WANTED[kind]}"
    print(line(name, *in_seconds(anew.median, updated.median), ratio, wanted, against=against))
    print(line(f"its recall@10, {kind}", f"{anew.result[0]:.3f}", f"{updated.result[0]:.3f}", against=against))
    assert updated.result[0] > anew.result[0] - 0.02
