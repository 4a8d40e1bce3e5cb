"""The library and most commands where Dagster cannot be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    code = (
        f"import vsr1_core; home = vsr1_core.Home({str(folder)!r}, 'cpu', workers=1)\n"
        "home.add_dataset('nano', toy=True, config='nano'); home.build('nano', ['video_index'])"
    )
    done = python("-m", "tests.pipelines.without_dagster", "-c", code, home=folder)
    assert done.returncode == 0, done.stderr
    return folder


def python(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "VSR1_HOME": str(home), "VSR1_DEVICE": "cpu", "VSR1_WORKERS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=home, env=environ, capture_output=True, text=True, check=False
    )


def vsr1(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "tests.pipelines.without_dagster", *arguments, home=home)


@pytest.mark.long
@pytest.mark.slow
def test_the_library_builds_and_the_commands_search_ask_plan_and_explain(home: Path) -> None:
    found = vsr1(home, "search", "a red circle moves left", "-d", "nano", "-k", "2")
    assert "toy_test_0000" in found.stdout, found.stderr
    asked = vsr1(home, "sql", "select count(*) as n from video_embeddings", "-f", "json")
    assert json.loads(asked.stdout) == [{"n": 36}]
    plan = json.loads(vsr1(home, "plan", "-d", "nano", "--json").stdout)["assets"]
    assert plan["video_index"]["unchanged"] == 3
    assert plan["predictions.zero_shot"]["new"] == 8
    assert "video_index" in vsr1(home, "status", "-d", "nano").stdout
    assert "toy_test_00000" in vsr1(home, "explain", "video_embeddings", "toy_test_00000", "-d", "nano").stdout
    assert vsr1(home, "doctor").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("command", [["build"], ["ui"], ["experiment"]])
def test_what_needs_dagster_says_what_to_install(command: list[str], tmp_path: Path) -> None:
    refused = vsr1(tmp_path, *command)
    assert refused.returncode == 1
    said = " ".join(refused.stderr.split())
    assert f"`vsr1 {command[0]}` needs Dagster, which is not installed; run: pip install 'videosearch-r1[" in said
    assert "Traceback" not in said


def test_the_face_is_light_to_import(tmp_path: Path) -> None:
    code = (
        "import json, sys; before = set(sys.modules); import vsr1_core\n"
        "assert set(vsr1_core.__all__) <= set(dir(vsr1_core))\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
    )
    loaded = json.loads(python("-c", code, home=tmp_path).stdout)
    assert not {"torch", "polars", "numpy", "duckdb", "dagster", "transformers"} & set(loaded)


@pytest.mark.slow
def test_every_name_of_the_face_is_there_without_dagster(tmp_path: Path) -> None:
    code = (
        "import vsr1_core, vsr1_core.search.episodes\n"
        "assert all(callable(getattr(vsr1_core, name)) for name in vsr1_core.__all__ if name != '__version__')\n"
        "assert vsr1_core.__version__\n"
        "try: vsr1_core.serach\n"
        "except AttributeError as error: print(error)"
    )
    done = vsr1(tmp_path, "-c", code)
    assert "no attribute 'serach'; it has Found, Hit, Home, Index" in done.stdout, done.stderr
