"""The short cut past a plan: it is taken where nothing moved, never where anything did, and says the same."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import polars as pl
import pytest

from tests.fakes import Numbers, Squares, Total, write_numbers
from vsr1_core.configurations import NANO
from vsr1_core.rows.files import write_json
from vsr1_core.rows.increments import Outcome
from vsr1_core.stages import unmoved
from vsr1_core.stages.base import Row, Stage, View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import StagePlan, open_view, plan_graph
from vsr1_core.stages.unmoved import build_stage

VALUES = {"a": 1, "b": 2, "c": -3}


class CountedSquares(Squares):
    """Counts how often its rows are looked at."""

    is_planned_from_tables = True

    def __init__(self) -> None:
        self.num_plans = 0
        self.record = Path("no such file")

    def plan(self, view: View) -> dict[str, Row]:
        self.num_plans += 1
        return super().plan(view)

    def records(self, view: View) -> list[Path]:
        return [self.record]


class World:
    """A home whose `squares` says what it is planned from, where `numbers` (it reads a file) and `total` do not."""

    def __init__(self, home: Path) -> None:
        self.home, self.squares, self.config = home, CountedSquares(), NANO
        self.stages: dict[str, Stage] = {s.name: s for s in (Numbers(), self.squares, Total())}
        self.write(VALUES)

    def write(self, values: dict[str, int]) -> None:
        write_numbers(self.home, "toy", values)

    def view(self) -> View:
        return dataclasses.replace(open_view(self.home, "toy", self.stages), config=self.config)

    def build(self, retry_failed: bool = False) -> dict[str, Outcome]:
        view, run = self.view(), Execution(retry_failed=retry_failed)
        return {name: build_stage(view, stage, run) for name, stage in self.stages.items()}

    def plans(self) -> dict[str, StagePlan]:
        return {plan.asset: plan for plan in plan_graph(self.view())}

    def looks_at_rows(self, work: Callable[[], object]) -> bool:
        before = self.squares.num_plans
        work()
        return self.squares.num_plans > before


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path / "home")
    made.build()
    return made


def found(plans: dict[str, StagePlan]) -> dict[str, object]:
    groups = ("new", "stale", "orphaned", "failed", "unchanged")
    return {
        name: p.plan and ({g: sorted(getattr(p.plan, g)) for g in groups}, p.plan.counts(), p.plan.why())
        for name, p in plans.items()
    }


def test_where_nothing_moved_no_row_is_looked_at_and_the_plan_is_the_same(world: World) -> None:
    assert not world.looks_at_rows(lambda: found(world.plans()))
    short = found(world.plans())
    shutil.rmtree(world.home / "lake/cache")
    assert world.looks_at_rows(world.plans)
    assert found(world.plans()) == short
    assert world.plans()["squares"].plan.counts() == {  # type: ignore[union-attr]
        **dict.fromkeys(("new", "stale", "orphaned"), 0),
        "failed": 1,
        "unchanged": 2,
    }


def test_a_build_of_nothing_looks_at_no_row_and_says_what_a_full_one_says(world: World) -> None:
    before = world.view().table("squares").state()
    assert not world.looks_at_rows(world.build)
    short = world.build()["squares"]
    shutil.rmtree(world.home / "lake/cache")
    full = world.build()["squares"]
    assert (short.manifest, short.plan.counts()) == (full.manifest, full.plan.counts())
    assert world.view().table("squares").state() == before
    assert not world.looks_at_rows(world.build)  # the full one kept it again


def change_a_number(world: World) -> None:
    world.write({**VALUES, "a": 5})


def remove_a_number(world: World) -> None:
    world.write({"a": 1, "c": -3})


def change_a_number_and_build_it_alone(world: World) -> None:
    world.write({**VALUES, "a": 5})
    build_stage(world.view(), world.stages["numbers"], Execution())


def change_the_configuration(world: World) -> None:
    world.config = dataclasses.replace(NANO, pool=dataclasses.replace(NANO.pool, num_matched=77))


def raise_the_version(world: World) -> None:
    world.squares.version = 2


def leave_a_shard(world: World) -> None:
    world.view().table("squares").add_pending([{"number_id": "a", "row_inputs": "{}", "status": "ok", "square": 4}])


def lose_the_manifest(world: World) -> None:
    """As a build leaves it that is killed between its file of rows and its manifest."""
    table = world.view().table("squares")
    shutil.copy(table.rows_path, table.folder / "rows_0000000009.parquet")


def drop_the_table(world: World) -> None:
    shutil.rmtree(world.view().table("squares").folder)


def restore_an_older_upstream(world: World) -> None:
    """The same name of the file, and another content."""
    table = world.view().table("numbers")
    rows = table.rows().with_columns(row_version=table.rows()["row_version"] + "x")
    name = table.rows_path.name
    table.commit(rows, {})
    table.rows_path.rename(table.folder / name)
    write_json(table.manifest_path, {**table.manifest(), "rows": name})


def write_a_file_that_it_reads(world: World) -> None:
    world.squares.record = world.home / "record.json"
    world.squares.record.write_text("{}")


def import_something(world: World) -> None:
    folder = world.home / "lake/imported/toy"
    write_json(folder / "one/record.json", {"form": 2})
    write_json(folder / "current.json", {"id": "one"})


def spoil_what_is_kept(world: World) -> None:
    for path in (world.home / "lake/cache/plans").rglob("*.json"):
        path.write_text("{")


MOVES = (
    *(change_a_number, remove_a_number, change_a_number_and_build_it_alone, change_the_configuration),
    *(raise_the_version, leave_a_shard, lose_the_manifest, drop_the_table, restore_an_older_upstream),
    *(write_a_file_that_it_reads, import_something, spoil_what_is_kept),
)


@pytest.mark.parametrize("move", MOVES, ids=lambda move: move.__name__)
def test_whatever_moves_the_rows_are_looked_at(world: World, move: Callable[[World], None]) -> None:
    assert not world.looks_at_rows(world.plans)
    move(world)
    assert world.looks_at_rows(world.plans)
    short = found(world.plans())
    shutil.rmtree(world.home / "lake/cache", ignore_errors=True)
    assert found(world.plans()) == short


def test_another_version_of_the_code_looks_at_the_rows(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unmoved, "CODE", "another")
    assert world.looks_at_rows(world.plans)


def test_a_copied_home_looks_at_the_rows_until_it_is_built(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.home, tmp_path / "copy")
    world.home = tmp_path / "copy"
    assert world.looks_at_rows(world.plans)
    world.build()
    assert not world.looks_at_rows(world.plans)


def test_failed_rows_run_again_where_it_is_asked_for(world: World) -> None:
    assert world.build()["squares"].num_processed == 0
    assert world.build(retry_failed=True)["squares"].num_processed == 1


def test_failed_rows_of_a_stage_that_always_tries_them_again_are_due(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CountedSquares, "retries_failed", True)
    plan = world.plans()["squares"].plan
    assert plan is not None
    assert plan.due() == ["c"]
    assert world.build()["squares"].num_processed == 1


def test_a_plan_that_reads_its_own_table_is_kept_only_once_that_stood_still(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = CountedSquares.plan
    monkeypatch.setattr(CountedSquares, "plan", lambda self, view: view.table("squares") and plan(self, view))
    world.write({**VALUES, "a": 7})
    world.build()
    assert world.looks_at_rows(world.plans)
    world.build()
    assert not world.looks_at_rows(world.plans)


def test_what_moves_while_a_stage_is_built_is_seen_by_the_next_plan(world: World) -> None:
    world.write({**VALUES, "b": 9})
    view = world.view()
    build_stage(view, world.stages["numbers"], Execution())
    make = world.squares.make

    def interrupted(*arguments: object) -> object:
        change_the_configuration(world)
        (world.home / "record.json").write_text("{}")
        return make(*arguments)  # type: ignore[arg-type]

    world.squares.record = world.home / "record.json"
    world.squares.make = interrupted  # type: ignore[method-assign, assignment]
    build_stage(view, world.squares, Execution())
    assert world.looks_at_rows(world.plans)


def test_rows_that_a_killed_build_left_are_there_for_the_plan_of_what_reads_them(world: World) -> None:
    world.write({**VALUES, "d": 4})
    view = world.view()
    numbers = view.table("numbers")
    wanted = world.stages["numbers"]
    rows = wanted.planned_rows(view)
    inputs = wanted.inputs_of(view, rows)
    build_stage(world.view(), wanted, Execution())
    made = numbers.rows().filter(numbers.rows()["number_id"] == "d").to_dicts()
    numbers.commit(numbers.rows().filter(numbers.rows()["number_id"] != "d"), {})
    numbers.add_pending(made)
    assert set(inputs) == {"a", "b", "c", "d"}
    assert world.plans()["squares"].plan.new == ("d",)  # type: ignore[union-attr]


def test_nothing_is_kept_of_a_build_on_tables_as_they_were_planned(world: World) -> None:
    """Such a plan reads what is planned, and not the tables."""
    shutil.rmtree(world.home / "lake/cache")
    view = world.view()
    view.planned["numbers"] = view.table("numbers")
    build_stage(view, world.squares, Execution())
    assert world.looks_at_rows(world.plans)


def commit_other_numbers(world: World) -> None:
    """As another process does that took the dataset over."""
    table = world.view().table("numbers")
    table.commit(table.rows().with_columns(row_version=table.rows()["row_version"] + "x"), {})


def test_a_commit_before_it_is_kept_what_was_read_is_seen_by_the_next_plan(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(world.home / "lake/cache")
    keep = unmoved.Standing._contents_of
    with monkeypatch.context() as patch:
        interrupted = lambda own, read: commit_other_numbers(world) or keep(own, read)  # noqa: E731
        patch.setattr(unmoved.Standing, "_contents_of", interrupted)
        build_stage(world.view(), world.squares, Execution())
    assert world.looks_at_rows(world.plans)


def test_a_commit_after_contents_were_compared_is_seen_by_the_next_plan(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, digest = world.view().table("numbers"), unmoved.content_digest
    table.commit(table.rows(), {})  # another file of the same rows
    with monkeypatch.context() as patch:
        patch.setattr(unmoved, "content_digest", lambda frames: (digest(frames), commit_other_numbers(world))[0])
        assert not world.looks_at_rows(lambda: build_stage(world.view(), world.squares, Execution()))
    assert world.looks_at_rows(world.plans)


def test_equal_rows_in_another_file_are_compared_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    table, compared = world.view().table("numbers"), list[int]()
    table.commit(table.rows(), {})
    digest = unmoved.content_digest

    def noted(frames: Iterable[pl.DataFrame]) -> str:
        rows = pl.concat(list(frames))
        compared.append(rows.height)
        return digest([rows])

    monkeypatch.setattr(unmoved, "content_digest", noted)
    for _ in range(2):
        assert not world.looks_at_rows(lambda: build_stage(world.view(), world.squares, Execution()))
    assert compared == [3]
