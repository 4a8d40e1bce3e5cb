"""Progress of a build: a bar on a terminal, plain lines anywhere else, and never a bar in what Dagster captures."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.bars import bars_on, bars_on_terminal, show_step
from tests.fakes import write_numbers

BUILD = """
import sys, time
from pathlib import Path
import pytest
from tests.fakes import Squares, fake_stages
import pipelines.resources, pipelines.settings, pipelines.builds
from pipelines.definitions import build_defs

patch = pytest.MonkeyPatch()
patch.setattr(pipelines.resources, "all_stages", fake_stages)
make = Squares.make
def slow(self, view, rows, run):
    for row in make(self, view, rows, run):
        time.sleep(0.05)
        yield row
patch.setattr(Squares, "make", slow)
settings = pipelines.settings.Settings(Path(sys.argv[1]), "cpu")
result = pipelines.builds.run_build(settings, "toy", defs=build_defs(settings, fake_stages()))
assert result.success, result.problems
"""


def build_on_a_terminal(home: Path) -> str:
    """A build with stderr on a pseudo-terminal; what that showed."""
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", BUILD, str(home)], stderr=theirs, stdout=subprocess.DEVNULL) as build:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    assert build.returncode == 0, shown.decode()
    return shown.decode()


@pytest.mark.slow
def test_a_terminal_shows_a_bar_and_captured_logs_hold_none(tmp_path: Path) -> None:
    write_numbers(tmp_path, "toy", {f"n{i}": i for i in range(40)})
    shown = build_on_a_terminal(tmp_path)
    assert "squares" in shown
    assert "━" in shown, "a bar"
    assert "squares: 40 rows processed, 40 in all" in shown
    captured = [path for path in (tmp_path / "dagster").rglob("*") if path.suffix in (".err", ".out")]
    assert captured
    for path in captured:
        text = path.read_text(encoding="utf-8")
        assert "━" not in text
        assert "\r" not in text


def test_a_bar_is_there_until_its_work_is_done() -> None:
    terminal = io.StringIO()
    with bars_on(terminal):
        show_step("frames", 1, 3)
        show_step("done at once", 3, 3)
        show_step("done", 1, 2)
        show_step("done", 2, 2)
    _, frames, below = terminal.getvalue().rpartition("frames")  # the picture that was drawn last
    assert frames
    assert "done" not in below


def test_where_there_is_no_terminal_there_is_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with bars_on_terminal():
        show_step("frames", 1, 3)
    show_step("frames", 2, 3)
    assert capsys.readouterr() == ("", "")
