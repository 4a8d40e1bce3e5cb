"""Record docs/images/search.gif: a search on the page of `vsr1 serve`, from the words to the moment in the video.

Run it beside a built home, where Chromium is installed: `python docs/tools/search_gif.py "a red circle moves left"`.
Every picture is a screenshot of the page; nothing is drawn by hand.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from vsr1_core.serve.app import create_app, state_of_home
from vsr1_core.serve.guards import Access
from vsr1_core.stages.execution import Execution

SIZE = {"width": 1180, "height": 860}
WIDTH, NUM_COLOURS, MAX_BYTES = 720, 200, 400_000
IMAGES_ARE_THERE = """[...document.querySelectorAll(".strip")].every((strip) => strip.childElementCount)
    && [...document.images].every((image) => image.complete && image.naturalWidth > 0)"""


@dataclass
class Recording:
    """Screenshots with the milliseconds that each is shown."""

    page: Any
    pictures: list[Image.Image] = field(default_factory=list)
    shown_ms: list[int] = field(default_factory=list)

    def take(self, shown_ms: int) -> None:
        picture = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        height = round(picture.height * WIDTH / picture.width)
        self.pictures.append(picture.resize((WIDTH, height), Image.Resampling.LANCZOS))
        self.shown_ms.append(shown_ms)

    def save(self, path: Path) -> None:
        """Write the GIF. Raises ValueError where it is too large for a README."""
        sheet = Image.new("RGB", (WIDTH, sum(picture.height for picture in self.pictures)))
        for number, picture in enumerate(self.pictures):
            sheet.paste(picture, (0, number * picture.height))
        palette = sheet.quantize(NUM_COLOURS, kmeans=2)  # one for all pictures: colours must not flicker
        first, *others = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in self.pictures]
        first.save(path, save_all=True, append_images=others, duration=self.shown_ms, loop=0, optimize=True)
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path} has {path.stat().st_size:,} bytes, more than {MAX_BYTES:,}: show fewer pictures")


@contextlib.contextmanager
def served(home: Path) -> Iterator[str]:
    """A server of the home in a thread of this process; yields its address."""
    import uvicorn

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        app = create_app(state_of_home(home, Execution), Access())
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=10)


def record(page: Any, address: str, query: str, dataset: str, method: str) -> Recording:
    """Search twice: the first one loads the models, the second one is recorded."""
    page.goto(f"{address}/#/search?d={dataset}&m={method}&k=3&q=warm+up")
    page.wait_for_selector(".verdict.yes, .verdict.no")
    page.goto(f"{address}/#/search?d={dataset}&m={method}&k=3")
    page.wait_for_selector(".verdict", state="hidden")
    recording = Recording(page)
    recording.take(700)
    words = query.split()
    for number in range(1, len(words) + 1):
        page.fill("input[name=q]", " ".join(words[:number]))
        recording.take(180)
    page.press("input[name=q]", "Enter")
    seen = 0
    while page.query_selector(".verdict.yes, .verdict.no") is None:
        turns = len(page.query_selector_all(".turn"))
        if turns > seen:
            seen = turns
            until(page, IMAGES_ARE_THERE)
            recording.take(1500)
        page.wait_for_timeout(40)
    until(page, "document.querySelector('video').readyState >= 2")
    page.mouse.move(0, 0)  # away from the controls of the video
    until(page, IMAGES_ARE_THERE)
    recording.take(2000)
    start_s = page.evaluate("document.querySelector('video').currentTime")
    for step in range(1, 6):
        page.evaluate("time => { document.querySelector('video').currentTime = time; }", start_s + 0.5 * step)
        until(page, "!document.querySelector('video').seeking")
        page.wait_for_timeout(100)
        recording.take(400)
    recording.shown_ms[-1] = 2500
    return recording


def until(page: Any, holds: str) -> None:
    """Wait until a JavaScript expression is true."""
    deadline = time.monotonic() + 120
    while not page.evaluate(holds):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{holds} did not become true")
        page.wait_for_timeout(50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("query")
    parser.add_argument("--home", type=Path, default=Path("vsr1_home"))
    parser.add_argument("--dataset", default="toy")
    parser.add_argument("--method", default="sqr_sft")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "images" / "search.gif")
    asked = parser.parse_args()
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with served(asked.home.absolute()) as address, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.set_default_timeout(300_000)
        record(page, address, asked.query, asked.dataset, asked.method).save(asked.out)
        browser.close()


if __name__ == "__main__":
    main()
