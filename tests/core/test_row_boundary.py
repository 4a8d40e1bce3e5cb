"""The row boundary: a row with which a stage raises fails, whatever it raises, and all other rows are made."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import fake_stages, write_numbers
from vsr1_core.reasoning.tasks import ConfigurationError
from vsr1_core.rows.boundary import bounded
from vsr1_core.stages.base import Row, Stage, View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import all_stages, open_view
from vsr1_core.stages.model_rows import ModelRows

IDS = [f"r{n:02d}" for n in range(37)]


class Work:
    """Makes rows in order, and raises at the bad ones, as a stage does in the middle of a batch."""

    def __init__(self, bad: Mapping[str, Exception]) -> None:
        self.bad, self.num_calls = bad, 0

    def __call__(self, rows: Mapping[str, int]) -> Iterator[dict[str, Any]]:
        self.num_calls += 1
        for row_id, value in rows.items():
            if row_id in self.bad:
                raise self.bad[row_id]
            yield {"id": row_id, "value": value}


def made(work: Work, ids: list[str] = IDS, **control: Any) -> dict[str, str | None]:
    rows = list(bounded(work, {row_id: n for n, row_id in enumerate(ids)}, "id", **control))
    assert len(rows) == len(ids), "each row once"
    return {row["id"]: row.get("error") for row in rows}


@pytest.mark.parametrize("bad", [["r00"], ["r36"], ["r05", "r06", "r30"], ["r00", "r01", "r02", "r03", "r04"], IDS[1:]])
def test_exactly_the_rows_that_raise_fail(bad: list[str]) -> None:
    work = Work({row_id: ValueError(f"{row_id} is bad") for row_id in bad})
    control = {"control": {"other": 0}} if bad[0] == "r00" else {}
    found = made(work, **control)
    assert {row_id for row_id, error in found.items() if error} == set(bad)
    assert all(found[row_id] == f"{row_id} is bad" for row_id in bad)


def test_one_bad_row_among_many_costs_few_further_calls() -> None:
    work = Work({"r20": KeyError("x")})
    assert made(work)["r20"].startswith("unexpected KeyError at test_row_boundary.py:")  # type: ignore[union-attr]
    assert work.num_calls <= 12


@pytest.mark.parametrize(
    "error",
    [ModuleNotFoundError("vllm"), OSError(errno.ENOSPC, "full"), MemoryError(), ConfigurationError("no teacher")],
)
def test_an_error_of_the_run_stops_it_at_once(error: Exception) -> None:
    work = Work({"r07": error})
    with pytest.raises(type(error)):
        made(work)
    assert work.num_calls == 1


def test_where_nothing_can_be_made_the_error_is_raised_and_not_hidden_in_every_row() -> None:
    broken = Work({row_id: RuntimeError("no model") for row_id in [*IDS, "other"]})
    with pytest.raises(RuntimeError, match="no model"):
        made(broken, control={"other": 0})
    with pytest.raises(RuntimeError, match="no model"):
        made(Work({"r00": RuntimeError("no model")}), ids=["r00"])


def test_a_single_new_row_fails_where_a_row_from_before_can_still_be_made() -> None:
    assert made(Work({"r00": ValueError("bad")}), ids=["r00"], control={"other": 0}) == {"r00": "bad"}


STAGES = {name: stage for name, stage in all_stages().items() if not stage.is_known_before}


@pytest.mark.parametrize("name", STAGES)
def test_a_raising_row_fails_alone_in_each_stage(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = STAGES[name]

    def make(self: Stage, _given: object, rows: Mapping[str, Row], *_run: Execution) -> Iterator[dict[str, Any]]:
        for row_id in rows:
            if row_id == "r02":
                raise ZeroDivisionError("division by zero")
            yield {self.key: row_id}

    is_by_models = isinstance(stage, ModelRows)
    monkeypatch.setattr(type(stage), "make_with" if is_by_models else "make", make)
    monkeypatch.setattr(type(stage), "open", lambda *_: None, raising=False)
    rows = {row_id: Row({}) for row_id in IDS[:5]}
    if stage.stops_at_errors and not is_by_models:
        assert stage.group == "checkpoints"
        with pytest.raises(ZeroDivisionError):
            list(stage._made(None, rows, Execution(), {}))  # type: ignore[arg-type]
        return
    found = {row[stage.key]: row.get("error") for row in stage._made(None, rows, Execution(), {})}  # type: ignore[arg-type]
    assert set(found) == set(rows)
    assert [row_id for row_id, error in found.items() if error] == ["r02"]


def test_a_row_that_no_table_can_hold_is_a_failed_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_numbers(tmp_path, "toy", {"a": 1, "b": 2, "c": 3})
    view = open_view(tmp_path, "toy", fake_stages())
    stage = next(iter(view.stages.values()))
    column = next(iter(stage.columns))
    real = type(stage).make

    def make(self: Stage, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        for row in real(self, view, rows, run):
            yield row | ({column: object()} if row[self.key] == "b" else {})

    monkeypatch.setattr(type(stage), "make", make)
    for shard_rows in (1, 100):
        stage.build(view, Execution(shard_rows=shard_rows, retry_failed=True))
        rows = {row[stage.key]: row for row in view.table(stage.name).rows().to_dicts()}
        assert {row_id: row["status"] for row_id, row in rows.items()} == {"a": "ok", "b": "failed", "c": "ok"}
        assert rows["b"]["error"].startswith("the row cannot be stored")
