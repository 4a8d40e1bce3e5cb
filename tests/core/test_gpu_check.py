"""The check for a GPU, at the smallest size on a CPU: each part says what it measured, and a failure ends no other."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gpu_check import measures
from tests.gpu_check.__main__ import main
from tests.gpu_check.measures import PARTS, Setup, Size, run_part

TINY = Setup("cpu", "tiny")
CHEAP = ["loop_equality", "reading", "decoding", "patch_embedding", "vllm", "index", "large_index"]


@pytest.fixture(autouse=True)
def smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(measures.SIZES, "tiny", Size(side=32, long=4, short=2, batch=2, text_tokens=3))


def numbers(facts: Any) -> list[float]:
    if isinstance(facts, dict):
        return [n for value in facts.values() for n in numbers(value)]
    return [float(facts)] if isinstance(facts, (int, float)) else []


@pytest.mark.parametrize("name", [*CHEAP, pytest.param("stage_1"), pytest.param("stage_2", marks=pytest.mark.slow)])
def test_each_part_gives_finite_numbers(name: str) -> None:
    facts = run_part(name, TINY)
    assert all(math.isfinite(n) and n >= 0 for n in numbers(facts))
    assert facts["seconds"] >= 0
    if name == "loop_equality":
        assert facts["largest_relative_difference"] < 1e-4
        assert facts["rows_with_equal_text"] == facts["rows"] == 2
    if name == "patch_embedding":
        assert facts["largest_difference"] < 1e-4
    if name.startswith("stage"):
        assert facts["step_s"] > 0
        assert facts["peak_bytes"] > 0


@pytest.mark.slow
@pytest.mark.long
def test_a_part_that_fails_is_written_with_its_reason_and_the_next_one_runs(tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    small = ["--device", "cpu", "--size", "tiny", "--out", str(out)]
    assert main([*small, "--parts", "vllm", "--minutes", "0"]) == 1
    assert main([*small, "--parts", "vllm"]) == 0
    machine, late, _, found = map(json.loads, out.read_text().splitlines())
    assert machine["part"] == "machine"
    assert machine["device"] == "cpu"
    assert late == {"part": "vllm", "error": "no time was left"}
    assert found["part"] == "vllm"
    assert "error" not in found


def test_the_parts_cover_what_a_forecast_assumes() -> None:
    assert {"reading", "decoding", "stage_1", "stage_2", "loop_equality", "comparisons"} <= set(PARTS)


@pytest.mark.slow
def test_models_training_and_search_need_no_tables() -> None:
    """The machine of the check may have what models need alone."""
    absent = "; ".join(f"sys.modules[{name!r}] = None" for name in ("polars", "duckdb", "av", "dagster", "pydantic"))
    program = f"import sys; {absent}; import tests.gpu_check.__main__, tests.core.test_single_steps"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
