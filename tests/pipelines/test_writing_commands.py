"""What the commands that write a dataset refuse: rows of files that are gone, and a second writer."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import pipelines.definitions
import pipelines.resources
from pipelines.cli import app
from tests.command_line import use_stages
from vsr1_core.home.home import Home
from vsr1_core.home.hub.adoption import adopt
from vsr1_core.rows.files import write_json
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.lease import LeaseHeld, hold, read_holding
from vsr1_core.rows.unreadable import UnreadableRows
from vsr1_core.stages import corpus
from vsr1_core.stages.base import Stage
from vsr1_core.stages.graph import in_order


def corpus_stages() -> dict[str, Stage]:
    return in_order([stage() for stage in corpus.STAGES])


@pytest.fixture
def videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the dataset `mine`: two files, of which nothing here opens one."""
    use_stages(monkeypatch, corpus_stages, tmp_path / "home")
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


@pytest.mark.slow
def test_an_empty_mount_point_stops_a_build_that_may_not_remove(videos: Path) -> None:
    assert build().exit_code == 0
    for path in videos.iterdir():
        path.unlink()
    stopped = build()
    assert stopped.exit_code == 1
    assert "raw_videos: 2 of 2 known video files of mine are gone at once (a, b)" in " ".join(stopped.output.split())
    assert "2" in run("sql", "select count(*) as n from raw_videos", "--format", "csv").stdout
    assert build("--allow-removals").exit_code == 0
    assert "0" in run("sql", "select count(*) as n from raw_videos", "--format", "csv").stdout


@pytest.mark.slow
def test_a_table_that_cannot_be_read_is_named_and_made_again_as_the_message_says(videos: Path) -> None:
    assert build().exit_code == 0
    before = Home(videos.parent / "home").sql("from raw_videos")
    [rows] = (videos.parent / "home/lake/tables/raw_videos/dataset=mine").glob("rows*.parquet")
    rows.write_bytes(rows.read_bytes()[:-20])
    said = f"{rows}, a file of the table raw_videos of mine, cannot be read (parquet: "
    for asked in (("build", "-d", "mine"), ("plan", "-d", "mine"), ("sql", "from raw_videos")):
        failed = run(*asked)
        assert failed.exit_code == 1
        assert isinstance(failed.exception, SystemExit), failed.exception
        text = " ".join(failed.output.split())
        assert said in text, text
        assert "delete its folder and run: vsr1 build --dataset mine --assets raw_videos" in text
    for read in (lambda home: home.table("raw_videos", "mine"), lambda home: home.plan("mine")):
        with pytest.raises(UnreadableRows, match=re.escape(said)):
            read(Home(videos.parent / "home"))
    shutil.rmtree(rows.parent)
    assert build().exit_code == 0
    assert Home(videos.parent / "home").sql("from raw_videos").equals(before)


def lease_of(videos: Path, dataset: str = "mine") -> Path:
    return Lake(videos.parent / "home" / "lake").lease_folder(dataset)


@pytest.mark.parametrize(
    "arguments",
    [
        ["build", "--dataset", "mine", "--assets", "raw_videos"],
        ["build", "--dataset", "mine", "--assets", "raw_videos", "--executor", "multiprocess"],
        ["dataset", "remove", "mine"],
    ],
)
def test_a_second_writer_is_told_who_writes(videos: Path, arguments: list[str]) -> None:
    with hold(lease_of(videos), "a build on another desk"):
        result = run(*arguments)
    assert result.exit_code == 1
    said = " ".join(result.output.split())
    assert "dataset 'mine' has one writer at a time, and now it is: a build on another desk (process" in said
    assert "--wait" in said
    assert not (videos.parent / "home" / "lake" / "tables").exists()
    assert (videos.parent / "home" / "datasets" / "mine.json").exists()


