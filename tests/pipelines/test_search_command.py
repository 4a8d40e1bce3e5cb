"""What `vsr1 search` says, and that it refuses bad input before torch is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import vsr1_core.home.search
from pipelines import search_command
from pipelines.cli import app
from vsr1_core.home.search import SearchRequest
from vsr1_core.home.search_result import Found, Hit, RankedVideo, ShownTurn

ROOT = Path(__file__).resolve().parents[2]
FIRST = (RankedVideo("pool", 0.61), RankedVideo("[b]yard[/b]", 0.6))
FOUND = Found(
    text="a dog jumps",
    dataset="mine",
    split="test",
    hits=(
        Hit(1, "[b]yard[/b]", 0.7, "/clips/yard.mp4", 2, 2, "matched", 0.9731, 3.0, 6.5, "a dog jumps."),
        Hit(2, "pool", 0.5, None, 1),
    ),
    first=FIRST,
    turns=(
        ShownTurn(1, "lake", 0.61, "not_matched", 0.1, reasoning="no dog.", ranking=FIRST, last_rank=14),
        ShownTurn(2, "[b]yard[/b]", 0.7, "matched", 0.9731, 3.0, 6.5, "a dog jumps.", last_rank=1),
    ),
    method="sqr_sft",
    checkpoint="0123abcd",
    seconds=0.5,
    loading_s=12.25,
)


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[SearchRequest]:
    """The requests that reach the models; each is answered with FOUND."""
    asked: list[SearchRequest] = []
    monkeypatch.setenv("VSR1_HOME", str(tmp_path))
    monkeypatch.setattr(search_command, "method_of", lambda view, request: None)
    monkeypatch.setattr(vsr1_core.home.search, "search_once", lambda opened, request: asked.append(request) or FOUND)
    return asked


def run(*arguments: str) -> tuple[str, str]:
    result = CliRunner().invoke(app, ["search", "a dog jumps", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_the_table_says_verdict_turns_both_rankings_and_who_searched(answered: list[SearchRequest]) -> None:
    out, err = run("--turns", "2", "--method", "sqr_sft", "-k", "2")
    assert answered == [SearchRequest("a dog jumps", top_k=2, method="sqr_sft", turns=2)]
    lines = out.splitlines()
    assert lines[:2] == ["mine, test: a dog jumps", "matched in turn 2"]
    assert "lake" in out, "a shown video is listed where it is outside the top k"
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert ["1", "lake", "14", "not_matched", "0.1", "", "", "no dog."] in cells
    hit = ["1", "[b]yard[/b]", "0.7", "2", "2", "matched", "3", "6.5", "pool", "/clips/yard.mp4"]
    assert hit in cells, "the first ranking stands beside the last one, and markup in a name is text"
    assert "Searched by sqr_sft, checkpoint 0123abcd." in out
    assert "Loading the models took 12.2 s, and the search 0.5 s" in err


def test_a_record_has_one_field_per_line_and_json_is_the_result(answered: list[SearchRequest]) -> None:
    out, _ = run("--format", "record")
    assert "  verdict: matched in turn 2" in out.splitlines()
    assert "  place in the last ranking: 14" in out.splitlines()
    assert "  span: 3 to 6.5 s" in out.splitlines()
    out, _ = run("--format", "json")
    assert Found.from_dict(json.loads(out)) == FOUND
    assert json.loads(out)["verdict"] == "matched in turn 2"


def test_the_verdict_says_when_nothing_matched_or_nothing_was_verified() -> None:
    asked = Found("x", "mine", "test", method="sqr_sft", turns=(ShownTurn(1, "lake", 0.6, "unknown"),))
    assert (asked.verdict, asked.matched_turn) == ("nothing matched; nearest videos follow", None)
    assert Found("x", "mine", "test").verdict == "not verified; videos by similarity follow"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text": " \n"}, "search text is blank"),
        ({"text": "x" * 2001}, "has 2,001 characters; 2,000 are the most"),
        ({"top_k": 0}, "at least 1, not 0"),
        ({"top_k": 10**9}, "at most 1,000"),
        ({"turns": 0}, "at least 1 and at most 10, not 0"),
        ({"turns": 11}, "at least 1 and at most 10, not 11"),
        ({"verify": False, "method": "sqr_sft"}, "without verification has no method"),
        ({"verify": False, "turns": 2}, "without verification has no method and no turns"),
    ],
)
def test_a_request_out_of_range_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchRequest(**{"text": "a dog", **values})  # type: ignore[arg-type]


def test_bad_input_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    code = """
import sys
from typer.testing import CliRunner
from pipelines.cli import app
for arguments in (["x", "-d", "nope"], [" "], ["x", "-k", "0"], ["x", "--format", "xml"], ["x"],
                  ["x", "--no-verify", "--method", "zero_shot"]):
    result = CliRunner().invoke(app, ["search", *arguments])
    assert result.exit_code == 1, (arguments, result.output)
    print(result.stderr.strip())
assert not {"torch", "transformers", "faiss"} & set(sys.modules)
"""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "VSR1_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("error: ") == 6
    assert "dataset 'toy' has no model to search with; run: vsr1 build --dataset toy" in done.stdout
