"""The page in headless Chromium, against a real server with fake models: what a person sees and can do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.accessibility import focus_order, problems
from tests.axe import violations
from tests.core.serve.served import DATASET, QUERY, VIDEOS, FakeModels, running, state_of, write_home
from tests.pages import open_page, opened_browser, until, visit, wait_for_time

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(state_of(write_home(tmp_path_factory.mktemp("page")), FakeModels())) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from opened_browser()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    yield from open_page(browser, address)


def search(page: Any, text: str = "a dog") -> None:
    page.goto(f"/#/search?d={DATASET}&q={text.replace(' ', '+')}")
    page.wait_for_selector(".verdict.yes")


def test_a_search_shows_verdict_trace_and_cards_and_plays_at_the_span(page: Any) -> None:
    page.goto("/")
    page.fill("input[name=q]", "a dog jumps")
    page.press("input[name=q]", "Enter")
    page.wait_for_selector(".verdict.yes")
    assert page.inner_text(".verdict") == "Matched in turn 2"
    assert "q=a+dog+jumps" in page.url, "the address can be shared"
    assert [card.get_attribute("data-video") for card in page.query_selector_all(".hit")] == [
        "pool",
        VIDEOS[0],
        VIDEOS[2],
    ]
    assert [turn.get_attribute("class") for turn in page.query_selector_all(".turn")] == [
        "turn not_matched",
        "turn matched",
    ]
    assert "seen: a dog jumps" in page.inner_text(".turn.matched")
    wait_for_time(page, 2.0)
    assert page.inner_text("section[aria-label=Player] h2") == "pool"
    bar = page.query_selector(".lane .first")
    assert bar.get_attribute("title") == "predicted: 0:02 to 0:04"
    until(page, "document.querySelector('.notice').textContent.includes('converted copy, without sound')")
    until(page, "[...document.querySelectorAll('.hit img')].some((i) => i.complete && i.naturalWidth === 160)")


def test_names_and_words_from_data_stay_text(page: Any) -> None:
    search(page)
    assert page.inner_text(".hit >> nth=2 >> .break") == VIDEOS[2]
    assert "<b>no</b> dog." in page.inner_text(".turn.not_matched .says")
    visit(page, f"/#/query?d={DATASET}&id=q1_fig&a=sqr_sft")
    page.wait_for_selector(".turn")
    assert page.inner_text("h1") == QUERY
    assert "<i>seen</i> in pool." in page.inner_text(".turn.matched")
    assert page.query_selector("main img[src=x]") is None


def test_a_card_opens_its_video_and_a_turn_outside_the_cards_does_too(page: Any) -> None:
    search(page)
    page.click(f".hit[data-video='{VIDEOS[0]}']")
    until(page, f"document.querySelector('section[aria-label=Player] h2').textContent === '{VIDEOS[0]}'")
    until(page, "document.querySelector('video').readyState > 0")
    page.wait_for_selector(".notice", state="hidden")
    wait_for_time(page, 5.0)  # the browser shows the file's own clock; in our tables the first frame is at 0
    assert page.evaluate("document.querySelector('.head').style.left") == "0%"
    page.click(".turn.matched button")
    wait_for_time(page, 2.0)


def test_the_keyboard_is_enough(page: Any) -> None:
    search(page)
    wait_for_time(page, 2.0)
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.name") == "q"
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.dataset.video") == VIDEOS[0]
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    wait_for_time(page, 2.0)
    page.keyboard.press(".")
    wait_for_time(page, 3.0)
    page.keyboard.press("s")
    wait_for_time(page, 2.0)
    page.keyboard.press("Escape")
    page.wait_for_selector("section[aria-label=Player]", state="hidden")


def test_queries_are_filtered_by_outcome_and_opened(page: Any) -> None:
    page.goto(f"/#/queries?d={DATASET}&m=*")
    page.wait_for_selector("tr.pick")
    assert len(page.query_selector_all("tr.pick")) == 2
    page.click("text=wrongly rejected 1")
    until(page, "document.querySelectorAll('tr.pick').length === 1")
    assert "o=right_video_rejected" in page.url
    page.click("tr.pick a")
    page.wait_for_selector(".turn")
    assert page.inner_text("section.card:has(.turn) h2") == "videosearch_r1"
    page.go_back()
    page.wait_for_selector("tr.pick")


def test_two_methods_stand_side_by_side_with_their_bars_and_the_annotated_one(page: Any) -> None:
    page.goto(f"/#/query?d={DATASET}&id=q1_fig&a=sqr_sft&b=videosearch_r1")
    page.wait_for_selector(".columns .turn")
    until(page, "document.querySelectorAll('.lane button').length === 2")  # drawn when the length is known
    titles = [bar.get_attribute("title") for bar in page.query_selector_all(".lane button")]
    assert titles == ["sqr_sft: 0:02 to 0:04", "annotated: 0:02 to 0:05"]
    outcomes = [badge.inner_text() for badge in page.query_selector_all(".columns h2 + .badge")]
    assert outcomes == ["found", "wrongly rejected"]
    moved = page.get_attribute(".columns svg.moves", "aria-label")
    assert moved.startswith(f"turn 1: {VIDEOS[0]}, pool")
    assert page.inner_text(".columns table tr >> nth=1").split() == [
        "place",
        "2",
        "2",
        "1",
        "1",
        "1",
        "1",
        "1",
        "1",
        "1",
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_can_be_read_and_operated_by_everybody(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    for route in (f"search?q=a+dog&d={DATASET}", f"queries?d={DATASET}&m=*", f"query?d={DATASET}&id=q1_fig&a=sqr_sft"):
        visit(page, f"/#/{route}")
        page.wait_for_selector(".turn, tr.pick")
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 844})
            assert problems(page) == [], (route, width)
    page.set_viewport_size({"width": 1280, "height": 844})
    page.reload()
    page.wait_for_selector(".turn")
    assert focus_order(page, 5) == [
        "Skip to the content",
        "VideoSearch-R1",
        "Search",
        "Evaluated queries",
        "Theme: auto",
    ]


@pytest.mark.parametrize(
    "shown",
    [
        (("light", 1280), ("dark", 390)),
        pytest.param((("dark", 1280), ("light", 390)), marks=pytest.mark.sweep),
    ],
    ids=["light_and_dark_narrow", "dark_and_light_narrow"],
)
@pytest.mark.parametrize(
    "route",
    [
        f"search?q=a+dog&d={DATASET}",
        f"queries?d={DATASET}&m=sqr_sft&b=videosearch_r1",
        f"query?d={DATASET}&id=q1_fig&a=sqr_sft&b=videosearch_r1",
        f"video?d={DATASET}&id=a/yard&from=1&to=3",
        pytest.param(f"queries?d={DATASET}&m=*", marks=pytest.mark.sweep),
        pytest.param(f"query?d={DATASET}&id=q1_fig&a=sqr_sft", marks=pytest.mark.sweep),
    ],
)
def test_axe_finds_nothing(page: Any, route: str, shown: tuple[tuple[str, int], ...]) -> None:
    page.goto(f"/#/{route}")
    page.wait_for_selector(".turn, tr.pick, .lane .first")
    for scheme, width in shown:
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # else colours are on their way to others
        page.set_viewport_size({"width": width, "height": 844})
        until(page, f"document.documentElement.dataset.theme === '{scheme}'")
        assert violations(page) == [], (scheme, width)


def test_outcomes_of_another_method_stand_beside_and_can_be_filtered_by_what_differs(page: Any) -> None:
    page.goto(f"/#/queries?d={DATASET}&m=sqr_sft&b=videosearch_r1&differs=1")
    page.wait_for_selector("tr.pick")
    assert [cell.inner_text() for cell in page.query_selector_all("tr.pick .badge")] == ["found", "wrongly rejected"]
    page.click("tr.pick a")
    page.wait_for_selector(".columns .turn")
    assert [title.inner_text() for title in page.query_selector_all(".answer h2")] == ["sqr_sft", "videosearch_r1"]
    visit(page, f"/#/queries?d={DATASET}&m=sqr_sft&b=@earlier&differs=1")
    page.wait_for_selector("text=No query fits these filters.")


@pytest.mark.parametrize(
    "route",
    [
        "search?q=a+dog&d=" + DATASET,
        f"queries?d={DATASET}&m=sqr_sft&b=videosearch_r1",
        f"query?d={DATASET}&id=q1_fig&b=videosearch_r1",
    ],
)
def test_a_phone_needs_no_sideways_scrolling(page: Any, route: str) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"/#/{route}")
    page.wait_for_selector(".turn, tr.pick")
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_dark_mode_follows_the_system_and_the_button(page: Any) -> None:
    page.emulate_media(color_scheme="dark")
    page.goto("/")
    page.wait_for_selector("form")
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    dark = page.evaluate(ground)
    page.click("#theme")
    page.click("#theme")
    assert page.inner_text("#theme") == "Theme: light"
    assert page.evaluate(ground) != dark
    page.reload()
    page.wait_for_selector("form")
    assert page.evaluate(ground) != dark, "the choice is kept"


def test_a_refused_search_and_a_missing_query_say_why(page: Any) -> None:
    page.goto(f"/#/search?d={DATASET}&q=poison")
    page.wait_for_selector(".verdict.failed")
    assert "the server made a mistake" in page.inner_text(".verdict")
    visit(page, f"/#/query?d={DATASET}&id=nope")
    page.wait_for_selector(".verdict.failed")
    assert "no query 'nope'" in page.inner_text(".verdict")
