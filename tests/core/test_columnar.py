"""Rows in columns say the same as dicts of rows do, in whatever order they are asked for."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from vsr1_core.rows import columnar
from vsr1_core.rows import packed as rows_packed
from vsr1_core.rows.blocks import blocks
from vsr1_core.rows.boundary import halves, parts
from vsr1_core.rows.columnar import Computed, Grouped, Ids, LazyRows, Remaining, ids_of, only, reader
from vsr1_core.rows.increments import Plan, make_plan, run_plan
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.packed import packed
from vsr1_core.rows.table import Table
from vsr1_core.rows.versions import Inputs

NUMBER = 5000
"""More rows than are read at a time."""


@pytest.fixture(params=["as they are", "packed"], autouse=True)
def is_packed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the columns of `lazy` are packed, a few hundred rows at a time."""
    monkeypatch.setattr(rows_packed, "PACKED_ROWS", 301 if request.param == "packed" else 10**6)
    return bool(request.param == "packed")


def lazy(ids: list[str]) -> tuple[LazyRows[tuple[str, int]], dict[str, tuple[str, int]]]:
    """Rows in columns, and as a dict."""
    numbers = range(len(ids))
    columns = pl.DataFrame({"id": ids, "number": numbers}, schema_overrides={"id": pl.String})
    rows = LazyRows(packed(columns.iter_slices(97) if ids else [columns]), lambda *row: row)
    return rows, dict(zip(ids, zip(ids, numbers, strict=True), strict=True))


def shuffled(seed: int) -> list[str]:
    ids = [f"q{number}" for number in range(NUMBER)] + ["", "é", "q1 ", "x" * 300]
    random.Random(seed).shuffle(ids)
    return ids


@pytest.mark.parametrize("ids", [[], ["a"], sorted(shuffled(0)), shuffled(1)], ids=["none", "one", "sorted", "mixed"])
def test_lazy_rows_are_the_dict_of_their_rows(ids: list[str]) -> None:
    rows, wanted = lazy(ids)
    assert list(rows) == ids
    assert list(rows.items()) == list(wanted.items())
    assert list(rows.values()) == list(wanted.values())
    assert len(rows) == len(wanted)
    assert rows == wanted
    for missing in ("q", "Q1", "zz", "\udc80", None, 3):
        assert missing not in rows
        assert rows.get(missing, "none") == "none"  # type: ignore[call-overload]


@pytest.mark.parametrize("seed", range(3))
def test_the_order_in_which_rows_are_asked_for_does_not_matter(seed: int) -> None:
    draw, ids = random.Random(seed), shuffled(seed)
    rows, wanted = lazy(ids)
    asked = draw.choices([*ids, "none"], k=300) + ids[100:1300] + ids[::-7] + ids[:5] * 2 + ids[2000::3]
    assert [rows.get(row_id) for row_id in asked] == [wanted.get(row_id) for row_id in asked]


def test_ids_with_the_same_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columnar, "hash", len, raising=False)
    rows, wanted = lazy(shuffled(2))
    asked = random.Random(0).sample(list(wanted), 50)
    assert [rows[row_id] for row_id in asked] == [wanted[row_id] for row_id in asked]
    assert "q99999" not in rows


def test_two_readers_read_at_places_of_their_own() -> None:
    rows, wanted = lazy(shuffled(3))
    ahead, behind = iter(rows.items()), iter(reader(rows).items())
    pairs = list(wanted.items())
    assert [next(ahead) for _ in range(3000)] == pairs[:3000]
    assert [next(behind), next(ahead), next(behind), next(ahead)] == [pairs[0], pairs[3000], pairs[1], pairs[3001]]


def test_a_row_is_made_once_for_those_who_read_it_together_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columnar, "KEPT_ROWS", 100)
    made, ids = list[str](), shuffled(7)
    rows = LazyRows(pl.DataFrame({"id": ids}), lambda row_id: made.append(row_id) or f"row {row_id}")
    behind = reader(rows)
    for start in range(0, 1000, 50):
        some = only(rows, ids[start : start + 50])
        assert dict(some) == {row_id: f"row {row_id}" for row_id in some}
        assert all(behind[row_id] == f"row {row_id}" for row_id in some)
    assert made == ids[:1000]
    assert rows[ids[0]] == f"row {ids[0]}"
    assert len(made) == 1001


@pytest.mark.parametrize("is_lazy", [True, False])
def test_some_rows_come_in_the_order_in_which_they_are_asked_for(is_lazy: bool) -> None:
    rows, wanted = lazy(shuffled(4))
    of: Mapping[str, Any] = Computed(rows, lambda row: row) if is_lazy else wanted
    ids = random.Random(1).sample(list(wanted), 700)
    assert list(only(of, ids).items()) == [(row_id, wanted[row_id]) for row_id in ids]
    assert only(of, Ids(wanted)) == wanted
    assert list(only(of, [])) == []
    with pytest.raises(KeyError, match="none"):
        only(of, ["q1", "none"])


def test_parts_and_halves_hold_all_rows_once() -> None:
    rows, wanted = lazy(shuffled(5))
    assert [list(part) for part in parts(rows, 1999)] == [list(part) for part in parts(wanted, 1999)]
    assert {i: row for part in parts(rows) for i, row in part.items()} == wanted
    first, second = halves(rows)
    assert [*first.items(), *second.items()] == list(wanted.items())
    assert len(first) == len(wanted) // 2


