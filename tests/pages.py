"""Pages of a server in headless Chromium. Without Chromium, the tests of the page are skipped with the reason."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
"""The headless shell first: it has no windows of its own, and takes half the processor time."""

ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage"]
"""As root, and where /dev/shm has no room."""


def opened_browser() -> Iterator[Any]:
    """The browser of a test module."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here: apt-get install chromium-headless-shell")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


def open_page(browser: Any, address: str) -> Iterator[Any]:
    """A page of 1280 pixels; nothing may be loaded from elsewhere, and no script may fail or be refused."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, base_url=address)
    page, wrong = context.new_page(), list[str]()
    page.set_default_timeout(120_000)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda asked: wrong.append(asked.url) if not asked.url.startswith(address) else None)
    page.on("console", lambda said: wrong.append(said.text) if "Content Security Policy" in said.text else None)
    yield page
    context.close()
    assert wrong == [], wrong


def visit(page: Any, address: str) -> None:
    """Open an address as a new document: where only what follows its # changes, the old view is there a moment more."""
    page.goto("about:blank")
    page.goto(address)


def until(page: Any, holds: str) -> None:
    """Wait until a JavaScript expression is true. The page's policy forbids `wait_for_function`, which evaluates text
    inside it."""
    deadline = time.monotonic() + 120
    while not page.evaluate(holds):
        assert time.monotonic() < deadline, f"{holds} did not become true: {page.inner_text('main')}"
        page.wait_for_timeout(50)


def wait_for_time(page: Any, seconds: float) -> None:
    """Wait until the player stands at a time of the file's own clock."""
    until(page, f"Math.abs(document.querySelector('video').currentTime - {seconds}) < 0.25")
