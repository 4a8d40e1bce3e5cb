"""Which videos are never a query's negatives, and the order in which queries are drawn, by the plain way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.few_stages import START, stages
from tests.small_world import SmallWorld
from vsr1_core.rows import row_files
from vsr1_core.stages import moments, pool
from vsr1_core.stages.base import View
from vsr1_core.stages.moments import same_text_videos

ROWS = (
    *(("q1", "train", "A dog runs ", "v1"), ("q2", "train", "a DOG runs", "v2"), ("q3", "train", "a cat sits", "v3")),
    *(("q4", "train", "a cat sits", "v3"), ("q5", "train", "a fish swims", "v1"), ("q6", "test", "a fish swims", "v9")),
    *(("q7", "train", " A dog runs", "v1"), ("q8", "train", "É", "v4"), ("q9", "train", "é", "v5")),
)


def view_of(folder: Path, rows: Any = ROWS) -> View:
    view = SmallWorld(folder).view(stages(), START)
    table, names = view.table("moments"), ("query_id", "split", "query", "video_id")
    table.commit(table.frame([{**dict(zip(names, row, strict=True)), "status": "ok"} for row in rows]), {})
    return view


def plainly(rows: Any, split: str) -> dict[str, frozenset[str]]:
    """Each query with the videos of all queries that say the same."""
    said = [(i, text.strip().lower(), video) for i, of, text, video in rows if of == split]
    return {i: frozenset(v for _, other, v in said if other == text) for i, text, _ in said}


@pytest.mark.parametrize("split", ["train", "test", "none"])
@pytest.mark.parametrize("size", [2, 4096])
def test_videos_of_the_same_text_are_those_of_a_loop_over_all_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, size: int
) -> None:
    monkeypatch.setattr(row_files, "BLOCK_ROWS", size)
    monkeypatch.setattr(row_files, "SMALL_FILE", 0)
    assert dict(same_text_videos(view_of(tmp_path), split)) == plainly(ROWS, split)
    alone = tuple(row for row in ROWS if row[0] in ("q1", "q3", "q5"))
    assert dict(same_text_videos(view_of(tmp_path / "alone", alone), split)) == plainly(alone, split)


def test_other_texts_with_the_same_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "TEXT_HASH", pl.lit(7, pl.UInt64).alias("hash"))
    assert dict(same_text_videos(view_of(tmp_path))) == plainly(ROWS, "train")


def test_queries_are_drawn_in_the_order_of_their_draws() -> None:
    ids = pl.Series([f"q{number}" for number in range(5000)])
    drawn = ids[pool._drawn_order(7, ids)]
    assert drawn.to_list() == sorted(ids, key=lambda row_id: pool._draw(7, row_id))
    assert pool._drawn_order(7, ids[:0]).to_list() == []
