"""What a command imports before it does anything: most of the time of a short one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vsr1_core.datasets.registry import DatasetEntry, save_entry

ROOT = Path(__file__).resolve().parents[2]
MODELS = {"torch", "transformers", "trl", "peft", "accelerate", "faiss", "av", "matplotlib"}
GRAPH = {"dagster", "ray", "fastapi"}
CODE = """
import json, sys
from pipelines.cli import app
try:
    app(sys.argv[1:], prog_name="vsr1")
finally:
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""


def imported(home: Path, *arguments: str) -> set[str]:
    """The packages that are loaded when the command ends."""
    command = [sys.executable, "-c", CODE, *arguments]
    environment = {"PATH": "", "PYTHONPATH": str(ROOT), "VSR1_HOME": str(home)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_help_needs_no_tables(tmp_path: Path) -> None:
    assert not imported(tmp_path, "--help") & (MODELS | GRAPH | {"polars", "numpy", "duckdb"})


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("status", "-d", "charades"), ("sql", "select 1")])
def test_looking_at_tables_needs_no_model_and_no_dagster(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert not imported(tmp_path, *arguments) & (MODELS | GRAPH)


@pytest.mark.slow
def test_planning_needs_no_model_and_no_dagster(tmp_path: Path) -> None:
    folder = str(tmp_path / "toy")
    save_entry(tmp_path, DatasetEntry("toy", "toy", folder, folder, "nano"))
    assert not imported(tmp_path, "plan") & (MODELS | GRAPH)
