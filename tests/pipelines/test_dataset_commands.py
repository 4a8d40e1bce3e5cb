"""`vsr1 dataset show` and `check`: what they print, in which formats, and how they exit."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipelines.cli import app
from tests.videos import write_video
from vsr1_core.configurations import CONFIGURATIONS, NANO
from vsr1_core.datasets import sources
from vsr1_core.datasets.corrections import corrections_path
from vsr1_core.datasets.registry import get_entry, load_entries, save_entry
from vsr1_core.datasets.verified import Moment
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import open_view


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VSR1_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VSR1_WORKERS", "1")
    return tmp_path / "home"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("name", ["charades", "didemo", "activitynet"])
def test_a_public_dataset_says_where_its_files_come_from_before_it_was_added(home: Path, name: str) -> None:
    out = " ".join(run("dataset", "show", name).stdout.split())
    assert "github.com/hlchen23/VERIFIED" in out
    assert f"{name}_fig_train.jsonl" in out
    assert f"vsr1 dataset add {name}" in out
    assert not home.exists()


@pytest.fixture
def clips(home: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    write_video(folder / "a.mp4", range(5))
    (tmp_path / "a.csv").write_text("video,start,end,query\na,0,4,one\n")
    added = run("dataset", "add", "mine", "--videos", str(folder), "--annotations", str(tmp_path / "a.csv"))
    assert added.exit_code == 0, added.output
    return folder


def said(*arguments: str) -> str:
    return " ".join(run(*arguments).output.split())


def add_again(clips: Path, *options: str) -> str:
    return said("dataset", "add", "other", "--videos", str(clips), *options)


def test_a_configuration_of_published_models_makes_its_own_unless_told_otherwise(home: Path, clips: Path) -> None:
    assert "its own models" in add_again(clips, "--config", "qwen3-vl-2b")
    assert get_entry(home, "other").models_from == ""
    assert "models from toy" in add_again(clips)
    assert (get_entry(home, "other").models_from, get_entry(home, "other").config) == ("toy", "tiny")
    assert "models from toy" in add_again(clips, "--config", "nano")


def test_models_that_the_configuration_does_not_name_are_refused(home: Path, clips: Path) -> None:
    out = add_again(clips, "--config", "qwen3-vl-2b", "--models-from", "toy")
    assert "--config qwen3-vl-2b names the models Qwen/Qwen3-VL-2B-Instruct and Qwen/Qwen3-VL-Embedding-2B" in out
    assert "toy has tiny: leave out --config" in out
    assert "other" not in load_entries(home)
    assert "models from charades" in add_again(clips, "--models-from", "charades")
    assert get_entry(home, "other").config == "qwen3-vl-2b"


def test_borrowed_frames_and_options_are_said_aloud(home: Path, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coarse = dataclasses.replace(NANO, name="coarse", frames=dataclasses.replace(NANO.frames, max_frames=4))
    monkeypatch.setitem(CONFIGURATIONS, "coarse", coarse)
    out = add_again(clips, "--config", "coarse", "--models-from", "toy")
    assert (
        "at most 12 of 4,096 pixels, as the models of toy were trained with them; not at 1 per second, at most 4"
        in (out)
    )
    assert "sizes and options of the models are those of tiny" in out
    shown = said("dataset", "show", "other")
    assert "1 per second, at most 12 of 4,096 pixels, as the models of toy saw" in shown
    listed = next(line for line in run("dataset", "list").output.splitlines() if line.startswith("│ other"))
    assert [cell.strip() for cell in listed.split("│")][3:6] == ["coarse", "toy", "tiny"]
    assert "were trained with them" not in add_again(clips)


def test_models_of_a_dataset_that_is_not_there_are_refused(home: Path, clips: Path) -> None:
    result = run("dataset", "add", "other", "--videos", str(clips), "--models-from", "nobody")
    assert result.exit_code == 1
    assert "error: no dataset 'nobody'; known: activitynet" in " ".join(result.output.split())


def test_models_that_go_round_in_a_circle_are_refused_and_listed(home: Path, clips: Path) -> None:
    add_again(clips, "--models-from", "mine")
    entry = get_entry(home, "mine")
    out = said("dataset", "add", "mine", "--videos", str(clips), "--models-from", "other")
    assert "in a circle: mine from other from mine" in out
    assert get_entry(home, "mine") == entry
    save_entry(home, dataclasses.replace(entry, models_from="gone"))
    assert "unknown" in said("dataset", "list")
    assert "unknown: dataset 'mine' borrows the models of 'gone'" in said("dataset", "show", "mine")


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("video;start;end;query\na;0;4;one\n", [], "has no column video, start, end, query; line 1 must name"),
        ("video,start,end,query\na,zero,4,one\n", [], "not one of the first 1 annotation lines can be used"),
        ("video,start,end,query\na,0,4,one\n", ["--train-own"], "no line of"),
    ],
)
def test_annotations_that_cannot_be_used_are_refused_before_anything_is_saved(
    home: Path, clips: Path, tmp_path: Path, text: str, options: list[str], says: str
) -> None:
    (tmp_path / "b.csv").write_text(text)
    result = run("dataset", "add", "other", "--videos", str(clips), "--annotations", str(tmp_path / "b.csv"), *options)
    assert result.exit_code == 1, result.output
    assert says in " ".join(result.output.split())
    assert "other" not in load_entries(home)


def test_lines_and_videos_that_cannot_be_used_are_said_when_a_dataset_is_added(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("video,start,end,query\na,0,4,one\na,4,1,two\ngone,0,4,three\n")
    said = add_again(clips, "--annotations", str(tmp_path / "b.csv"))
    assert "1 lines of the first 3 cannot be used, e.g. b.csv:3: the span [4, 1] s is negative" in said
    assert "1 annotated videos of the first 3 have no file, e.g. 'gone'. All: vsr1 dataset check other" in said


def test_a_folder_of_fig_files_is_taken_under_any_name(home: Path, clips: Path, tmp_path: Path) -> None:
    row = {"video": "a", "time": [0, 1], "desc_id": 1, "duration": 9, "cog_desc": "x", "fig_desc": "y"}
    folder = tmp_path / "fig"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"films_fig_{split}.jsonl").write_text(json.dumps(row | {"desc_id": split}) + "\n")
    said = add_again(clips, "--annotations", str(folder))
    assert "1 videos, annotated, models from toy" in said
    entry = get_entry(home, "other")
    assert entry.kind == "verified"
    found = sources.moments(entry, NANO)
    assert {i: row.split for i, row in found.items() if isinstance(row, Moment)} == {
        "train_fig": "train",
        "test_fig": "test",
    }
    (folder / "more_fig_test.jsonl").write_text(json.dumps(row) + "\n")
    assert "has files of several datasets (films, more)" in add_again(clips, "--annotations", str(folder))
    assert "is a folder without files" in add_again(clips, "--annotations", str(clips))


@pytest.mark.slow
def test_a_dataset_is_removed_with_its_rows_unless_another_one_uses_them(home: Path, clips: Path) -> None:
    view = open_view(home, "mine")
    for name in ("annotation_files", "raw_videos", "videos"):
        view.stages[name].build(view, Execution(workers=1))
    add_again(clips, "--models-from", "mine")
    assert "other use models or imports of mine; remove" in said("dataset", "remove", "mine", "--rows")
    assert "Its tables stay under" in said("dataset", "remove", "other")
    save_entry(home, dataclasses.replace(view.entry, name="mine-seed-1", same_corpus_as="mine"))
    assert "mine-seed-1 use models or imports of mine" in said("dataset", "remove", "mine", "--rows")
    said("dataset", "remove", "mine-seed-1")
    corrections = corrections_path(home, "mine")
    corrections.parent.mkdir()
    corrections.touch()
    assert view.table("videos").exists()
    last = said("dataset", "remove", "mine", "--rows")
    assert "MiB of its rows and their files" in last
    assert f"What people corrected stays in {corrections}." in last
    assert corrections.is_file()
    assert not list((home / "lake").glob("*/*/*mine*"))
    assert (clips / "a.mp4").is_file()
    assert "mine" not in load_entries(home)


def test_a_clean_dataset_exits_with_0(clips: Path) -> None:
    result = run("dataset", "check", "mine")
    assert result.exit_code == 0, result.output
    assert "agree with the annotations" in result.stdout


@pytest.mark.slow
def test_findings_exit_with_1_and_come_as_table_csv_and_json(clips: Path) -> None:
    (clips / "a.mp4").rename(clips / "b.mp4")
    table = run("dataset", "check", "mine")
    assert table.exit_code == 1
    assert "missing" in table.stdout
    as_json = run("dataset", "check", "mine", "--format", "json")
    assert as_json.exit_code == 1
    assert [(f["kind"], f["row_id"]) for f in json.loads(as_json.stdout)] == [("missing", "a")]
    as_csv = run("dataset", "check", "mine", "--format", "csv")
    assert [row["kind"] for row in csv.DictReader(io.StringIO(as_csv.stdout))] == ["missing"]


@pytest.mark.slow
def test_extra_videos_can_be_allowed(home: Path, tmp_path: Path) -> None:
    row = {"video": "a", "time": [0, 1], "desc_id": 1, "duration": 9, "cog_desc": "x", "fig_desc": "y"}
    data = home / "data/activitynet"
    for name in ("train", "val_1", "val_2"):
        (data / "annotations").mkdir(parents=True, exist_ok=True)
        (data / f"annotations/activitynet_fig_{name}.jsonl").write_text(json.dumps(row | {"desc_id": name}) + "\n")
    (data / "videos").mkdir()
    for name in "ab":
        write_video(data / f"videos/{name}.mp4", range(5))
    kinds = [
        {f["kind"] for f in json.loads(run("dataset", "check", "activitynet", "-f", "json", *option).stdout)}
        for option in ([], ["--allow-extra"])
    ]
    assert kinds == [{"wrong count", "strange id", "extra"}, {"wrong count", "strange id"}]


def test_a_check_without_annotations_says_what_to_put_where(home: Path) -> None:
    result = run("dataset", "check", "didemo")
    assert result.exit_code == 1
    assert "didemo_fig_train.jsonl" in result.output
