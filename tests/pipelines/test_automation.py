"""Automation, ticked over three fake stages: what it asks for, what that run does, and what it leaves alone."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pipelines.automation_sensor import QUIET
from pipelines.planner import Outlook, Planner
from tests.fakes import Numbers, Squares, fake_stages, write_numbers
from tests.one_connection import databases_of, instance_in_memory
from tests.ticker import Ticker
from vsr1_core.configuration_files import write_configuration
from vsr1_core.datasets.registry import DatasetEntry, load_entries, save_entry
from vsr1_core.stages.base import Check, View

START = {"a": 1, "b": 2, "c": 3}


@dataclass(frozen=True)
class Saved:
    """What stands after two datasets were built once and a tick asked for nothing; to be copied to `home`."""

    home: Path
    files: Path
    databases: tuple[bytes, ...]
    cursor: str | None


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    home = tmp_path_factory.mktemp("automation") / "home"
    save_entry(home, DatasetEntry("other", "toy", "", str(home / "data/other")))
    with instance_in_memory() as instance:
        ticker = Ticker(home, instance, fake_stages)
        for dataset in ("toy", "other"):
            write_numbers(home, dataset, START)
            ticker.build(dataset)
        assert ticker.tick() == {}
        files = shutil.copytree(home, home.with_name("saved"))
        return Saved(home, files, databases_of(instance), ticker.cursor)


@pytest.fixture
def settled(saved: Saved) -> Iterator[Ticker]:
    """Two datasets that were built once; nothing is asked for. Others were never built. At the same place every time:
    what is built knows its home."""
    shutil.rmtree(saved.home)
    shutil.copytree(saved.files, saved.home)
    with instance_in_memory(saved.databases) as instance:
        ticker = Ticker(saved.home, instance, fake_stages)
        ticker.cursor = saved.cursor
        assert ticker.tick() == {}
        yield ticker


def edit(ticker: Ticker, **values: int) -> None:
    write_numbers(ticker.home, "toy", {**START, **values})


@pytest.mark.slow
def test_a_change_runs_in_one_run_as_far_as_it_is_known_and_then_what_follows(settled: Ticker) -> None:
    edit(settled, b=4)
    assert settled.settle("toy") == [{"numbers": 1, "squares": 1}, {"total": 1, "warehouse": 0}]
    assert settled.stale("toy") == set()


@pytest.mark.slow
def test_a_change_that_moves_no_data_version_stops_there(settled: Ticker) -> None:
    edit(settled, b=-2)
    settled.settle("toy")
    edit(settled, b=-4)
    assert settled.settle("toy") == [{"numbers": 1, "squares": 1}, {"total": 0}]


@pytest.mark.slow
def test_touched_files_run_nothing(settled: Ticker) -> None:
    edit(settled)
    settled.observe("toy")
    assert settled.stale("toy") == set()
    assert settled.tick() == {}


@pytest.mark.slow
def test_a_file_seen_changed_marks_its_reader_and_nothing_else(settled: Ticker) -> None:
    edit(settled, b=4)
    settled.observe("toy")
    assert settled.stale("toy") == {"numbers"}
    assert settled.stale("other") == set()


@pytest.mark.slow
def test_a_build_by_hand_leaves_nothing_to_do(settled: Ticker) -> None:
    edit(settled, b=4)
    settled.build("toy")
    assert settled.tick() == {}
    assert settled.stale("toy") == set()


@pytest.mark.slow
def test_a_build_that_ends_while_the_conditions_are_evaluated_leaves_nothing_to_do(
    settled: Ticker, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(settled, b=4)
    look, built = Planner.outlook, list[str]()

    def look_and_build(self: Planner, dataset: str, log: logging.Logger) -> Outlook:
        found = look(self, dataset, log)
        if dataset == "toy" and not built:
            built.append(dataset)
            settled.build(dataset)
        return found

    monkeypatch.setattr(Planner, "outlook", look_and_build)
    assert settled.tick() == {}
    assert built == ["toy"]


@pytest.mark.slow
def test_a_new_stage_version_runs_its_stage_in_every_dataset(settled: Ticker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Squares, "version", 2)
    settled.reload()
    assert settled.stale("toy") == settled.stale("other") == {"squares"}
    assert settled.tick() == {"toy": {"squares": 3}, "other": {"squares": 3}}
    assert settled.tick() == {"toy": {"total": 0}, "other": {"total": 0}}
    assert settled.tick() == {}


@pytest.mark.slow
def test_another_configuration_concerns_the_datasets_that_are_built_with_it(
    settled: Ticker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No code location is reloaded: files are read as they are, and no version of the code depends on them."""
    monkeypatch.setattr(Squares, "recipe", lambda _, config: config.retrieval)
    path = write_configuration(settled.home, "mine", "tiny", {"retrieval": {"top_k": 7}}, "--set")
    save_entry(settled.home, replace(load_entries(settled.home)["other"], config="mine"))
    for dataset in ("toy", "other"):
        settled.build(dataset)
    assert settled.tick() == {}
    write_configuration(settled.home, "yours", "tiny", {"retrieval": {"top_k": 8}}, "--set").unlink()
    assert settled.tick() == {}
    path.write_text(path.read_text().replace("7", "9"))
    assert settled.settle("other") == [{"squares": 3}, {"total": 0}]
    assert settled.stale("toy") == settled.stale("other") == set()
    path.write_text('base = "tiny"\nsft.steps = 3\nretrieval.top_k = 9\n')
    assert settled.tick() == {}, "squares do not read sft"
    path.write_text("base = tiny")
    edit(settled, b=4)
    assert settled.settle("toy") == [{"numbers": 1, "squares": 1}, {"total": 1, "warehouse": 0}]


