"""What the checks find in tables that are wrong in one way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from vsr1_core.configurations import NANO
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.rows.lake import Lake
from vsr1_core.stages.base import View
from vsr1_core.stages.checks import not_unit_vectors, worse_metrics
from vsr1_core.stages.graph import all_stages


@pytest.fixture
def view(tmp_path: Path) -> View:
    return View(Lake(tmp_path), DatasetEntry("toy", "toy"), NANO, all_stages())


def commit(view: View, asset: str, rows: list[dict[str, Any]]) -> None:
    table, key = view.table(asset), view.stages[asset].key
    stamped = [{key: str(i), "row_version": f"{i}{row}", "status": "ok", **row} for i, row in enumerate(rows)]
    table.commit(table.frame(stamped), {})
    view.stages[asset].after_build(view)


def metrics(recall: float | None, num_queries: int = 100) -> list[dict[str, Any]]:
    shared = {"method": "sqr_sft", "split": "test", "num_queries": num_queries}
    return [
        {"metric": "recall_at_1", "value": recall, **shared},
        {"metric": "num_text_tokens", "value": 1000 * (1 - (recall or 0)), **shared},
    ]


@pytest.mark.parametrize(
    ("states", "problem"),
    [
        ([0.5], ""),
        ([0.5, 0.6], ""),
        ([0.5, 0.485], ""),
        ([0.5, 0.45], "recall_at_1 of sqr_sft fell from 0.500 to 0.450"),
        ([0.5, 0.45, 0.44], "recall_at_1 of sqr_sft fell from 0.500 to 0.440"),
        ([0.5, 0.45, 0.49], ""),
        ([0.5, None], ""),
        ([0.3, 0.5, 0.4], "recall_at_1 of sqr_sft fell from 0.500 to 0.400"),
    ],
)
def test_metrics_are_compared_with_the_last_good_state(view: View, states: list[float | None], problem: str) -> None:
    for recall in states:
        commit(view, "metrics", metrics(recall))
    assert worse_metrics(view, "metrics") == problem


def test_metrics_of_other_queries_are_not_compared(view: View) -> None:
    commit(view, "metrics", metrics(0.9, num_queries=10))
    commit(view, "metrics", metrics(0.2, num_queries=1000))
    assert worse_metrics(view, "metrics") == ""
    assert worse_metrics(view, "metrics") == "", "looking changes nothing"


@pytest.mark.parametrize(
    ("vector", "problem"),
    [
        ([0.6, 0.8], ""),
        ([0.6, 0.7], "1 vectors of query_embeddings are not of length 1"),
        ([1.0, float("nan")], "1 vectors of query_embeddings are not of length 1"),
        ([1.0, None], "1 vectors of query_embeddings are not of length 1"),
        ([1.0], "vectors of query_embeddings have different sizes: [1, 2]"),
    ],
)
def test_vectors_are_finite_whole_and_of_length_one(view: View, vector: list[float], problem: str) -> None:
    commit(view, "query_embeddings", [{"vector": [1.0, 0.0]}, {"vector": vector}])
    assert not_unit_vectors(view, "query_embeddings") == problem
    assert view.rows("query_embeddings").schema["vector"] == pl.List(pl.Float32)
