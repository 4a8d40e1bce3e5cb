"""A correction on the page, in headless Chromium: drag, save, plan, build, the new result beside the old one, undo."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.accessibility import problems
from tests.axe import violations
from tests.core.serve.served import running
from tests.corrected_world import CorrectedWorld
from tests.pages import open_page, opened_browser, until, visit
from vsr1_core.serve.builds import Builds

pytestmark = pytest.mark.slow
QUERY = "900_fig"
ADDRESS = f"/#/query?d=small&id={QUERY}&a=sqr_sft"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from opened_browser()


@pytest.fixture(scope="module")
def corrected(tmp_path_factory: pytest.TempPathFactory) -> CorrectedWorld:
    return CorrectedWorld.built(tmp_path_factory.mktemp("page"))


@pytest.fixture
def page(browser: Any, corrected: CorrectedWorld) -> Iterator[Any]:
    with running(corrected.state()) as address:
        yield from open_page(browser, address)


def drag(page: Any, handle: str, by_s: float) -> None:
    """Move the middle of an element by seconds of the 5 s that the clip's timeline shows."""
    lane, box = page.locator(".lane.edit").bounding_box(), page.locator(handle).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + by_s * lane["width"] / 5.0, y, steps=3)
    page.mouse.up()


def span(page: Any) -> list[float]:
    return [float(page.input_value(f"input[name={name}]")) for name in ("start_s", "end_s")]


def build(page: Any, corrected: CorrectedWorld) -> None:
    """Press the button; what the page says before is what is made."""
    page.wait_for_selector("text=A build makes")
    said = page.inner_text(".corrections p.grow")
    page.click("text=Build now")
    page.wait_for_selector("text=The new result stands beside the old one")
    rows = sum(corrected.processed.values())
    assert said.startswith(f"A build makes {rows} rows of {len(corrected.processed)} assets"), said


def test_a_span_is_dragged_saved_rebuilt_compared_and_undone(page: Any, corrected: CorrectedWorld) -> None:
    before = corrected.tables()
    page.goto(ADDRESS)
    page.click("text=Correct this query")
    page.wait_for_selector(".lane.edit")
    until(page, "document.querySelector('video').readyState > 0")  # it may move what is below it
    assert span(page) == [0.0, 3.0]
    drag(page, ".handle >> nth=1", -1.0)
    assert span(page) == pytest.approx([0.0, 2.0], abs=0.05)
    drag(page, ".range", 1.0)
    assert span(page) == pytest.approx([1.0, 3.0], abs=0.05)
    page.focus(".handle >> nth=0")
    page.keyboard.press("ArrowRight")
    start_s, end_s = span(page)
    assert start_s == pytest.approx(1.1, abs=0.05)
    assert page.get_attribute(".handle >> nth=0", "aria-valuenow") == f"{start_s:g}"
    page.fill("input[name=who]", "Ada")
    page.click("button:text-is('Save')")
    page.wait_for_selector(".correction .badge.yes")
    assert "span 0:00 to 0:03" in page.inner_text(".correction")

    build(page, corrected)
    moments = {row["query_id"]: row for row in corrected.tables()["moments"].to_dicts()}
    assert (moments[QUERY]["start_s"], moments[QUERY]["end_s"]) == (start_s, end_s)
    titles = [title.inner_text() for title in page.query_selector_all(".answer h2")]
    assert titles == ["sqr_sft", "sqr_sft, before this build"]

    page.reload()
    page.wait_for_selector(".answer")
    of_before = page.locator("option", has_text="sqr_sft, build of").first.get_attribute("value")
    page.get_by_label("Beside it").select_option(of_before)
    page.wait_for_selector(".columns .answer.second .turn")
    assert [len(side.query_selector_all(".turn")) for side in page.query_selector_all(".answer")] == [1, 1]

    visit(page, ADDRESS)
    page.click(".correction button:text-is('Undo')")
    until(page, "document.querySelector('.correction .badge')?.textContent === 'undone'")
    build(page, corrected)
    assert all(rows.equals(before[name]) for name, rows in corrected.tables().items())