def test_ids_are_the_sequence_that_was_appended() -> None:
    texts = [f"t{number}" for number in range(10_000)]
    ids = Ids(texts[:4097])
    for text in texts[4097:]:
        ids.append(text)
    assert ids == texts
    assert ids == tuple(texts)
    assert tuple(texts) == ids
    assert ids[5000] == "t5000"
    assert ids[-3:] == texts[-3:]
    assert len(ids) == 10_000
    assert "t4096" in ids
    assert ids != [*texts[:-1], "other"]
    assert ids != texts[:-1]
    assert ids != [None] * 10_000
    assert Ids() == []
    assert not Ids()
    assert list(blocks(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("seed", range(3))
def test_each_id_is_taken_once_in_any_order(seed: int) -> None:
    draw, left = random.Random(seed), [f"t{number}" for number in range(3000)]
    remaining, untaken = Remaining(left), set(left)
    for row_id in [*left[:1000], *draw.choices([*left, "none"], k=500), *left[1500:]]:
        assert remaining.take(row_id) == (row_id in untaken)
        untaken.discard(row_id)
        assert len(remaining) == len(untaken)
    assert remaining.ids() == [row_id for row_id in left if row_id in untaken]


def test_values_of_many_ids_are_found_by_each() -> None:
    pairs = {f"t{number}": ("a", "b") if number % 3 else ("c",) for number in range(100)}
    grouped = Grouped[tuple[str, ...]]()
    for row_id, value in pairs.items():
        grouped.add(row_id, value)
    assert dict(grouped) == dict(grouped.items()) == pairs
    assert len(grouped) == 100
    assert grouped.get("none") is None
    both = Grouped([*grouped.groups(), (("c",), ["more"]), (("d",), [])])
    assert dict(both) == {**pairs, "more": ("c",)}
    assert [value for value, _ in both.groups()] == [("c",), ("a", "b")]


# Plans


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Lake(tmp_path / "lake").table("things", "toy", "thing_id", {"value": pl.Int64})


def naive_plan(wanted: Mapping[str, Inputs], rows: pl.DataFrame) -> dict[str, Any]:
    """The groups of a plan and its causes, by a loop over dicts."""
    known = {row["thing_id"]: row for row in rows.to_dicts()}
    found: dict[str, Any] = {name: [] for name in ("new", "stale", "failed", "unchanged")} | {"causes": {}}
    for row_id, inputs in wanted.items():
        if row_id not in known:
            found["new"].append(row_id)
            found["causes"][row_id] = ("new row",)
            continue
        old = json.loads(known[row_id]["row_inputs"])
        if old == inputs:
            found["failed" if known[row_id]["status"] != "ok" else "unchanged"].append(row_id)
            continue
        names = sorted(name for name in {*old, *inputs} if old.get(name) != inputs.get(name))
        found["stale"].append(row_id)
        found["causes"][row_id] = tuple(f"changed: {name}" for name in names)
    return found | {"orphaned": sorted(known.keys() - wanted.keys())}


def some_inputs(draw: random.Random, number: int) -> dict[str, Inputs]:
    ids = draw.sample([f"t{i}" for i in range(2 * number)], number)
    return {row_id: {"a": draw.choice("12"), draw.choice("bc"): draw.choice('1é"')} for row_id in ids}


def build(table: Table, wanted: Mapping[str, Inputs], stops_after: int = -1) -> None:
    def make(ids: Any) -> Any:
        for number, row_id in enumerate(ids):
            if number == stops_after:
                raise KeyboardInterrupt
            yield {"thing_id": row_id, **({"error": "odd"} if hash(row_id) % 5 == 0 else {"value": number})}

    run_plan(table, wanted, make_plan(wanted, table), make, shard_rows=50)


@pytest.mark.parametrize("seed", range(6))
def test_a_plan_is_that_of_a_loop_over_all_rows(table: Table, seed: int) -> None:
    """With failed rows, rows that a killed run left pending, and as lazy rows."""
    draw = random.Random(seed)
    for number in (0, 6000, 300, 5000):
        wanted = some_inputs(draw, number)
        columns = pl.DataFrame({"id": list(wanted)}, schema={"id": pl.String})
        for of in (wanted, LazyRows(columns, wanted.__getitem__)):
            plan, expected = make_plan(of, table), naive_plan(wanted, table.known())
            assert {name: list(getattr(plan, name)) for name in expected if name != "causes"} == {
                name: ids for name, ids in expected.items() if name != "causes"
            }
            assert dict(plan.causes.items()) == expected["causes"]
            counted = Counter(cause for causes in expected["causes"].values() for cause in causes)
            assert list(plan.why().items()) == counted.most_common()
        if number > 100 and draw.random() < 0.5:
            with pytest.raises(KeyboardInterrupt):
                build(table, wanted, stops_after=100)
            assert make_plan(wanted, table).counts() == {
                name: len(ids) for name, ids in naive_plan(wanted, table.known()).items() if name != "causes"
            }
        build(table, some_inputs(draw, number))


def test_failed_rows_are_due_again_once() -> None:
    plan = Plan(new=("d",), stale=("a",), failed=("f", "g"), causes={"d": ("new row",), "a": ("changed: x",)})
    again = plan.with_failed_due()
    assert again.due() == ["d", "a", "f", "g"]
    assert dict(again.causes) == {**plan.causes, "f": ("failed before",), "g": ("failed before",)}
    assert again.with_failed_due().why() == again.why() == {"failed before": 2, "new row": 1, "changed: x": 1}
    assert Plan(new=("d",), causes={"d": ("new row",)}).with_failed_due().why() == {"new row": 1}
    some = again.limited_to({"a", "f"})
    assert (some.new, some.stale) == ((), ("a", "f"))
    assert dict(some.causes) == {"a": ("changed: x",), "f": ("failed before",)}


def test_ids_of_a_mapping_are_in_its_order() -> None:
    rows, wanted = lazy(shuffled(6))
    assert ids_of(rows).to_list() == ids_of(wanted).to_list() == list(wanted)
