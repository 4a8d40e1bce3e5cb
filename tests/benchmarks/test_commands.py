"""What short commands cost, against a bare Python and one that imports polars: processor time of fresh processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.measuring import CHILDREN, in_seconds, interleaved, line
from tests.cheap_stages import cheap_stages
from tests.small_world import SmallWorld, build, fill
from vsr1_core.configurations import NANO
from vsr1_core.home.warehouse import refresh

REPEATS = 5
BARE, POLARS = "pass", "import polars"
COMMANDS = {
    ("--help",): (BARE, "at most 0.3 s"),
    ("plan", "--dataset=small"): (POLARS, "at most 0.8 s"),
    ("status",): (POLARS, "at most 0.8 s"),
    ("sql", "select count(*) from metrics"): (POLARS, "at most 0.8 s"),
}
"""A command -> what it is compared with, and the processor time that is wanted."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a dataset of which everything is built, as `vsr1 build` leaves it: with what each plan was made from,
    so that the next one looks at nothing that stands."""
    world = fill(SmallWorld(tmp_path_factory.mktemp("home"))).register()
    build(world.view(cheap_stages(), NANO))
    refresh(world.home)
    _run(world.home, "-m", "vsr1_core", "build", "--dataset=small")
    return world.home


def _run(home: Path, *arguments: str) -> None:
    environment = {**os.environ, "VSR1_HOME": str(home)}
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command(command: tuple[str, ...], home: Path) -> None:
    baseline, wanted = COMMANDS[command]
    works = (lambda: _run(home, "-c", baseline)), (lambda: _run(home, "-m", "vsr1_core", *command))
    plain, ours = (min(each.seconds) for each in interleaved(REPEATS, CHILDREN, *works))
    times, against = in_seconds(plain, ours), f"python -c '{baseline}'"
    print(line(f"vsr1 {' '.join(command)}", *times, ours / plain, wanted, against=against, judged=ours))
