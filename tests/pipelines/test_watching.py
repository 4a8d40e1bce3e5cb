"""What `watch_files` tells Dagster after an edit: changed files, and which assets are behind and why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from tests.fakes import fake_stages, write_numbers
from tests.one_connection import instance_in_memory
from tests.ticker import Ticker
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.lease import hold

START = {"a": 1, "b": 2, "c": 3}


class Watched:
    """A home that was built once, and what each tick of the sensor reports."""

    def __init__(self, ticker: Ticker) -> None:
        self.ticker, self.home, self.cursor = ticker, ticker.home, ""
        self.sensor = ticker.defs.resolve_sensor_def("watch_files")

    def tick(self) -> tuple[set[str], dict[str, str]]:
        """Observed files; asset -> what is due."""
        with dg.build_sensor_context(self.ticker.instance, self.cursor, definitions=self.ticker.defs) as context:
            told = self.sensor.evaluate_tick(context)
        self.cursor = told.cursor or self.cursor
        files, due = set[str](), dict[str, str]()
        for event in told.asset_events:
            self.ticker.instance.report_runless_asset_event(event)
            assert event.partition == "toy"
            name = event.asset_key.to_user_string()
            if "due" in event.metadata:
                due[name] = str(event.metadata["due"].value)
                assert event.metadata["is up to date"].value == (due[name] == "nothing")
            else:
                files.add(name)
        return files, due


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    write_numbers(tmp_path, "toy", START)
    with instance_in_memory() as instance:
        ticker = Ticker(tmp_path, instance, fake_stages)
        ticker.build("toy")
        yield Watched(ticker)


@pytest.mark.slow
def test_assets_that_are_behind_say_why_and_say_when_they_no_longer_are(watched: Watched) -> None:
    assert watched.tick() == (set(), {})
    write_numbers(watched.home, "toy", {**START, "b": 4, "d": 5})
    observed, said = watched.tick()
    assert observed == {"numbers_on_disk"}
    assert said == {
        "numbers": "rows: 1 new, 1 stale; changed: line (1)",
        "squares": "rows: 1 new, 1 stale; changed: numbers (1)",
        "total": "how many rows are due is known when squares has run",
    }
    assert watched.tick() == (set(), {})
    write_numbers(watched.home, "toy", START)
    assert watched.tick()[1] == {"numbers": "nothing", "squares": "nothing", "total": "nothing"}


@pytest.mark.slow
def test_a_build_makes_them_up_to_date_and_for_dagster_too(watched: Watched) -> None:
    watched.tick()
    write_numbers(watched.home, "toy", {**START, "b": 4})
    watched.tick()
    assert watched.ticker.stale("toy") == {"numbers"}
    watched.ticker.build("toy")
    assert watched.tick()[1] == {"numbers": "nothing", "squares": "nothing", "total": "nothing"}
    assert watched.ticker.stale("toy") == set()
    assert watched.ticker.tick() == {}


@pytest.mark.slow
def test_what_is_being_built_is_looked_at_when_the_build_has_ended(watched: Watched) -> None:
    watched.tick()
    with hold(Lake(watched.home / "lake").lease_folder("toy"), "a build"):
        write_numbers(watched.home, "toy", {**START, "b": 4})
        assert watched.tick() == ({"numbers_on_disk"}, {})
    observed, said = watched.tick()
    assert (observed, set(said)) == (set(), {"numbers", "squares", "total"})


@pytest.mark.slow
def test_what_cannot_be_planned_is_not_said_to_be_up_to_date(watched: Watched) -> None:
    watched.tick()
    (watched.home / "data/toy/numbers.txt").unlink()
    _, said = watched.tick()
    assert "nothing" not in said.values()


@pytest.mark.slow
def test_a_cursor_of_an_earlier_version_is_gone_on_with(watched: Watched) -> None:
    watched.cursor = '{"toy": "0123456789abcdef"}'
    assert watched.tick() == (set(), {})
    write_numbers(watched.home, "toy", {**START, "b": 4})
    observed, said = watched.tick()
    assert (observed, set(said)) == ({"numbers_on_disk"}, {"numbers", "squares", "total"})
