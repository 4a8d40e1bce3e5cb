"""The table of docs/scale.md is the one that its script makes from the rates of today."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest

from tests.docs.pages import ROOT


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("scale_table", ROOT / "docs/tools/scale_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_page_has_the_table_of_its_script(script: Any) -> None:
    assert script.table(script.SIZES) in (ROOT / "docs/scale.md").read_text(encoding="utf-8")
