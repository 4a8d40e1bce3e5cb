"""Corrections through the API: what is planned is what is rebuilt, and undoing brings the old rows back."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from polars.testing import assert_frame_equal
from starlette.testclient import TestClient

from tests.core.serve.served import client_of
from tests.corrected_world import CorrectedWorld, view_of
from tests.small_world import plans
from vsr1_core.datasets import sources
from vsr1_core.datasets.corrections import corrections_path, read_corrections
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.home.correcting import export_fig
from vsr1_core.serve.builds import Builds
from vsr1_core.serve.errors import answer_to, without_folders
from vsr1_core.stages import checks
from vsr1_core.stages.corrections import corrected_moments

OF = "/api/datasets/small"
QUERY = "900_fig"


@pytest.fixture(scope="module")
def corrected(tmp_path_factory: pytest.TempPathFactory) -> CorrectedWorld:
    return CorrectedWorld.built(tmp_path_factory.mktemp("corrected"))


@pytest.fixture
def asked(corrected: CorrectedWorld) -> Iterator[TestClient]:
    with client_of(corrected.state()) as client:
        yield client
    corrections_path(corrected.world.home, "small").unlink(missing_ok=True)


def now(client: TestClient, query_id: str = QUERY) -> Any:
    return client.get(f"{OF}/corrections", params={"id": query_id}).json()["now"]


def correct(client: TestClient, status: int = 201, **values: Any) -> Any:
    body = {"action": "change", "query_id": QUERY, "who": "Ada", **values}
    answer = client.post(f"{OF}/corrections", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def undo(client: TestClient, correction_id: str) -> Any:
    return client.post(f"{OF}/corrections/undo", json={"correction_id": correction_id})


def build(client: TestClient) -> Any:
    assert client.post(f"{OF}/build").status_code == 202
    deadline = time.monotonic() + 400
    while (found := client.get(f"{OF}/build").json())["state"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert found["state"] == "done", found
    return found


@pytest.mark.slow
def test_exactly_the_planned_rows_are_rebuilt_and_undoing_brings_the_old_ones_back(
    asked: TestClient, corrected: CorrectedWorld, tmp_path: Path
) -> None:
    before, published = corrected.tables(), corrected.world.annotation_path("test").read_bytes()
    assert asked.get(f"{OF}/plan").json()["says"] == "Nothing is left to build."
    made = correct(asked, before=now(asked), changes={"start_s": 1.0, "end_s": 3.5})
    assert (made["who"], made["before"]["start_s"], made["after"]["end_s"]) == ("Ada", 0.0, 3.5)

    plan = asked.get(f"{OF}/plan").json()
    assert plan["assets"]["moments"] == plan["assets"]["predictions.sqr_sft"] == 1
    assert not {"query_embeddings", "first_ranking", "sft_checkpoint"} & set(plan["assets"])
    assert plan["says"].startswith(f"A build makes {plan['num_rows']} rows of {len(plan['assets'])} assets")
    assert build(asked)["lines"]
    known = {name: number for name, number in corrected.processed.items() if name not in plan["later"]}
    assert known == plan["assets"]
    assert asked.get(f"{OF}/plan").json()["assets"] == {}
    after = {row["query_id"]: row for row in corrected.tables()["moments"].to_dicts()}
    assert (after[QUERY]["start_s"], after[QUERY]["end_s"]) == (1.0, 3.5)
    assert corrected.world.annotation_path("test").read_bytes() == published, "the published file is not touched"

    target = tmp_path / "corrected.jsonl"
    assert export_fig(view_of(corrected.world), target).left_out == []
    own = DatasetEntry("mine", "folder", str(corrected.world.videos), str(target), "nano")
    view = view_of(corrected.world)
    assert sources.moments(own, view.config) == corrected_moments(view).moments

    assert undo(asked, made["correction_id"]).status_code == 201
    build(asked)
    for name, rows in corrected.tables().items():
        assert_frame_equal(rows, before[name])
    states = [one["state"] for one in asked.get(f"{OF}/corrections").json()["corrections"]]
    assert states == ["undone"]


@pytest.mark.slow
def test_text_right_video_added_and_rejected_queries(asked: TestClient, corrected: CorrectedWorld) -> None:
    correct(asked, changes={"query": "a cat sleeps", "video_id": "test_1"})
    span = {"query": "rain falls", "video_id": "test_0", "start_s": 4.0, "end_s": 60.0, "split": "test"}
    added = correct(asked, action="add", query_id="", changes=span)["query_id"]
    rejected = correct(asked, action="reject", query_id="910_fig")
    assert now(asked, added)["end_s"] == pytest.approx(5.0, abs=0.01), "a span ends with its video"
    assert now(asked, "910_fig") is None
    found = corrected_moments(view_of(corrected.world)).moments
    assert (found[QUERY].query, found[QUERY].video_id) == ("a cat sleeps", "test_1")  # type: ignore[union-attr]
    due = plans(view_of(corrected.world))
    assert due["moments"] is not None
    assert (due["moments"].new, due["moments"].stale) == ((added,), (QUERY,))
    assert due["moments"].orphaned == ("910_fig",)
    assert due["videos"].due() == [], "what is searched stays the same"  # type: ignore[union-attr]
    assert undo(asked, rejected["correction_id"]).status_code == 201
    assert now(asked, "910_fig") is not None


def test_what_changed_underneath_is_a_conflict_and_not_applied(asked: TestClient, corrected: CorrectedWorld) -> None:
    seen = now(asked)
    made = correct(asked, changes={"end_s": 2.0})
    assert correct(asked, 409, before=seen, changes={"end_s": 4.0})["detail"].startswith(f"the query '{QUERY}' was")
    row = corrected.world.find(900)[1]
    old = dict(row)
    try:
        row["time"] = [0.0, 5.0]
        corrected.world.write_annotations("test")
        (judged,) = asked.get(f"{OF}/corrections").json()["corrections"]
        assert judged["state"] == "conflict"
        assert "end_s was 3.0 and is 5.0" in judged["detail"]
        assert now(asked)["end_s"] == 5.0
        view = view_of(corrected.world)
        assert "1 corrections are not applied, e.g. that of 900_fig" in checks.open_conflicts(view, "moments")
        row["time"] = [0.0, 2.0]
        corrected.world.write_annotations("test")
        (judged,) = asked.get(f"{OF}/corrections").json()["corrections"]
        assert judged["state"] == "in the annotation"
        assert checks.open_conflicts(view, "moments") == ""
    finally:
        row.update(old)
        corrected.world.write_annotations("test")
    assert undo(asked, made["correction_id"]).status_code == 201


def test_the_later_correction_of_a_query_is_undone_first(asked: TestClient) -> None:
    first, second = correct(asked, changes={"end_s": 2.0}), correct(asked, changes={"end_s": 2.5})
    refused = undo(asked, first["correction_id"])
    assert (refused.status_code, second["correction_id"] in refused.json()["detail"]) == (400, True)
    for made in (second, first):
        assert undo(asked, made["correction_id"]).status_code == 201
    assert undo(asked, first["correction_id"]).json()["detail"].endswith("is undone already")
    assert undo(asked, "nope").status_code == 404
    assert now(asked)["end_s"] == 3.0


@pytest.mark.parametrize(
    ("values", "status", "says"),
    [
        ({"query_id": "nope_fig", "changes": {"end_s": 2.0}}, 404, "no usable query 'nope_fig'"),
        ({"changes": {"video_id": "../../etc"}}, 404, "has no video '../../etc'"),
        ({"changes": {"video_id": "train_0"}}, 404, "it is in: train"),
        ({"changes": {"split": "train"}}, 404, "it is in: test"),
        ({"changes": {"start_s": 5.0}}, 400, "negative, reversed or empty"),
        ({"changes": {"start_s": 50.0, "end_s": 60.0}}, 400, "begins after the video's end"),
        ({"changes": {"query": "  "}}, 400, "1 to 2,000 characters"),
        ({"changes": {}}, 400, "nothing would change"),
        ({"action": "add", "changes": {"query": "x"}}, 400, "a new query needs video_id, start_s, end_s"),
        ({"action": "undo"}, 422, "action"),
        ({"changes": {"end_s": "NaN"}}, 422, "end_s"),
        ({"who": "x" * 101, "changes": {"end_s": 2.0}}, 422, "who"),
    ],
)
def test_what_cannot_be_corrected_is_refused_and_nothing_is_written(
    asked: TestClient, corrected: CorrectedWorld, values: dict[str, Any], status: int, says: str
) -> None:
    refused = asked.post(
        f"{OF}/corrections",
        content=json.dumps({"action": "change", "query_id": QUERY, **values}),
        headers={"Content-Type": "application/json"},
    )
    assert refused.status_code == status, refused.text
    assert says in refused.text.replace("\\", "")
    assert read_corrections(corrections_path(corrected.world.home, "small")) == []


def test_a_torn_line_is_named_and_nothing_is_guessed(asked: TestClient, corrected: CorrectedWorld) -> None:
    correct(asked, changes={"end_s": 2.0})
    path = corrections_path(corrected.world.home, "small")
    path.write_bytes(path.read_bytes() + b'{"correction_id": "12\n')
    with pytest.raises(ValueError, match=r"corrections\.jsonl, line 2 is no correction"):
        read_corrections(path)
    assert asked.get(f"{OF}/corrections").status_code == 400
    assert str(corrected.world.home) not in asked.get(f"{OF}/corrections").text


def test_a_line_that_a_killed_process_left_without_its_end_is_none(
    asked: TestClient, corrected: CorrectedWorld
) -> None:
    correct(asked, changes={"end_s": 2.0})
    path = corrections_path(corrected.world.home, "small")
    path.write_bytes(path.read_bytes() + '{"correction_id": "12", "who": "é'.encode()[:-1])
    assert len(read_corrections(path)) == 1
    correct(asked, changes={"end_s": 1.5})
    assert len(read_corrections(path)) == 2
    path.write_bytes(path.read_bytes().rstrip(b"\n"))  # whole, but for the line break, as an editor may leave it
    assert len(read_corrections(path)) == 2
    path.write_bytes(path.read_bytes().replace(b'"action":', b'"action:'))  # with a mistake of whoever edited it
    with pytest.raises(ValueError, match="is no correction"):
        read_corrections(path)


def test_a_correction_that_cannot_be_written_says_so_and_is_not_half_there(
    asked: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    refused = correct(asked, 507, changes={"end_s": 2.0})["detail"]
    assert refused.startswith("corrections.jsonl cannot be written: its disk is full")
    assert asked.get(f"{OF}/corrections").json()["corrections"] == []


def test_a_folder_of_videos_that_is_not_there_is_named_and_no_row_is_blamed() -> None:
    said = answer_to(FileNotFoundError("the video folder /mnt/clips is not there: create it"))
    assert said == (404, "the video folder clips is not there: create it")
    assert answer_to(FileNotFoundError(errno.ENOENT, "No such file", "/a/b.npy"))[1].startswith("a file of this row")


def test_one_build_runs_at_a_time_and_a_failure_says_why(corrected: CorrectedWorld) -> None:
    second = threading.Event()

    def fail(dataset: str, told: Any) -> str:
        told(f"reads {corrected.world.home}/lake/x.parquet")
        assert second.wait(60)
        raise OSError("the disk is full")

    state = dataclasses.replace(corrected.state(), builds=Builds(fail))
    with client_of(state) as client:
        assert client.post(f"{OF}/build").json()["state"] == "running"
        assert client.post(f"{OF}/build").status_code == 409
        second.set()
        while (found := client.get(f"{OF}/build").json())["state"] == "running":
            time.sleep(0.02)
    assert (found["state"], found["problem"], found["lines"]) == ("failed", "the disk is full", ["reads x.parquet"])
    with client_of(dataclasses.replace(state, builds=Builds())) as client:
        assert client.get(f"{OF}/build").json()["can_build"] is False
        assert "vsr1 build --dataset small" in client.post(f"{OF}/build").json()["detail"]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("300/s in /a/b c/d.mp4", "300/s in d.mp4"),
        ("'/home/me/My Videos (2024)/it's/a b.mp4' is not there: see /b c/e.py", "'a b.mp4' is not there: see e.py"),
        ("/a/b.mp4 cannot be moved to /c d/e/b.mp4", "b.mp4 cannot be moved to b.mp4"),
        ("reads (/a/b c/d.mp4), 5 / 10 rows/s", "reads (d.mp4), 5 / 10 rows/s"),
        ("http://host/a/b, and/or a/b c/d", "http://host/a/b, and/or a/b c/d"),
        ("/größe/x y/z", "z"),
    ],
)
def test_no_message_has_a_folder_also_where_its_name_has_spaces(said: str, shown: str) -> None:
    assert without_folders(said) == shown


def test_a_home_without_corrections_is_as_before(corrected: CorrectedWorld) -> None:
    view = view_of(corrected.world)
    stage = view.stages["moments"]
    assert stage.observe(view) == ""
    assert all(set(row.inputs) == {"annotation"} for row in stage.plan(view).values())
