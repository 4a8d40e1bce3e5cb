"""The page in headless Chromium over real files: a made film of 40 minutes in windows, and clips that people shot."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.core.serve.served import running
from tests.films import BACKGROUND, COLOURS, Events, write_film
from tests.pages import open_page, opened_browser, until, visit, wait_for_time
from tests.watched import CaptionWitness, ColourWitness, build, state_of, write_events
from vsr1_core.datasets.registry import DatasetEntry

pytestmark = pytest.mark.slow
FILM_S = 2400
FILMS: dict[str, Events] = {
    "film": {"red": (45, 65), "green": (1010, 1030), "blue": (1500, 1520), "yellow": (2375, 2395)},
    "short": {"white": (10, 30)},
}
SAMPLE = ("sam2__bedroom", "moviepy__big_buck_bunny_0_30", "sample_videos__learn", "torchcodec__nasa_13013")
"""An mp4, a webm, an mkv that browsers do not play, and an mp4 whose picture is shorter than its sound."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from opened_browser()


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("films")
    write_film(home / "films/film.mp4", FILM_S, FILMS["film"], size=64, codec="libx264")
    write_film(home / "films/short.mp4", 50, FILMS["short"], size=64, codec="libx264")
    events = write_events(home / "films.csv", FILMS.items())
    entry = DatasetEntry("films", "folder", str(home / "films"), str(events), "nano", window_s=60.0)
    colours = [colour for events in FILMS.values() for colour in events]
    with running(state_of(home, {"films": build(home, entry, ColourWitness(colours))})) as address:
        yield address


@pytest.fixture
def page(browser: Any, films: str) -> Iterator[Any]:
    yield from open_page(browser, films)


def search(page: Any, dataset: str, text: str) -> None:
    visit(page, f"/#/search?d={dataset}&q={text.replace(' ', '+')}")
    page.wait_for_selector(".verdict.yes")


def playing_at(page: Any) -> float:
    shown = "readyState > 1 && video.currentTime > 0 && !video.seeking"  # it begins at 0, and goes to a later place
    until(page, f"((video) => video.{shown})(document.querySelector('video'))")
    return float(page.evaluate("document.querySelector('video').currentTime"))


def colour_on_screen(page: Any) -> str:
    """The colour of the picture that the player shows now, or an empty text for the background."""
    playing_at(page)
    red, green, blue = page.evaluate("""() => {
      const canvas = Object.assign(document.createElement('canvas'), { width: 8, height: 8 }).getContext('2d');
      canvas.drawImage(document.querySelector('video'), 0, 0, 8, 8);
      return [...canvas.getImageData(4, 4, 1, 1).data].slice(0, 3);
    }""")
    known = {**COLOURS, "": BACKGROUND}
    return min(known, key=lambda name: sum(abs(a - b) for a, b in zip(known[name], (red, green, blue), strict=True)))


def test_a_film_of_40_minutes_plays_where_the_event_is_shown(page: Any) -> None:
    search(page, "films", "a yellow picture")
    assert page.inner_text(".verdict") == "Matched in turn 2"
    start_s = playing_at(page)
    assert 2375 <= start_s < 2380, "frames of a window of 60 s are 5 s apart"
    assert colour_on_screen(page) == "yellow"
    assert page.inner_text(".scale").split() == ["0:00", "40:00"]
    first, second = page.query_selector_all(".turn")
    assert "✗ not matched" in first.inner_text()
    assert "window 39:00 to 40:00" in second.inner_text()
    card = page.query_selector(".hit[data-video='film']")
    until(page, "document.querySelectorAll('.hit[data-video=film] img').length === 8")
    shown = [image.get_attribute("title") for image in card.query_selector_all("img")]
    assert all("39:00" <= time <= "40:00" for time in shown), "thumbnails are of the window, not of the whole film"
    assert card.query_selector("img.inside") is not None
    bar, lane = (page.locator(of).bounding_box() for of in (".lane .first", ".lane"))
    assert bar["x"] + bar["width"] <= lane["x"] + lane["width"] + 0.5, "a short span at the end stays on the timeline"
    page.click(".lane .first")
    wait_for_time(page, start_s)


def test_a_turn_opens_the_window_that_the_policy_was_shown(page: Any) -> None:
    search(page, "films", "a red picture")
    page.wait_for_selector(".turn.matched")
    page.click(".turn.not_matched button")
    until(page, "document.querySelector('.lane .first') === null")
    window_s = playing_at(page)
    assert window_s <= FILMS["film"]["green"][0] < FILMS["film"]["green"][1] <= window_s + 60
    page.click(".turn.matched button")
    until(page, "document.querySelector('.lane .first') !== null")
    assert colour_on_screen(page) == "red"


