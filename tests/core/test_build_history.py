"""What builds leave behind for comparisons: builds, their settings, and predictions as each build left them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.corrected_world import CheapLibrary, CorrectedWorld, view_of
from vsr1_core.home import warehouse
from vsr1_core.home.correcting import WantedCorrection, correct, undo
from vsr1_core.home.hub.fiftyone import export_fiftyone
from vsr1_core.rows.build_history import BUILDS, folder_of
from vsr1_core.stages.turns import KEPT_OF_TURNS

QUERY = "900_fig"


@pytest.fixture(scope="module")
def corrected(tmp_path_factory: pytest.TempPathFactory) -> CorrectedWorld:
    return CorrectedWorld.built(tmp_path_factory.mktemp("history"))


def rows(corrected: CorrectedWorld, sql: str) -> list[dict[str, Any]]:
    return warehouse.query(corrected.world.home, sql).to_dicts()


@pytest.mark.slow
def test_what_each_build_did_and_left_can_be_compared(corrected: CorrectedWorld) -> None:
    view = view_of(corrected.world)
    (first,) = rows(corrected, "from builds where dataset = 'small'")
    assert first["run_id"] == "run-0"
    assert first["assets"][0] == "annotation_files"
    assert first["num_processed"] == sum(
        json.loads(view.table(name).manifest_path.read_text())["num_processed"] for name in view.stages
    )
    assert {first["config"], len(first["commit"]) in (0, 40), bool(first["host"])} == {"nano", True}
    settings = rows(corrected, f"from recipes where dataset = 'small' and recipe = '{first['recipe']}'")
    assert {row["key"]: json.loads(row["value"]) for row in settings}["evaluation.num_turns"] == 1

    made = correct(view, WantedCorrection("change", QUERY, {"query": "another text", "end_s": 2.0}))
    corrected.build("small", lambda line: None)
    corrected.build("small", lambda line: None)  # nothing to do, which is no build to be compared with
    last, before = rows(corrected, "from builds where dataset = 'small' order by builds_ago")
    assert (last["run_id"], last["num_processed"]) == ("run-1", sum(corrected.made["run-1"].values()))
    assert (before["run_id"], last["recipe"]) == ("run-0", before["recipe"])

    asked = f"from prediction_history where dataset = 'small' and query_id = '{QUERY}' and method = 'sqr_sft'"
    now, old = rows(corrected, f"{asked} order by states_ago")
    assert (now["query"], now["gt_end_s"], now["run_id"]) == ("another text", 2.0, "run-1")
    assert (old["query"], old["gt_end_s"], old["run_id"]) == ("the thing called 900 moves along", 3.0, "run-0")
    outcomes = rows(corrected, "select query_id, outcome from outcomes where dataset = 'small' and method = 'sqr_sft'")
    kept = rows(
        corrected,
        "select query_id, outcome from prediction_history where dataset = 'small' and method = 'sqr_sft' "
        "and states_ago = 0",
    )
    assert sorted(map(str, kept)) == sorted(map(str, outcomes)), "the two views say the same of the present"
    asked = f"from turn_history where dataset = 'small' and query_id = '{QUERY}' and method = 'sqr_sft'"
    said = rows(corrected, f"{asked} order by states_ago")
    assert [(turn["states_ago"], turn["run_id"], turn["turn"]) for turn in said] == [(0, "run-1", 1), (1, "run-0", 1)]
    (shown,) = rows(corrected, f"from turns where query_id = '{QUERY}' and method = 'sqr_sft'")
    assert {name: shown[name] for name in (*KEPT_OF_TURNS, "is_right_video")}.items() <= said[0].items()
    assert said[1]["reasoning"] != said[0]["reasoning"]
    earlier = CheapLibrary(corrected.world.home).query("small", QUERY)["earlier"]
    old_turns = next(one["turns"] for one in earlier if one["method"] == "sqr_sft")
    assert [turn["reasoning"] for turn in old_turns] == [said[1]["reasoning"]]
    assert [(one["method"], one["query"]) for one in earlier if one["method"] == "sqr_sft"] == [
        ("sqr_sft", "the thing called 900 moves along")
    ]
    undo(view, made.correction_id)


@pytest.mark.slow
def test_states_that_an_earlier_version_kept_have_no_turns_and_stay(corrected: CorrectedWorld) -> None:
    view = view_of(corrected.world)
    folder = folder_of(view.lake, "predictions.sqr_sft", "small")
    kept = {path: path.read_bytes() for path in folder.glob("*.parquet")}
    for path in kept:
        pl.read_parquet(path, hive_partitioning=False).drop("turns", "prefix_ranks", "top_video_ids").write_parquet(
            path
        )
    earlier = CheapLibrary(corrected.world.home).query("small", QUERY)["earlier"]
    assert earlier
    assert {len(one["turns"]) for one in earlier if one["method"] == "sqr_sft"} == {0}
    made = correct(view, WantedCorrection("change", QUERY, {"query": "words of a later version"}))
    corrected.build("small", lambda line: None)
    undo(view, made.correction_id)
    corrected.build("small", lambda line: None)
    earlier = CheapLibrary(corrected.world.home).query("small", QUERY)["earlier"]
    newest, *_, oldest = (one for one in earlier if one["method"] == "sqr_sft")
    assert (newest["query"], len(newest["turns"]), len(oldest["turns"])) == ("words of a later version", 1, 0)
    for path, content in kept.items():
        path.write_bytes(content)


@pytest.mark.slow
def test_a_dropped_prediction_is_kept_as_gone_and_a_torn_line_is_left_out(corrected: CorrectedWorld) -> None:
    view = view_of(corrected.world)
    made = correct(view, WantedCorrection("reject", "911_fig"))
    steps = folder_of(view.lake, BUILDS, "small") / "steps.jsonl"
    num_builds = len(rows(corrected, "from builds"))
    with steps.open("a") as file:
        file.write('{"run_id": "torn\n')
    corrected.build("small", lambda line: None)
    (gone,) = rows(corrected, "from prediction_history where query_id = '911_fig' and is_gone and method = 'sqr_sft'")
    assert (gone["states_ago"], gone["outcome"], gone["query"]) == (0, None, None)
    assert len(rows(corrected, "from builds")) == num_builds + 1
    undo(view, made.correction_id)
    corrected.build("small", lambda line: None)
    states = rows(corrected, "from prediction_history where query_id = '911_fig' and method = 'sqr_sft'")
    assert sorted(state["states_ago"] for state in states) == [0, 1, 2]


@pytest.mark.slow
def test_spans_are_exported_as_temporal_detections(corrected: CorrectedWorld, tmp_path: Path) -> None:
    view = view_of(corrected.world)
    written = export_fiftyone(view, tmp_path / "out")
    assert written["annotated"] == 8
    assert set(written) == {"annotated", "sqr_sft", "videosearch_r1"}
    videos = json.loads((tmp_path / "out/data.json").read_text())
    assert videos["test_0.mp4"] == str(corrected.world.video_path("test_0"))
    labels = json.loads((tmp_path / "out/annotated.json").read_text())["labels"]
    assert [(one["timestamps"], one["attributes"]["split"]) for one in labels["test_0"]] == [
        ([0.0, 3.0], "test"),
        ([3.0, 6.0], "test"),
    ]
    assert "merge_dir" in (tmp_path / "out/README.md").read_text()
    with pytest.raises(FileExistsError, match="exists already"):
        export_fiftyone(view, tmp_path / "out")
    nothing = dataclasses.replace(view, entry=dataclasses.replace(view.entry, name="empty"))
    with pytest.raises(FileNotFoundError, match="vsr1 build --dataset empty --assets videos"):
        export_fiftyone(nothing, tmp_path / "none")
