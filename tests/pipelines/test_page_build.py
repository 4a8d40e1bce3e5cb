"""The button of the page starts the real build: a process with a Dagster run of the graph, here of cheap stages."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pipelines import serve_command
from pipelines.instance import open_instance
from tests.cheap_stages import cheap_main_stages
from tests.command_line import use_stages
from tests.core.serve.served import FakeModels, running, state_of
from tests.corrected_world import FewLibrary
from tests.pages import open_page, opened_browser
from tests.small_world import SmallWorld, build, fill
from vsr1_core.home import warehouse
from vsr1_core.stages.base import View
from vsr1_core.stages.graph import open_view, plan_graph

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1200)]
QUERY = "900_fig"
WAIT_MS = 500_000
"""The child imports Dagster and runs a step per asset: some 20 s on a free machine."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A built corpus, whose builds are made by `tests.cheap_build`."""
    use_stages(monkeypatch, cheap_main_stages, tmp_path)
    monkeypatch.setattr(serve_command, "PROGRAM", (sys.executable, "-m", "tests.cheap_build"))
    fill(SmallWorld(tmp_path), num_train=2, num_test=2).register()
    build(open_view(tmp_path, "small"))
    warehouse.refresh(tmp_path)
    return tmp_path


@pytest.fixture
def page(home: Path) -> Iterator[Any]:
    state = dataclasses.replace(
        state_of(home, FakeModels()), library=FewLibrary(home), builds=serve_command.page_builds(home)
    )
    with running(state) as address:
        for browser in opened_browser():
            yield from open_page(browser, address)


def due_rows(view: View) -> dict[str, set[str]]:
    """Asset -> ids of the rows that a build makes."""
    planned = {item.asset: item.plan for item in plan_graph(view)}
    return {asset: set(plan.due()) for asset, plan in planned.items() if plan is not None and plan.due()}


def versions(home: Path) -> dict[str, dict[str, str]]:
    view = open_view(home, "small")
    return {
        name: dict(view.table(name).rows([stage.key, "row_version"]).iter_rows()) for name, stage in view.stages.items()
    }


def test_the_button_starts_a_dagster_run_that_makes_exactly_the_planned_rows(page: Any, home: Path) -> None:
    assert due_rows(open_view(home, "small")) == {}
    page.goto(f"/#/query?d=small&id={QUERY}&a=sqr_sft")
    page.click("text=Correct this query")
    page.fill("input[name=end_s]", "2")
    page.click("button:text-is('Save')")
    page.wait_for_selector(".correction .badge.yes")
    page.wait_for_selector("text=A build makes")
    planned, before = due_rows(open_view(home, "small")), versions(home)
    assert QUERY in planned["predictions.sqr_sft"]
    assert "video_embeddings" not in planned
    num_rows = sum(map(len, planned.values()))
    assert page.inner_text(".corrections p.grow").startswith(f"A build makes {num_rows} rows of {len(planned)} assets")

    page.click("text=Build now")
    ended = page.wait_for_selector("text=/The new result stands beside|The build stopped/", timeout=WAIT_MS)
    assert "The new result" in ended.inner_text()
    after = versions(home)
    changed = {name: {i for i, v in rows.items() if before[name].get(i) != v} for name, rows in after.items()}
    assert {name: rows for name, rows in changed.items() if rows} == planned
    assert due_rows(open_view(home, "small")) == {}
    last = warehouse.query(home, "from builds where dataset = 'small' and builds_ago = 0").row(0, named=True)
    assert (last["num_processed"], set(last["assets"])) == (num_rows, set(planned))
    with open_instance(home) as instance:
        (run,) = instance.get_runs()
    assert (run.run_id, run.status) == (last["run_id"], dg.DagsterRunStatus.SUCCESS)