def test_a_film_is_searched_and_played_by_the_keyboard_on_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto("/#/search?d=films")
    page.wait_for_selector("input[name=q]")
    page.keyboard.type("a blue picture")
    page.keyboard.press("Enter")
    page.wait_for_selector(".verdict.yes")
    start_s = playing_at(page)
    assert colour_on_screen(page) == "blue"
    tops = [page.locator(part).bounding_box()["y"] for part in (".verdict", ".playing", ".ranked", ".turn >> nth=0")]
    assert tops == sorted(tops), "the player comes before the ranked videos, the trace after them"
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    wait_for_time(page, start_s)
    for _ in range(3):
        page.keyboard.press(",")
    wait_for_time(page, start_s - 3)
    page.keyboard.press("s")
    wait_for_time(page, start_s)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_evaluated_queries_of_a_film_are_filtered_and_show_their_windows(page: Any) -> None:
    page.goto("/#/queries?d=films&m=videosearch_r1")
    page.wait_for_selector("tr.pick")
    assert len(page.query_selector_all("tr.pick")) == 5
    page.fill("main input[type=search]", "green")
    page.click("text=Filter")
    until(page, "document.querySelectorAll('tr.pick').length === 1")
    page.click("tr.pick a")
    page.wait_for_selector(".turn.matched")
    until(page, "document.querySelector('.lane .truth') !== null")
    wait_for_time(page, FILMS["film"]["green"][0])
    assert colour_on_screen(page) == "green"
    page.click(".turn.matched button")
    until(page, "document.querySelector('.lane .first').title.startsWith('predicted')")
    assert colour_on_screen(page) == "green"


# ---- clips that people shot ---------------------------------------------------------------------------------------


def serve_clips(home: Path, shared: Path, names: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a server over these clips, and caption -> video."""
    lines = (shared / "clips/annotations.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if not names or row["video"] in names]
    captions = {row["fig_desc"]: row["video"] for row in rows}
    (home / "clips").mkdir()
    for path in (shared / "clips/videos").iterdir():
        if path.stem in captions.values():
            (home / "clips" / path.name).symlink_to(path)
    annotations = home / "clips.jsonl"
    annotations.write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = DatasetEntry("clips", "folder", str(home / "clips"), str(annotations), "nano")
    with running(state_of(home, {"clips": build(home, entry, CaptionWitness(captions))})) as address:
        yield address, captions


@pytest.fixture(scope="module")
def clips(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    yield from serve_clips(tmp_path_factory.mktemp("clips"), shared_data, SAMPLE)


@pytest.fixture(scope="module")
def all_clips(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    yield from serve_clips(tmp_path_factory.mktemp("all"), shared_data, ())


def assert_found_and_played(page: Any, caption: str, video: str) -> None:
    """The search matches the right clip in the second turn, and the player stands at the span and plays on."""
    search(page, "clips", caption)
    assert page.inner_text(".verdict") == "Matched in turn 2", caption
    until(page, f"document.querySelector('section[aria-label=Player] h2').textContent === '{video}'")
    start_s = playing_at(page)
    facts = page.evaluate(f"fetch('/api/datasets/clips/video?id={video}').then((said) => said.json())")
    clock_s = facts["start_s"] if facts["plays"] else 0.0
    assert start_s - clock_s == pytest.approx(0.1 * facts["duration_s"], abs=0.1), video
    assert page.evaluate("document.querySelector('video').videoWidth") > 0, video
    until(page, "[...document.querySelectorAll('.hit img')].every((image) => image.complete && image.naturalWidth > 0)")
    page.keyboard.press("p")
    until(page, f"document.querySelector('video').currentTime > {start_s + 0.05}")


@pytest.mark.long
def test_real_clips_are_found_and_played_at_the_span(browser: Any, clips: tuple[str, dict[str, str]]) -> None:
    address, captions = clips
    for page in open_page(browser, address):
        for caption, video in captions.items():
            assert_found_and_played(page, caption, video)


@pytest.mark.sweep
def test_all_real_clips_are_found_and_played_at_the_span(browser: Any, all_clips: tuple[str, dict[str, str]]) -> None:
    address, captions = all_clips
    assert len(captions) == 18
    for page in open_page(browser, address):
        for caption, video in captions.items():
            assert_found_and_played(page, caption, video)


@pytest.mark.sweep
def test_all_outcomes_of_real_clips_can_be_filtered(browser: Any, all_clips: tuple[str, dict[str, str]]) -> None:
    for page in open_page(browser, all_clips[0]):
        page.goto("/#/queries?d=clips&m=sqr_sft&b=videosearch_r1")
        page.wait_for_selector("tr.pick")
        chips = [chip.inner_text() for chip in page.query_selector_all(".chips button")]
        names = ("found 6", "span off 3", "wrongly accepted 3", "wrongly rejected 3", "never shown 3")
        assert chips == ["all 18", *names]
        for name in names:
            page.click(f".chips button:text-is('{name}')")
            until(page, f"document.querySelectorAll('tr.pick').length === {name[-1]}")
            page.wait_for_selector(f".chips button[aria-pressed=true]:text-is('{name}')")
            outcome = {cell.inner_text() for cell in page.query_selector_all("tr.pick td:nth-child(2) .badge")}
            assert outcome == {name[:-2]}
