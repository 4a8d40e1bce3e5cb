"""axe-core on what a page shows now. It comes with the package axe-playwright-python; nothing is fetched."""

from __future__ import annotations

import json
from typing import Any

import pytest

OPTIONS = {"resultTypes": ["violations"], "preload": False}
"""preload: stylesheets would be asked for once more."""


def violations(page: Any) -> list[str]:
    """One line per rule and element that axe finds wrong, whatever their impact."""
    base = pytest.importorskip("axe_playwright_python.base", reason="axe-playwright-python is not installed")
    page.evaluate(base.AXE_SCRIPT)
    found = page.evaluate(f"axe.run(document, {json.dumps(OPTIONS)})")["violations"]
    return [f"{rule['id']} ({rule['impact']}): {node['html'][:160]}" for rule in found for node in rule["nodes"]]