def test_what_stands_below_the_player_stays_where_it_is_while_the_video_is_read(page: Any) -> None:
    """Else a press of a button there can be lost: it begins on the button, and ends beside it."""
    page.add_init_script(
        """const look = () => {
             const top = document.querySelector(".corrections")?.getBoundingClientRect().top;
             if (top !== undefined) (window.tops ||= new Set()).add(Math.round(top));
             requestAnimationFrame(look);
           };
           look();"""
    )
    page.goto(ADDRESS)
    page.wait_for_selector(".lane .truth")
    until(page, "document.querySelector('video').readyState > 0")
    page.wait_for_timeout(100)
    assert len(page.evaluate("[...window.tops]")) == 1


def test_a_rejected_query_can_be_brought_back_from_its_own_address(page: Any, corrected: CorrectedWorld) -> None:
    page.goto(ADDRESS.replace(QUERY, "910_fig"))
    page.click("text=Reject this query")
    page.wait_for_selector(".correction >> text=rejected")
    until(page, "document.querySelector('.corrections .buttons').hidden")
    build_all = corrected.build
    build_all("small", lambda line: None)
    page.reload()
    page.wait_for_selector("text=has no query '910_fig'")
    page.click(".correction:has-text('rejected') button")
    page.wait_for_selector("text=Correct this query")
    build_all("small", lambda line: None)
    page.reload()
    page.wait_for_selector(".answer")


def shorten(page: Any) -> None:
    """Correct the end of a query, so that a build is due."""
    page.goto(ADDRESS.replace(QUERY, "901_fig"))
    page.click("text=Correct this query")
    page.wait_for_selector(".lane.edit")
    page.fill("input[name=end_s]", f"{span(page)[1] - 0.5}")
    page.click("button:text-is('Save')")
    page.wait_for_selector("text=A build makes")


def test_a_build_that_another_one_keeps_from_starting_is_offered_again(browser: Any, corrected: CorrectedWorld) -> None:
    ended = threading.Event()

    def run(dataset: str, told: Callable[[str], None]) -> str:
        if dataset == "small":
            return corrected.build(dataset, told)
        assert ended.wait(600)
        return ""

    state = dataclasses.replace(corrected.state(), builds=Builds(run))
    with running(state) as address, contextmanager(open_page)(browser, address) as page:
        shorten(page)
        other = state.builds.start("other")
        page.click("text=Build now")
        page.wait_for_selector(".verdict.failed >> text=a build of other runs already; wait until it has ended")
        assert page.is_visible("text=Build now")
        ended.set()
        while other.state == "running":
            page.wait_for_timeout(20)
        build(page, corrected)
        assert page.query_selector(".corrections .verdict.failed:visible") is None


def test_a_build_that_ends_refused_is_offered_again_with_the_reason(browser: Any, corrected: CorrectedWorld) -> None:
    refusals = ["small is being written by a build on another machine; wait for it, or use --wait"]

    def run(dataset: str, told: Callable[[str], None]) -> str:
        return refusals.pop() if refusals else corrected.build(dataset, told)

    state = dataclasses.replace(corrected.state(), builds=Builds(run))
    with running(state) as address, contextmanager(open_page)(browser, address) as page:
        shorten(page)
        page.click("text=Build now")
        page.wait_for_selector("text=The build stopped: small is being written by a build on another machine")
        build(page, corrected)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_corrections_can_be_read_and_made_by_everybody(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.goto(ADDRESS)
    page.click("text=Correct this query")
    page.wait_for_selector(".lane.edit")
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 844})
        assert problems(page) == [], width
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        assert violations(page) == [], width


def test_a_refused_correction_is_said(page: Any, corrected: CorrectedWorld) -> None:
    page.goto(ADDRESS.replace(QUERY, "901_fig"))
    page.click("text=Correct this query")
    page.wait_for_selector(".lane.edit")
    page.fill("input[name=video_id]", "nowhere")
    page.click("button:text-is('Save')")
    page.wait_for_selector(".corrections .verdict.failed")
    assert "has no video 'nowhere'" in page.inner_text(".corrections .verdict.failed")
