"""A query without an id keeps its row when its text changes, and when its span does; not when both do at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.small_world import clip
from vsr1_core.configurations import NANO
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.home.correcting import WantedCorrection, correct, listed_corrections
from vsr1_core.home.explain import explain
from vsr1_core.rows.lake import Lake
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import all_stages

BUILT = ("annotation_files", "raw_videos", "videos", "moments")
LINES = {"one": "a,0,2,a dog runs", "two": "a,2,4,a cat sits", "three": "b,0,99,a bird sings"}
"""The last one goes beyond the end of its video, and is cut there."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "clips").mkdir()
    for number, name in enumerate("ab"):
        (tmp_path / f"clips/{name}.mp4").write_bytes(clip(number))
    return tmp_path


def built(place: Path, lines: dict[str, str], columns: str = "") -> tuple[View, dict[str, str]]:
    """The tables after a build of these lines, and query -> id."""
    head = f"video,start,end,query{columns}\n"
    (place / "a.csv").write_text(head + "".join(f"{line}\n" for line in lines.values()))
    entry = DatasetEntry("mine", "folder", str(place / "clips"), str(place / "a.csv"), "nano")
    stages = {name: stage for name, stage in all_stages().items() if name in BUILT}
    view = View(Lake(place / "lake"), entry, NANO, stages, home=place)
    for stage in stages.values():
        stage.build(view, Execution(workers=1))
    return view, dict(view.rows("moments", ["query", "query_id"]).iter_rows())


def test_a_changed_text_keeps_its_row_where_video_and_span_stay(place: Path) -> None:
    _, before = built(place, LINES)
    view, after = built(place, {**LINES, "one": "a,0,2,a big dog runs", "three": "b,0,99,a bird sings loudly"})
    assert after["a big dog runs"] == before["a dog runs"]
    assert after["a bird sings loudly"] == before["a bird sings"], "its end was cut to that of the video"
    assert after["a cat sits"] == before["a cat sits"]
    plan = view.stages["moments"].due(view)
    assert (plan.due(), plan.orphaned) == ([], ()), "the second plan finds the same rows"
    explained = explain(view, "moments", after["a big dog runs"])
    assert "annotation_files" in explained.to_json(), "the row is still followed back to its file"
    assert explained.source == "a.csv:2"


def test_a_corrected_span_keeps_its_row_as_before(place: Path) -> None:
    _, before = built(place, LINES)
    _, after = built(place, {**LINES, "one": "a,0.5,2,a dog runs"})
    assert after == before


def test_texts_that_changed_places_keep_the_row_of_their_text(place: Path) -> None:
    _, before = built(place, LINES)
    _, after = built(place, {**LINES, "one": "a,0,2,a cat sits", "two": "a,2,4,a dog runs"})
    assert after == before


def test_text_and_span_changed_at_once_are_a_new_row(place: Path) -> None:
    _, before = built(place, LINES)
    _, after = built(place, {**LINES, "one": "a,1,3,a big dog runs"})
    assert after["a big dog runs"] not in before.values()


def test_two_texts_at_one_place_take_one_row_each(place: Path) -> None:
    lines = {"one": "a,0,2,a dog runs", "two": "a,0,2,a cat sits"}
    _, before = built(place, lines)
    _, after = built(place, {"one": "a,0,2,a big dog runs", "two": "a,0,2,a black cat sits"})
    assert set(after.values()) == set(before.values())


CHANGED = {**LINES, "one": "a,0,2,a big dog runs"}


@pytest.mark.parametrize(
    ("action", "changes"), [("change", {"start_s": 0.5}), ("change", {"split": "test", "end_s": 1.5}), ("reject", {})]
)
def test_what_was_corrected_stays_corrected_when_the_text_had_changed_before(
    place: Path, action: Any, changes: dict[str, Any]
) -> None:
    """The row is found by its annotated span, which the table does not have any more."""
    built(place, LINES)
    view, ids = built(place, CHANGED)
    correct(view, WantedCorrection(action, ids["a big dog runs"], changes))
    for _ in range(2):
        view, after = built(place, CHANGED)
        assert [one.state for one in listed_corrections(view)] == ["applied"]
        assert after.get("a big dog runs") == (None if action == "reject" else ids["a big dog runs"])
    assert action == "reject" or explain(view, "moments", after["a big dog runs"]).source == "a.csv:2"


def test_a_rejected_query_does_not_come_back_under_the_id_of_another_one(place: Path) -> None:
    lines = {"one": "a,0,2,a dog runs", "two": "a,0,2,a cat sits", "three": "b,0,2,a bird sings"}
    view, ids = built(place, lines)
    correct(view, WantedCorrection("reject", ids["a dog runs"]))
    built(place, lines)
    view, after = built(place, {**lines, "two": "a,0,2,a black cat sits"})
    assert after == {"a black cat sits": ids["a cat sits"], "a bird sings": ids["a bird sings"]}
    assert [one.state for one in listed_corrections(view)] == ["applied"]


def test_an_id_of_ones_own_is_never_replaced(place: Path) -> None:
    built(place, {"one": "a,0,2,a dog runs,first"}, ",id")
    _, after = built(place, {"one": "a,0,2,a big dog runs,second"}, ",id")
    assert after == {"a big dog runs": "second_fig"}
