"""What `vsr1 search` says, and that it refuses bad input before torch is imported."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import vsr1_core.home.search
from pipelines import show_search
from pipelines.cli import app
from pipelines.commands import say
from pipelines.show_search import print_found
from tests.videos import write_video
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


class Asked(list[SearchRequest]):
    """The requests that reach the models; each is answered with `found`."""

    found = FOUND


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Asked:
    asked = Asked()
    monkeypatch.setenv("VSR1_HOME", str(tmp_path))
    monkeypatch.setattr(vsr1_core.home.search, "method_of", lambda view, request: None)
    monkeypatch.setattr(
        vsr1_core.home.search, "search_once", lambda opened, request: asked.append(request) or asked.found
    )
    return asked


def run(*arguments: str) -> tuple[str, str]:
    result = CliRunner().invoke(app, ["search", "a dog jumps", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_the_table_says_verdict_turns_both_rankings_and_who_searched(answered: Asked) -> None:
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


def test_a_record_has_one_field_per_line_and_json_is_the_result(answered: Asked) -> None:
    out, _ = run("--format", "record")
    assert "  verdict: matched in turn 2" in out.splitlines()
    assert "  place in the last ranking: 14" in out.splitlines()
    assert "  span: 3 to 6.5 s" in out.splitlines()
    out, _ = run("--format", "json")
    assert Found.from_dict(json.loads(out)) == FOUND
    assert json.loads(out)["verdict"] == "matched in turn 2"


@pytest.mark.parametrize("form", ["record", "table"])
def test_no_name_and_no_answer_steers_a_terminal(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, written = io.StringIO(), list[str]()
    monkeypatch.setattr("typer.echo", lambda text, **_: written.append(text))
    monkeypatch.setattr(show_search, "console", lambda: Console(file=shown, width=160))
    clear = "\x1b[2J"
    turn = ShownTurn(1, f"a{clear}b", 0.5, "not_matched", reasoning=f"is {clear} seen")
    print_found(Found(f"a {clear} dog", "mine", "test", (Hit(1, f"a{clear}b", 0.5),), turns=(turn,)), form)
    say(f"reads a{clear}b")
    said = "".join([shown.getvalue(), *written])
    assert "\\u001b[2J" in said
    assert "\x1b" not in said


def test_clips_are_saved_and_said_beside_the_result(answered: Asked, tmp_path: Path) -> None:
    source = write_video(tmp_path / "yard.mp4", range(8))
    hits = (dataclasses.replace(FOUND[0], path=str(source)), FOUND[1])
    answered.found = dataclasses.replace(FOUND, hits=hits)
    out, err = run("--save-clips", "7", "--out", str(tmp_path / "clips"), "--format", "json")
    assert answered[0].top_k == 7, "as many are looked for as are to be saved"
    assert json.loads(out)["verdict"] == "matched in turn 2", "the output stays JSON"
    assert f"Saved {tmp_path}/clips/01_b_yard_b_3.0-6.5s.mp4" in err.replace("\n", " ")
    assert "pool was not saved: it has no file" in err
    assert [path.name for path in (tmp_path / "clips").iterdir()] == ["01_b_yard_b_3.0-6.5s.mp4"]


def test_a_picture_takes_the_place_of_words(answered: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []
    by_picture = dataclasses.replace(FOUND, text="", image="frame.png", method=None, turns=())
    monkeypatch.setattr(
        vsr1_core.home.search, "search_by_picture", lambda opened, *asks: asked.append(asks) or by_picture
    )
    result = CliRunner().invoke(app, ["search", "--image", "frame.png", "-k", "3"])
    assert result.stdout.splitlines()[0] == "mine, test: the picture frame.png"
    assert asked == [(Path("frame.png"), "test", 3)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a dog", "--save-clips", "2"], "--save-clips N and --out DIR belong together"),
        (["a dog", "--out", "clips"], "--save-clips N and --out DIR belong together"),
        (["a dog", "--image", "a.png"], "--image searches with a picture alone"),
        (["--image", "a.png", "--turns", "2"], "--image searches with a picture alone"),
        ([], "the search text is blank"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(answered: Asked, arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(app, ["search", *arguments])
    assert result.exit_code == 1
    assert says in " ".join(result.output.split())
    assert not answered


def test_the_window_of_a_long_video_is_said_where_there_is_one(
    answered: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    hits = (Hit(1, "film", 0.7, window_start_s=90.0, window_end_s=210.5), Hit(2, "pool", 0.5))
    found = Found("x", "mine", "test", hits, first=FIRST)
    assert [hit.clip_s for hit in (*found, FOUND[0])] == [(90.0, 210.5), None, (3.0, 6.5)]
    print_found(found, "record")
    assert "  window: 90 to 210.5 s" in capsys.readouterr().out.splitlines()
    print_found(found, "table")
    assert "90 to 210.5 s" in capsys.readouterr().out
    assert "window" not in run()[0]


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


@pytest.mark.slow
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
