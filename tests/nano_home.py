"""A home in which `toy` is built at the size `nano` by the command line. One test process builds it, all copy it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines.cli import app


@dataclass(frozen=True)
class NanoBuild:
    """A copy of the home, and what its build did: the plan before, the rows that it processed by asset, and the plan
    after it."""

    home: Path
    before: dict[str, Any]
    processed: dict[str, int]
    after: dict[str, Any]


def vsr1(*arguments: str) -> Any:
    """A command that succeeds, in the home that VSR1_HOME names."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result


def rows_processed(output: str) -> dict[str, int]:
    """asset -> rows processed, from the progress lines of a build."""
    found = re.findall(r"^(\S+): ([\d,]+) rows processed", output, re.MULTILINE)
    return {name: int(number.replace(",", "")) for name, number in found}


def copy_nano_home(factory: pytest.TempPathFactory, to: Path) -> NanoBuild:
    """Copy the home to `to`, which does not exist yet. It is built where no test process has built it so far."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    home, said = shared / "nano", shared / "nano.json"
    with (shared / "nano.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            shutil.rmtree(home, ignore_errors=True)
            said.write_text(json.dumps(_build(home)))
    shutil.copytree(home, to)
    return NanoBuild(to, **json.loads(said.read_text()))


def _build(home: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VSR1_HOME", str(home))
        patch.setenv("VSR1_DEVICE", "cpu")
        vsr1("dataset", "add", "toy", "--toy", "--config", "nano")
        before = json.loads(vsr1("plan", "-d", "toy", "--json").stdout)["assets"]
        output = vsr1("build", "-d", "toy").output
        after = json.loads(vsr1("plan", "-d", "toy", "--json").stdout)["assets"]
    return {"before": before, "processed": rows_processed(output), "after": after}
