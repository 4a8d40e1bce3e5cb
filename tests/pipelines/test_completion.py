"""What a shell is offered while a command of `vsr1` is typed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import completion
from vsr1_core.datasets.registry import DatasetEntry, save_entry

ROOT = Path(__file__).resolve().parents[2]


def offered(home: Path, typed: str) -> list[str]:
    """As bash asks: the program itself is started, with the words and the place of the cursor."""
    words = shlex.split(typed) + ([""] if typed.endswith(" ") else [])
    asked = {"_VSR1_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)}
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "VSR1_HOME": str(home), **asked}
    done = subprocess.run([sys.executable, "-m", "vsr1_core"], env=environ, capture_output=True, text=True, check=False)
    assert not done.stderr, done.stderr
    return done.stdout.split()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VSR1_HOME", str(tmp_path))
    for name in ("holidays", "hikes"):
        save_entry(tmp_path, DatasetEntry(name, "folder", str(tmp_path)))
    return tmp_path


@pytest.mark.slow
def test_the_program_answers_the_shell(home: Path) -> None:
    assert set(offered(home, "vsr1 search x --dataset h")) == {"holidays", "hikes"}
    assert offered(home, "vsr1 explain frame")[:1] == ["frame_tensors"]


def test_names_are_those_that_begin_like_what_is_typed(home: Path) -> None:
    assert completion.datasets("hi") == ["hikes"]
    assert set(completion.datasets("")) == {"toy", "charades", "didemo", "activitynet", "holidays", "hikes"}
    assert completion.assets("predictions.z") == ["predictions.zero_shot", "predictions.zero_shot+exclude_rejected"]
    assert completion.asset_list("video_index,frame") == ["video_index,frame_tensors"]
    assert "sqr_sft" in completion.methods("sqr")


def test_a_home_that_cannot_be_read_offers_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "datasets/broken.json").write_text("{")
    assert completion.datasets("h") == []
    (home / "datasets/broken.json").unlink()
    monkeypatch.setenv("VSR1_WORKERS", "many")
    assert completion.datasets("h") == []
