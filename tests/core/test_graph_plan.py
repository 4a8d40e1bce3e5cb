"""Planning the whole graph before any of it runs, on tables as they will be."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes import Numbers, Squares, Total, fake_stages, write_numbers
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import StagePlan, in_order, open_view, plan_graph


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_numbers(tmp_path, "toy", {"a": 1, "b": 2, "c": -3})
    return tmp_path


def view(home: Path) -> View:
    return open_view(home, "toy", fake_stages())


def plans(home: Path) -> dict[str, StagePlan]:
    return {plan.asset: plan for plan in plan_graph(view(home))}


def build_all(home: Path) -> dict[str, int]:
    return {name: stage.build(view(home), Execution()).num_processed for name, stage in fake_stages().items()}


def due(plan: StagePlan) -> int:
    assert plan.plan is not None
    return len(plan.plan.due())


def test_before_the_first_build_rows_downstream_are_already_counted(home: Path) -> None:
    found = plans(home)
    assert due(found["numbers"]) == 3
    assert due(found["squares"]) == 3
    assert found["total"].plan is None
    assert found["total"].waits_for == "squares"


def test_planning_writes_nothing(home: Path) -> None:
    before = sorted(home.rglob("*"))
    plans(home)
    assert sorted(home.rglob("*")) == before


def test_after_a_build_nothing_is_due(home: Path) -> None:
    assert build_all(home) == {"numbers": 3, "squares": 3, "total": 2}
    assert [due(plan) for plan in plans(home).values()] == [0, 0, 0]


def test_the_plan_agrees_with_what_then_runs(home: Path) -> None:
    build_all(home)
    write_numbers(home, "toy", {"a": 1, "b": 4, "d": 5})
    found = plans(home)
    planned = {name: due(plan) for name, plan in found.items() if plan.plan}
    assert planned == {"numbers": 2, "squares": 2}
    squares = found["squares"].plan
    assert squares is not None
    assert squares.counts() == {"new": 1, "stale": 1, "orphaned": 1, "failed": 0, "unchanged": 1}
    assert build_all(home) == {**planned, "total": 2}


def test_a_failed_row_is_planned_as_failed_and_not_as_due(home: Path) -> None:
    build_all(home)
    squares = plans(home)["squares"].plan
    assert squares is not None
    assert squares.failed == ("c",)
    assert squares.due() == []
    assert squares.due(retry_failed=True) == ["c"]


def test_a_change_that_changes_no_result_stops_there(home: Path) -> None:
    build_all(home)
    write_numbers(home, "toy", {"a": -1, "b": 2, "c": 1})  # one square fails, another one takes its place
    assert build_all(home) == {"numbers": 2, "squares": 2, "total": 0}


def test_stages_come_out_upstream_first() -> None:
    assert list(in_order([Total(), Squares(), Numbers()])) == ["numbers", "squares", "total"]


def test_a_missing_upstream_is_named() -> None:
    with pytest.raises(ValueError, match="squares"):
        in_order([Squares()])


def test_a_group_that_is_none_is_named_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Numbers, "group", "oddities")
    with pytest.raises(ValueError, match="stage 'numbers' has the group 'oddities'; the groups are: sources, corpus"):
        in_order([Numbers()])
