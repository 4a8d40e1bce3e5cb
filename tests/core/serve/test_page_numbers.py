"""How the page writes times, in the functions that need no browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import vsr1_core

DOM = Path(vsr1_core.__file__).parent / "serve" / "page" / "dom.js"


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_seconds_are_rounded_to_tenths_also_where_that_makes_a_whole_one(tmp_path: Path) -> None:
    shutil.copyfile(DOM, tmp_path / "dom.mjs")
    values = [0, 9.96, 12.97, 59.99, 61.04, 3599.98, 3725.25, None]
    code = f"import {{ seconds }} from './dom.mjs'; console.log(JSON.stringify({json.dumps(values)}.map(seconds)))"
    (tmp_path / "asked.mjs").write_text(code)
    said = subprocess.run(["node", "asked.mjs"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    shown = ["0:00", "0:10", "0:13", "1:00", "1:01", "1:00:00", "1:02:05.3", "–"]
    assert json.loads(said.stdout) == shown