def test_an_import_and_an_adoption_are_writers_too(videos: Path, tmp_path: Path) -> None:
    with hold(lease_of(videos, "charades"), "a build"):
        for arguments in (["--forget"], [str(tmp_path)]):
            result = run("import-prepared", "--dataset", "charades", *arguments)
            assert result.exit_code == 1
            assert "dataset 'charades' has one writer" in " ".join(result.output.split())
    home = Home(tmp_path / "home")
    with hold(lease_of(videos), "a build"):
        with pytest.raises(LeaseHeld):
            adopt(home.view("mine"), "sft_checkpoint", "me/policy", tmp_path)
        with pytest.raises(LeaseHeld):
            home.build("mine", ["raw_videos"])


def test_pruning_deletes_nothing_while_one_of_its_datasets_is_written(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus.RawVideos, "row_files", "*.bin")
    files = Lake(videos.parent / "home" / "lake").files("raw_videos", "mine")
    write_json(files / "old.bin", {})
    os.utime(files / "old.bin", (1, 1))
    with hold(lease_of(videos), "a build"):
        result = run("prune", "--delete")
        assert result.exit_code == 1
        assert "dataset 'mine' has one writer" in " ".join(result.output.split())
        assert (files / "old.bin").exists()
        assert "Files that no row points to: 1" in run("prune").output
    assert "Deleted 1 of 1" in run("prune", "--delete").output


@pytest.mark.slow
def test_a_build_that_waits_goes_on_when_the_other_writer_has_ended(videos: Path) -> None:
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(build("--wait")))
    with hold(lease_of(videos), "a build on another desk"):
        thread.start()
        time.sleep(1.0)
        assert not results
    thread.join(300)
    assert results[0].exit_code == 0, results[0].output


@pytest.mark.slow
def test_a_run_of_the_ui_that_meets_another_writer_fails_and_says_why(videos: Path) -> None:
    """Its steps do not wait: they may hold a place in a pool that the writer needs next."""
    from pipelines.instance import open_instance

    home = videos.parent / "home"
    job = pipelines.definitions.build_defs().resolve_job_def("corpus")
    with open_instance(home) as instance:
        with hold(lease_of(videos), "vsr1 build"):
            result = job.execute_in_process(instance=instance, partition_key="mine", raise_on_error=False)
        said = str(result.all_events)
        assert not result.success
        assert "has one writer at a time, and now it is: vsr1 build" in said
        assert job.execute_in_process(instance=instance, partition_key="mine", raise_on_error=False).success
    assert read_holding(lease_of(videos)).members == {}


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_the_same_command_goes_on(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = corpus.RawVideos.make

    def stopped(self: corpus.RawVideos, *arguments: Any) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(make(self, *arguments)):
            if number == 1:
                signal.raise_signal(signal.SIGINT)
            yield row

    with monkeypatch.context() as patch:
        patch.setattr(corpus.RawVideos, "make", stopped)
        result = build()
    assert result.exit_code == 130
    assert (
        result.output.splitlines()[-1] == "stopped; what is finished is kept, and the same command goes on from there"
    )
    assert "error" not in result.output
    assert read_holding(lease_of(videos)).members == {}
    goes_on = build()
    assert goes_on.exit_code == 0
    assert "raw_videos: 1 rows processed, 2 in all" in goes_on.output


SECRETS = ("VSR1_TEACHER_API_KEY", "VSR1_SERVE_TOKEN", "HF_TOKEN", "WANDB_API_KEY")


@pytest.mark.slow
def test_no_secret_of_the_environment_is_written_or_printed(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither into tables, nor into Dagster's runs, events and logs. The end to end run of the teacher is another
    test's (`test_endpoint_teacher`)."""
    for name in SECRETS:
        monkeypatch.setenv(name, f"marker-of-{name}")
    monkeypatch.setenv("VSR1_TEACHER_URL", "http://127.0.0.1:9/v1")
    (videos / "a.mp4").unlink()
    (videos / "a.mp4").mkdir()  # rows that fail and steps that say so are looked through, too
    printed = "".join(result.output for result in (build(), run("plan", "-d", "mine"), run("doctor")))
    home = videos.parent / "home"
    written = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert any(b"raw_videos" in content for path, content in written.items() if path.suffix == ".db"), "its events"
    for content in (*written.values(), printed.encode()):
        assert b"marker-of-" not in content
