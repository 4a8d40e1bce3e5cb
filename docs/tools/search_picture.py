"""Draw docs/images/search.png: what a search shows its policy, and what the policy says of it.

Run it beside a built home: `python docs/tools/search_picture.py "a red circle moves left"`. Each line is a turn: evenly
spread frames of the video that was shown, their times, what the policy wrote and decided, and in green the moment that
it answered.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

import vsr1_core as vsr1
from vsr1_core.media.frame_store import read_frames, spread_numbers

CELL, GAP, COLUMNS, TEXT, LINES, MARGIN = 92, 4, 8, 410, 6, 16
INK, PALE, GREEN, RED, PAPER = "#1f2430", "#7a8194", "#1b9e5a", "#c23b3b", "#ffffff"
VERDICTS = {"matched": ("a match", GREEN), "not_matched": ("no match: refine the query, search again", RED)}
EVERY = 1_000_000


def font(size: int, bold: bool = False) -> Any:
    """A font that comes with matplotlib, so that the picture is the same everywhere."""
    from matplotlib import get_data_path

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts/ttf" / name), size)


def draw_search(query: str, hits: list[vsr1.Hit], frames: dict[str, dict[str, Any]]) -> Image.Image:
    """frames: video id -> its row of `frame_tensors`."""
    line = CELL + 44
    width = 2 * MARGIN + COLUMNS * (CELL + GAP) + TEXT
    picture = Image.new("RGB", (width, 2 * MARGIN + 40 + line * len(hits)), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN), f"“{query}”", fill=INK, font=font(20, bold=True))
    for number, hit in enumerate(hits):
        _draw_row(picture, draw, MARGIN + 46 + number * line, hit, frames[hit.video])
    return picture


def _draw_row(picture: Image.Image, draw: Any, top: int, hit: vsr1.Hit, frame_row: dict[str, Any]) -> None:
    times = frame_row["timestamps_s"]
    shown = spread_numbers(len(times), COLUMNS)
    for place, (number, frame) in enumerate(zip(shown, read_frames(frame_row["path"], shown), strict=True)):
        left = MARGIN + place * (CELL + GAP)
        picture.paste(Image.fromarray(frame).resize((CELL, CELL)), (left, top))
        inside = hit.start_s is not None and hit.start_s <= times[number] <= hit.end_s
        draw.rectangle((left, top + CELL + 2, left + CELL, top + CELL + 7), fill=GREEN if inside else "#e4e7ee")
        draw.text((left, top + CELL + 10), f"{times[number]:.1f} s", fill=GREEN if inside else PALE, font=font(12))
    _draw_words(draw, MARGIN * 2 + COLUMNS * (CELL + GAP), top, hit)


def _draw_words(draw: Any, left: int, top: int, hit: vsr1.Hit) -> None:
    verdict, colour = VERDICTS.get(hit.decision or "", ("no readable answer", PALE))
    span = f" from {hit.start_s:.1f} to {hit.end_s:.1f} s" if hit.start_s is not None else ""
    draw.text((left, top), f"turn {hit.turn}: {hit.video}", fill=INK, font=font(14, bold=True))
    draw.text((left, top + 20), verdict + span, fill=colour, font=font(13, bold=True))
    said = textwrap.wrap(hit.reasoning or "", 60)
    for number, words in enumerate(said[:LINES]):
        more = " ..." if number == LINES - 1 and len(said) > LINES else ""
        draw.text((left, top + 42 + 15 * number), words + more, fill=PALE, font=font(11))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("query")
    parser.add_argument("--home", default="vsr1_home")
    parser.add_argument("--dataset", default="toy")
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "images/search.png")
    args = parser.parse_args()
    home = vsr1.Home(args.home)
    hits = home.search(args.query, args.dataset, args.split, EVERY)
    shown = sorted((hit for hit in hits if hit.turn), key=lambda hit: hit.turn or 0)
    frames = {row["video_id"]: row for row in home.table("frame_tensors", args.dataset).iter_rows(named=True)}
    draw_search(args.query, shown, frames).save(args.out, optimize=True)
    print(f"wrote {args.out}")  # noqa: T201


if __name__ == "__main__":
    main()
