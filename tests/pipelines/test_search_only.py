"""`vsr1 dataset add --search-only`: an embedder and an index, and nothing of a policy, from registration to search."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from tests.cheap_stages import cheap_stages
from tests.command_line import use_stages
from tests.small_world import SmallWorld, clip, fill
from vsr1_core.datasets.registry import get_entry
from vsr1_core.home.search import SearchRequest, best_method, method_of
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import open_view

MADE = ["annotation_files", "raw_videos", "videos", "moments", "frame_tensors"]
MADE += ["base_models", "video_embeddings", "video_index"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_stages(monkeypatch, cheap_stages, tmp_path)
    (tmp_path / "clips").mkdir()
    for number in range(3):
        (tmp_path / f"clips/{number}.mp4").write_bytes(clip(number))
    return tmp_path


@pytest.fixture
def lender(home: Path) -> SmallWorld:
    """A dataset that has made base models and trained nothing yet."""
    world = fill(SmallWorld(home), num_train=2, num_test=1).register()
    view = open_view(home, "small", cheap_stages())
    for name in MADE[:6]:
        view.stages[name].build(view, Execution(workers=1))
    return world


def ok(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 1, result.output
    return " ".join(result.output.split())


def add(home: Path, *options: str) -> str:
    return ok("dataset", "add", "mine", "--videos", str(home / "clips"), *options)


@pytest.mark.slow
def test_a_searched_folder_needs_the_embedder_alone_of_the_models_that_it_borrows(
    home: Path, lender: SmallWorld
) -> None:
    said = add(home, "--search-only", "--models-from", "small")
    assert "3 videos, no annotations, embedder from small" in said
    assert "No policy is fetched, trained or asked" in said
    assert list(json.loads(ok("plan", "-d", "mine", "--json"))["assets"]) == MADE
    built = ok("build", "-d", "mine")
    assert built.endswith('Search: vsr1 search "what happens in it" --dataset mine')
    view = open_view(home, "mine")
    assert set(view.rows("base_models")["model_id"]) == {"embedder"}
    assert view.rows("video_index")["num_videos"].to_list() == [3]
    assert [name for name in view.stages if view.table(name).exists()] == MADE
    assert "checkpoint" not in ok("status", "-d", "mine")
    counts = json.loads(ok("plan", "-d", "mine", "--json"))["assets"].values()
    assert sum(row["new"] + row["stale"] for row in counts) == 0


def test_no_method_searches_it_even_where_an_earlier_registration_left_a_policy(home: Path, lender: SmallWorld) -> None:
    add(home, "--models-from", "small")
    view = open_view(home, "mine")
    for name in MADE:
        view.stages[name].build(view, Execution(workers=1))
    assert best_method(view) is not None
    add(home, "--search-only", "--models-from", "small")
    view = open_view(home, "mine")
    assert method_of(view, SearchRequest("a dog")) is None
    with pytest.raises(LookupError, match="registered with --search-only and has no method 'zero_shot'"):
        method_of(view, SearchRequest("a dog", method="zero_shot"))


def test_a_published_policy_is_not_in_the_plan_of_a_searched_folder(home: Path) -> None:
    add(home, "--search-only", "--config", "qwen3-vl-2b")
    assert "no policy and Qwen/Qwen3-VL-Embedding-2B" in ok("dataset", "show", "mine")
    assert json.loads(ok("plan", "-d", "mine", "--json"))["assets"]["base_models"]["new"] == 1


def test_models_that_are_not_there_are_asked_for_by_the_part_that_is_needed(home: Path) -> None:
    said = add(home, "--search-only")
    assert "First: vsr1 build --dataset toy --assets base_models" in said
    assert get_entry(home, "mine").search_only


def test_without_annotations_the_command_says_what_it_will_and_will_not_do(home: Path) -> None:
    said = add(home)
    assert "what is found verified by the policy" in said
    assert "nothing is trained on them and no search is scored" in said
    assert "For the embedder alone: --search-only" in said
    assert "ranked by the embedder alone" in add(home, "--config", "laptop")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--search-only", "--train-own"], "--search-only fetches, trains and asks no policy"),
        (["--search-only", "--policy", "org/policy"], "--search-only fetches, trains and asks no policy"),
        (["--search-only", "--annotations", "clips"], "give --videos alone"),
        (["--search-only", "--toy"], "give --videos alone"),
        (["--train-own", "--models-from", "toy"], "leave one out"),
        (["--models-from", ""], "to train models of its own: --train-own"),
        (["--train-own"], "has no annotations"),
    ],
)
def test_options_that_contradict_each_other_are_refused(home: Path, options: list[str], says: str) -> None:
    assert says in refused("dataset", "add", "mine", "--videos", str(home / "clips"), *options)
