"""The page of useful queries: each one runs, and answers with rows where there are results."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import polars as pl
import pytest
from fake_results import CHECKPOINT_COLUMNS, PROBE_COLUMNS, commit_results, commit_rows

from vsr1_core.configurations import NANO
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.home import warehouse
from vsr1_core.rows.build_history import folder_of, keep_changed_rows
from vsr1_core.rows.lake import Lake
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import all_stages

PAGE = Path(__file__).parents[2] / "docs" / "queries.md"


def queries() -> list[str]:
    return re.findall(r"```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two builds of a dataset with failures, probes, a codec that cannot be read, and a training curve."""
    home = tmp_path_factory.mktemp("home")
    lake, stages = Lake(home / "lake"), all_stages()
    for num_queries, num_failed in ((20, 1), (40, 10)):
        evaluation = dataclasses.replace(NANO.evaluation, num_resamples=num_queries)
        view = View(lake, DatasetEntry("toy", "toy"), dataclasses.replace(NANO, evaluation=evaluation), stages)
        moments = commit_results(lake.root, "toy", num_queries, num_failed)
        probes = [
            {"probe_id": f"{m['query_id']}/{side}", "query_id": m["query_id"], "label": label, "decision": "matched"}
            | {"matched_probability": 0.7}
            for m in moments
            for side, label in (("right", "matched"), ("wrong", "not_matched"))
        ]
        commit_rows(lake, "verification_probe.sqr_sft", "toy", "probe_id", PROBE_COLUMNS, probes)
        run_id = f"of {num_queries}"
        stages["metrics"].build(view, Execution(run_id=run_id))
        for name in ("predictions.fine_tuned", "predictions.sqr_sft"):
            table = view.table(name)
            keep_changed_rows(table, stages[name].kept_rows, folder_of(lake, name, "toy"), run_id)
    videos = [
        {"video_id": m["video_id"], "codec": "h264", "duration_s": 14.0, "bytes": 1000}
        | ({"error": "no frame can be decoded", "codec": None} if i == 0 else {})
        for i, m in enumerate(moments)
    ]
    columns = {"codec": pl.String, "duration_s": pl.Float64, "bytes": pl.Int64}
    commit_rows(lake, "videos", "toy", "video_id", columns, videos)
    curve = [{"checkpoint": "sft_checkpoint", "path": "x", "curve": [{"step": 1, "name": "loss", "value": 2.0}]}]
    commit_rows(lake, "sft_checkpoint", "toy", "checkpoint", CHECKPOINT_COLUMNS, curve)
    warehouse.refresh(home)
    return home


@pytest.mark.slow
@pytest.mark.parametrize("sql", queries(), ids=lambda sql: " ".join(sql.split())[:60])
def test_a_query_of_the_page_answers(home: Path, sql: str) -> None:
    frame = warehouse.query(home, sql)
    assert frame.height > 0


def test_the_page_has_what_people_ask_first() -> None:
    text = PAGE.read_text(encoding="utf-8").lower()
    for topic in ("worst queries", "confusion", "refinement", "two runs", "failures by codec", "tokens per query"):
        assert topic in text
    assert len(queries()) >= 15
