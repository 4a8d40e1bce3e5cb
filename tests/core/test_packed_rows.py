"""Packed rows are those of the frames, and blocks of sorted rows are joined as whole frames are."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tests.few_stages import START, stages
from tests.short_cuts import fresh
from tests.small_world import SmallWorld, build, fill
from vsr1_core.rows import frames, increments, row_files
from vsr1_core.rows import packed as module
from vsr1_core.rows.frames import has_repeated, joined
from vsr1_core.rows.packed import Packed, packed
from vsr1_core.stages.graph import plan_graph


def of_many_types(count: int) -> pl.DataFrame:
    """Rows with nulls, NaN, lists and long texts in columns of all kinds that tables have."""
    draw = random.Random(0)
    rows = [
        {
            "id": f"q{number}" + "é" * draw.randrange(20),
            "text": draw.choice([None, "", "a", "a text that is longer than twelve bytes", "\0\u202e"]),
            "number": draw.choice([None, -(2**63), 2**63 - 1]),
            "value": draw.choice([None, float("nan"), float("inf"), -0.0, 0.1]),
            "vector": draw.choice([None, [], [0.1, float("nan")], [1.0]]),
            "names": draw.choice([None, [], [None, "b"]]),
            "is_so": draw.choice([None, True, False]),
            "at": datetime(2026, 1, 1, 0, 0, draw.randrange(60), 7, UTC).replace(tzinfo=None),
        }
        for number in range(count)
    ]
    return pl.DataFrame(rows, schema_overrides={"vector": pl.List(pl.Float32), "names": pl.List(pl.String)})


@pytest.mark.parametrize("count", [11, 20, 29, 95])
def test_packed_rows_are_those_of_the_frames_wherever_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(module, "PACKED_ROWS", 10)
    rows, draw = of_many_types(count), random.Random(count)
    found = packed(rows.iter_slices(7))
    assert isinstance(found, Packed)
    assert found.height == count
    assert found.to_series(0).equals(rows["id"])
    assert_frame_equal(pl.concat(found.iter_slices()), rows)
    assert repr(list(found.iter_rows())) == repr(rows.rows())
    for _ in range(200):
        place, number = draw.randrange(count), draw.randrange(25)
        assert repr(found.row(place)) == repr(rows.row(place))
        assert_frame_equal(found.slice(place, number), rows.slice(place, number))
    for size in (0, 1, 10, 11, count):
        for places in (draw.sample(range(count), size), sorted(draw.sample(range(count), size))):
            column = pl.Series(places, dtype=pl.UInt32)
            again = found[column]
            assert repr(list(again.iter_rows())) == repr(rows[column].rows())
            assert isinstance(again, Packed) == (size > 10)


def test_few_blocks_are_spelled_out_again_where_rows_are_asked_for_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKED_ROWS", 10)
    spelled, read = list[bytes](), module._spelled_out
    monkeypatch.setattr(module, "_spelled_out", lambda block: spelled.append(block) or read(block))
    rows = of_many_types(100)
    for most, by_turns, expected in ((2, 2, 2), (2, 3, 15), (3, 3, 3)):
        found = packed([rows], most)
        spelled.clear()
        for number in range(15):
            found.row(10 * (number % by_turns))
        assert len(spelled) == expected


def test_few_rows_are_left_as_they_are() -> None:
    rows = of_many_types(50)
    assert_frame_equal(packed(rows.iter_slices(9)), rows)
    assert packed([rows[:0]]).height == 0


def frames_of(rows: pl.DataFrame, draw: random.Random) -> Iterator[pl.DataFrame]:
    """The rows in frames of any size, empty ones among them."""
    yield rows[:0]
    begin = 0
    while begin < rows.height:
        size = draw.randrange(4)
        yield rows[begin : begin + size]
        begin += size
    if draw.randrange(2):
        yield rows[:0]


@pytest.mark.parametrize("how", ["inner", "left"])
@pytest.mark.parametrize("seed", range(40))
def test_a_join_of_sorted_blocks_is_that_of_the_whole_frames(how: Literal["inner", "left"], seed: int) -> None:
    draw = random.Random(seed)

    def some(name: str) -> pl.DataFrame:
        texts = draw.sample([f"q{number}" for number in range(30)] + ["", "é", "Z"], draw.randrange(33))
        ids = sorted(texts, key=str.encode)
        return pl.DataFrame({"id": ids, name: range(len(ids))}, schema={"id": pl.String, name: pl.Int64})

    left, right = some("left"), some("right")
    found = pl.concat(joined(frames_of(left, draw), frames_of(right, draw), "id", how))
    assert_frame_equal(found, left.join(right, on="id", how=how, maintain_order="left"))


def test_an_id_that_comes_twice_is_found_also_among_equal_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = pl.Series([f"q{number}" for number in range(1000)])
    twice = ids.extend_constant("q7", 1)
    assert not has_repeated(pl.Series([f"q{number}" for number in range(1000)]))
    assert has_repeated(twice)
    assert not has_repeated(pl.Series([], dtype=pl.String))
    monkeypatch.setattr(pl.Series, "hash", lambda texts: texts.str.len_bytes().cast(pl.UInt64))
    assert not has_repeated(pl.Series(["ab", "ba"]))
    assert has_repeated(pl.Series(["ab", "ba", "ab"]))


@pytest.mark.slow
def test_a_graph_is_the_same_whether_its_plans_hold_few_rows_or_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tables of a few videos, of which plans hold, read and join two rows at a time."""

    def versions(home: Path) -> dict[str, Any]:
        view = fill(SmallWorld(home), num_train=5, num_test=3).view(stages(), START)
        build(view)
        assert {plan.asset: plan.plan.due() for plan in plan_graph(fresh(view)) if plan.plan and plan.plan.due()} == {}
        return {name: view.table(name).manifest()["data_version"] for name in view.stages}

    whole = versions(tmp_path / "whole")
    monkeypatch.setattr(module, "PACKED_ROWS", 2)
    monkeypatch.setattr(frames, "PART_ROWS", 3)
    monkeypatch.setattr(row_files, "BLOCK_ROWS", 2)
    monkeypatch.setattr(increments, "IDS_AT_A_TIME", 2)
    assert versions(tmp_path / "packed") == whole
