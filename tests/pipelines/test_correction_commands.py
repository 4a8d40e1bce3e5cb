"""`vsr1 corrections` over annotations on disk: nothing is built."""

from __future__ import annotations

import getpass
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from tests.small_world import SmallWorld, fill
from vsr1_core.datasets.corrections import Annotated, Correction, appending, corrections_path

SAID = Annotated("the thing called 900 moves along", "test_0", 0.0, 3.0, "test")
BETTER = Annotated("a [red] thing", "test_0", 1.0, 2.5, "test")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallWorld:
    monkeypatch.setenv("VSR1_HOME", str(tmp_path))
    world = fill(SmallWorld(tmp_path), num_train=1, num_test=1).register()
    with appending(corrections_path(tmp_path, "small")) as listed:
        listed.append(Correction.made("Ada", "change", "900_fig", before=SAID, after=BETTER))
        listed.append(Correction.made("Ada", "reject", "901_fig", before=Annotated("else", "test_0", 3.0, 6.0, "test")))
    return world


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments, "--dataset", "small"])
    assert result.exit_code == 0, result.output
    return result.output


def test_corrections_are_listed_undone_and_exported(world: SmallWorld, tmp_path: Path) -> None:
    said = run("corrections", "list")
    assert "Ada" in said
    assert "is not applied: the annotation changed since" in said
    judged = {one["query_id"]: one for one in json.loads(run("corrections", "list", "--format", "json"))}
    assert (judged["900_fig"]["state"], judged["901_fig"]["state"]) == ("applied", "conflict")

    target = tmp_path / "out.jsonl"
    written = run("corrections", "export", str(target))
    assert "Wrote 4 queries" in written
    assert "Left out: 1 corrections that are not applied" in written
    (advised,) = re.findall(r"see: vsr1 (.*)", written)
    assert CliRunner().invoke(app, advised.split()).exit_code == 0, "the advice can be followed"
    rows = {row["desc_id"]: row for row in map(json.loads, target.read_text().splitlines())}
    assert (rows["900"]["fig_desc"], rows["900"]["time"], rows["900"]["split"]) == ("a [red] thing", [1.0, 2.5], "test")
    assert rows["900"]["cog_desc"] == "thing 900 moves"

    for one in judged.values():
        run("corrections", "undo", one["correction_id"])
    again = json.loads(run("corrections", "list", "--format", "json"))
    assert {one["state"] for one in again} == {"undone"}
    refused = CliRunner().invoke(app, ["corrections", "undo", "nope", "--dataset", "small"])
    assert (refused.exit_code, "has no correction 'nope'" in refused.output) == (1, True)


@pytest.mark.slow
def test_a_wide_result_is_printed_one_line_per_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSR1_HOME", str(tmp_path))
    wide = "select " + ", ".join(f"{number} as column_{number}" for number in range(30))
    for arguments in (["sql", wide], ["sql", wide, "--format", "record"]):
        lines = CliRunner().invoke(app, arguments).output.splitlines()
        assert lines[:2] == ["row 1 of 1", "  column_0   0"]
        assert len(lines) == 31
    narrow = CliRunner().invoke(app, ["sql", "select 'a\nb' as two, null as none", "--format", "record"]).output
    assert narrow == "row 1 of 1\n  two   a\n        b\n  none  \n"
    assert CliRunner().invoke(app, ["sql", "select 1 as one where false", "-f", "record"]).output == "no rows\n"


def test_a_user_without_a_name_can_undo(world: SmallWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(getpass, "getuser", unknown)
    (one, *_) = json.loads(run("corrections", "list", "--format", "json"))
    assert "Undone." in run("corrections", "undo", one["correction_id"])
