"""What a screen reader, a keyboard and weak eyes need of a page, checked in the browser: names, roles, contrast, order.

These are the checks that matter here; `tests.axe` runs all of axe's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHECK = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")


def problems(page: Any) -> list[str]:
    """One line for each thing that is wrong with what the page shows now."""
    return list(page.evaluate(CHECK))


def focus_order(page: Any, number: int) -> list[str]:
    """The names of what gets the focus with as many presses of the Tab key."""
    named = "(e => e.getAttribute('aria-label') || e.innerText || e.name || e.tagName)(document.activeElement)"
    found = []
    for _ in range(number):
        page.keyboard.press("Tab")
        found.append(str(page.evaluate(named)).strip())
    return found
