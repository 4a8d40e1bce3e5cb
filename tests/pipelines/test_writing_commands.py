"""What the commands that write a dataset refuse: rows of files that are gone, and a second writer."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipelines.cli import app


@pytest.fixture
def videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the dataset `mine`: two files, of which nothing here opens one."""
    monkeypatch.setenv("VSR1_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VSR1_WORKERS", "1")
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.mp4").write_text(name)
    (tmp_path / "a.csv").write_text("video,start,end,query\na,0,4,one\n")
    added = run("dataset", "add", "mine", "--videos", str(folder), "--annotations", str(tmp_path / "a.csv"))
    assert added.exit_code == 0, added.output
    return folder


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def build(*options: str) -> Result:
    return run("build", "--dataset", "mine", "--assets", "raw_videos", *options)


def test_an_empty_mount_point_stops_a_build_that_may_not_remove(videos: Path) -> None:
    assert build().exit_code == 0
    for path in videos.iterdir():
        path.unlink()
    stopped = build()
    assert stopped.exit_code == 1
    assert "2 of 2 known video files of mine are gone at once (a, b)" in " ".join(stopped.output.split())
    assert "2" in run("sql", "select count(*) as n from raw_videos", "--format", "csv").stdout
    assert build("--allow-removals").exit_code == 0
    assert "0" in run("sql", "select count(*) as n from raw_videos", "--format", "csv").stdout
