"""`vsr1 dataset sync`: what it says about changed files, and that it builds exactly what is due."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pipelines import sync_command
from pipelines.builds import BuildOptions
from pipelines.cli import app
from tests.cheap_stages import cheap_stages
from tests.command_line import use_stages
from tests.small_world import SmallWorld, clip, fill
from vsr1_core.datasets.registry import DatasetEntry, save_entry
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import open_view, stages_of

MADE = ("raw_videos", "frame_tensors", "video_embeddings")

pytestmark = pytest.mark.slow


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a dataset `mine` that is searched only, and built."""
    use_stages(monkeypatch, cheap_stages, tmp_path)
    fill(SmallWorld(tmp_path), num_train=1, num_test=0).register()
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.mp4").write_bytes(clip(number))
    save_entry(tmp_path, DatasetEntry("mine", "folder", str(folder), "", "nano", "small", search_only=True))
    for dataset in ("small", "mine"):
        view = open_view(tmp_path, dataset)
        for name in list(stages_of(open_view(tmp_path, "mine"))):
            view.stages[name].build(view, Execution(workers=1))
    return folder


def sync(*options: str, answer: str = "") -> Result:
    return CliRunner().invoke(app, ["dataset", "sync", "mine", *options], input=answer)


def counts(result: Result, what: str) -> list[str]:
    line = next(line for line in result.stdout.splitlines() if line.startswith(f"│ {what} "))
    return [cell.strip() for cell in line.split("│")[2:6]]


def test_what_is_new_changed_and_gone_is_said_and_only_that_is_built(clips: Path, tmp_path: Path) -> None:
    assert "Nothing is due: mine is built from the files as they are." in sync().stdout
    (clips / "0.mp4").unlink()
    (clips / "1.mp4").write_bytes(clip(11))
    (clips / "3.mp4").write_bytes(clip(3))
    shown = sync("--dry-run")
    assert counts(shown, "video files") == ["1", "1", "1", "1"]
    assert "vsr1 plan --dataset mine" in shown.stdout
    refused = sync()
    assert refused.exit_code == 1
    assert "give --yes to build what is due, or --dry-run" in " ".join(refused.output.split())
    built = sync("--yes")
    assert built.exit_code == 0, built.output
    cells = [[cell.strip() for cell in line.split("│")] for line in built.stdout.splitlines() if "│" in line]
    assert {name: number for _, name, _, number, *_ in cells if name in MADE} == dict.fromkeys(MADE, "2")
    assert set(open_view(tmp_path, "mine").rows("video_embeddings")["video_id"]) == {"1", "2", "3"}
    assert "Nothing is due" in sync("--yes").stdout


def test_whoever_is_asked_and_says_no_builds_nothing(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clips / "3.mp4").write_bytes(clip(3))
    built: list[tuple[Any, ...]] = []
    monkeypatch.setattr(sync_command, "build_and_show", lambda settings, *how: built.append(how))
    monkeypatch.setattr(sync_command, "is_asked_by_a_person", lambda: True)
    assert sync(answer="n").exit_code == 0
    assert not built
    assert sync("--allow-removals", answer="y").exit_code == 0
    assert built == [("mine", "", BuildOptions(allow_removals=True))]