@pytest.mark.slow
def test_a_failed_blocking_check_holds_its_dataset_and_no_other(
    settled: Ticker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlucky(view: View, asset: str) -> str:
        return "13 is unlucky" if 13 in view.rows(asset, ["value"])["value"].to_list() else ""

    monkeypatch.setattr(Numbers, "checks", (Check("is_lucky", "No 13.", unlucky),))
    settled.reload()
    for dataset in ("toy", "other"):
        settled.build(dataset)
    edit(settled, b=13)
    write_numbers(settled.home, "other", {**START, "b": 14})
    assert settled.tick() == {"toy": {"numbers": 1}, "other": {"numbers": 1, "squares": 1}}
    assert settled.tick() == {"other": {"total": 1, "warehouse": 0}}
    assert settled.tick() == {}
    edit(settled, b=15)
    assert settled.settle("toy") == [{"numbers": 1, "squares": 1}, {"total": 1, "warehouse": 0}]


@pytest.mark.slow
def test_a_failing_asset_is_tried_once_more_and_again_when_its_input_changed(
    settled: Ticker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(Squares, "make", lambda *_: 1 / 0)
        edit(settled, b=4)
        assert settled.tick() == {"toy": {"numbers": 1}}
        assert settled.tick() == {"toy": {}}
        assert settled.tick() == {}
        assert settled.tick() == {}
    edit(settled, b=5)
    assert settled.settle("toy") == [{"numbers": 1, "squares": 1}, {"total": 1, "warehouse": 0}]


@pytest.mark.slow
def test_a_dataset_that_cannot_be_read_holds_no_other(settled: Ticker) -> None:
    (settled.home / "data/other/numbers.txt").write_text("a one\n")
    edit(settled, b=4)
    assert settled.tick() == {"toy": {"numbers": 1, "squares": 1}}


@pytest.mark.slow
def test_a_dataset_that_was_never_built_is_never_asked_for(settled: Ticker) -> None:
    save_entry(settled.home, DatasetEntry("third", "toy", "", str(settled.home / "data/third")))
    write_numbers(settled.home, "third", START)
    settled.reload()
    assert settled.tick() == {}
    assert settled.tick() == {}


@pytest.mark.slow
def test_a_tick_with_nothing_moved_evaluates_nothing(settled: Ticker, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = list[str]()
    look = Planner.outlook
    monkeypatch.setattr(
        Planner, "outlook", lambda self, dataset, log: looks.append(dataset) or look(self, dataset, log)
    )
    assert settled.tick() == {}
    assert (settled.told.skip_message, looks) == (QUIET, [])
    edit(settled, b=4)
    assert settled.tick() == {"toy": {"numbers": 1, "squares": 1}}
    assert settled.told.skip_message is None
    assert settled.tick() == {"toy": {"total": 1, "warehouse": 0}}
    assert settled.tick() == {}
    assert settled.told.skip_message != QUIET, "runs ended since the look that asked for them"
    looks.clear()
    assert settled.tick() == {}
    assert (settled.told.skip_message, looks) == (QUIET, [])
    settled.reload()
    assert settled.tick() == {}
    assert settled.told.skip_message != QUIET, "the code may be another one"
