"""The stages that score and report: which rows they want, when these are out of date, and what they hold."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from fake_results import (
    CHECKPOINT_COLUMNS,
    MOMENT_COLUMNS,
    OPTIONS_OF_ALL,
    PREDICTION_COLUMNS,
    PROBE_COLUMNS,
    STRENGTHS,
    commit_results,
    commit_rows,
    fake_stages,
)

from vsr1_core.configurations import NANO
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.evaluation import report
from vsr1_core.evaluation.metrics import all_metrics, metrics_in, metrics_of
from vsr1_core.rows.lake import Lake
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.readings import NotYetKnown

NUM_METRICS, NUM_OF_PROBES = len(all_metrics()) - len(metrics_in("windows")), len(metrics_of("probes"))
SCORING = ("metrics", "refinement_curves", "report")
NUM_OF_EPISODES = NUM_METRICS - NUM_OF_PROBES


def view_of(root: Path, kind: str = "toy") -> View:
    return View(Lake(root), DatasetEntry("toy", kind), NANO, fake_stages())


def build(view: View) -> dict[str, int]:
    """How many rows the stages of scores and text processed."""
    found = {
        name: stage.build(view, Execution()).num_processed for name, stage in view.stages.items() if name in SCORING
    }
    return {name: found[name] for name in ("metrics", "report")}


def change(view: View, asset: str, row_id: str, **columns: object) -> None:
    """Change one committed row; its version changes with it."""
    table = view.table(asset)
    rows = table.rows().to_dicts()
    for row in rows:
        if row[table.key] == row_id:
            row.update(columns, row_version="changed")
    table.commit(table.frame(rows), {})


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes seconds and is tested with the report itself."""
    monkeypatch.setattr(report, "_figures", lambda inputs, analysis: iter(()))


@pytest.fixture
def view(tmp_path: Path) -> View:
    commit_results(tmp_path, "toy", num_queries=40)
    return view_of(tmp_path)


def metric(view: View, metric_id: str) -> float:
    return float(view.rows("metrics").row(by_predicate=pl.col("metric_id") == metric_id, named=True)["value"])


def test_every_method_gets_every_metric(view: View) -> None:
    assert build(view) == {"metrics": 4 * NUM_METRICS, "report": 1}
    rows = view.rows("metrics")
    assert set(rows["method"]) == set(STRENGTHS)
    assert metric(view, "videosearch_r1/vcmr_0.5") > metric(view, "zero_shot/vcmr_0.5")
    assert rows.filter(pl.col("metric") == "recall_at_1")["num_queries"].to_list() == [40] * 4
    assert rows["seed"].unique().to_list() == [NANO.evaluation.seed]
    assert Path(view.rows("report")["path"][0]).exists()


def test_every_method_has_its_curves_and_a_changed_answer_redoes_only_those_of_its_method(view: View) -> None:
    build(view)
    rows = view.rows("refinement_curves")
    points = rows.filter(pl.col("metric") == "recall_at_1").group_by("method", "curve").agg(pl.col("x").sort())
    expected = {(method, "turns"): [1, 2] for method in STRENGTHS}
    expected |= {(method, "soft_tokens"): list(range(9)) for method in ("sqr_sft", "videosearch_r1")}
    assert {(method, curve): x for method, curve, x in points.iter_rows()} == expected
    change(view, "predictions.sqr_sft", "00010_fig", rank=77)
    stale = view.stages["refinement_curves"].due(view).stale
    assert {row_id.split("/")[0] for row_id in stale} == {"sqr_sft"}
    assert len(stale) == view.rows("refinement_curves").filter(pl.col("method") == "sqr_sft").height
    view.stages["refinement_curves"].build(view, Execution())
    assert view.stages["refinement_curves"].due(view).due() == []


def test_a_second_build_does_nothing(view: View) -> None:
    build(view)
    assert build(view) == {"metrics": 0, "report": 0}


def test_a_changed_answer_rescores_its_method_alone(view: View) -> None:
    build(view)
    change(view, "predictions.sqr_sft", "00010_fig", rank=77)
    plan = view.stages["metrics"].due(view)
    assert {row_id.split("/")[0] for row_id in plan.stale} == {"sqr_sft"}
    assert build(view) == {"metrics": NUM_OF_EPISODES, "report": 1}


def test_a_changed_query_text_rewrites_the_report_and_rescores_nothing(view: View) -> None:
    build(view)
    change(view, "moments", "00010_fig", query="other words")
    assert build(view) == {"metrics": 0, "report": 1}


def test_a_changed_span_rescores_every_method(view: View) -> None:
    build(view)
    change(view, "moments", "00010_fig", start_s=0.0, end_s=0.5)
    of_probes = 3 * NUM_OF_PROBES  # zero_shot is not probed
    assert build(view) == {"metrics": 4 * NUM_OF_EPISODES + of_probes, "report": 1}


def test_a_query_of_another_split_changes_nothing(view: View) -> None:
    build(view)
    table = view.table("moments")
    other = {**table.rows().to_dicts()[0], "query_id": "val_fig", "split": "val"}
    table.commit(table.frame([*table.rows().to_dicts(), other]), {})
    assert build(view) == {"metrics": 0, "report": 0}


def test_a_method_without_rows_is_left_out_and_one_that_failed_everywhere_scores_zero(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    moments = commit_results(tmp_path, "toy", num_queries=10)
    commit_rows(lake, "predictions.fine_tuned", "toy", "query_id", PREDICTION_COLUMNS, [])
    failed = [{"query_id": m["query_id"], "split": "test", "error": "out of memory"} for m in moments]
    commit_rows(lake, "predictions.sqr_sft", "toy", "query_id", PREDICTION_COLUMNS, failed)
    view = view_of(tmp_path)
    build(view)
    assert set(view.rows("metrics")["method"]) == {"zero_shot", "sqr_sft", "videosearch_r1"}
    assert metric(view, "sqr_sft/recall_at_100") == 0.0
    assert metric(view, "sqr_sft/verification_accuracy") == 0.0


def test_without_annotations_there_are_no_metrics_and_the_report_says_so(tmp_path: Path) -> None:
    view = view_of(tmp_path, "folder")
    assert build(view) == {"metrics": 0, "report": 1}
    assert view.table("metrics").rows().is_empty()
    assert "nothing to score" in Path(view.rows("report")["path"][0]).read_text()


def test_failures_of_any_asset_appear_in_the_report_and_make_it_stale(view: View, tmp_path: Path) -> None:
    build(view)
    rows = [{"video_id": "v", "error": "v.mp4 is cut off"}]
    commit_rows(Lake(tmp_path), "videos", "toy", "video_id", {"path": pl.String}, rows)
    assert build(view) == {"metrics": 0, "report": 1}
    assert "v.mp4 is cut off" in Path(view.rows("report")["path"][0]).read_text()


def test_training_curves_come_from_the_checkpoints(view: View, tmp_path: Path) -> None:
    points = [{"step": s, "name": "loss", "value": 1.0 / (s + 1)} for s in range(30)]
    row = {"checkpoint": "sft_checkpoint", "path": "x", "options": OPTIONS_OF_ALL, "curve": points}
    commit_rows(Lake(tmp_path), "sft_checkpoint", "toy", "checkpoint", CHECKPOINT_COLUMNS, [row])
    build(view)
    assert "| sft_checkpoint | loss | 29 | 1 |" in Path(view.rows("report")["path"][0]).read_text()


def test_scores_wait_for_predictions_that_cannot_be_planned(view: View) -> None:
    view.unsettled.add("predictions.sqr_sft")
    with pytest.raises(NotYetKnown, match="sqr_sft"):
        view.stages["metrics"].plan(view)


def test_the_plan_of_a_changed_answer_names_what_will_run(view: View, tmp_path: Path) -> None:
    build(view)
    change(view, "predictions.sqr_sft", "00010_fig", rank=77)
    fresh = view_of(tmp_path)
    for name in ("moments", "predictions.sqr_sft"):  # committed tables stand for themselves here
        fresh.planned[name] = fresh.table(name)
    assert len(fresh.stages["metrics"].due(fresh).stale) == NUM_OF_EPISODES


def test_moment_columns_are_those_of_the_real_stage() -> None:
    from vsr1_core.stages import corpus

    assert corpus.Moments().dtypes == MOMENT_COLUMNS


def probes(num_queries: int = 40, decision: str = "matched") -> list[dict[str, object]]:
    """Both probes of every query, all answered `decision` with the span of 0 to 7 seconds."""
    shared = {"split": "test", "decision": decision, "start_s": 0.0, "end_s": 7.0}
    return [
        {"probe_id": f"{i:05d}_fig/{side}", "query_id": f"{i:05d}_fig", "label": label, **shared}
        for i in range(num_queries)
        for side, label in (("right", "matched"), ("wrong", "not_matched"))
    ]


def test_probes_are_scored_for_their_method_and_rescore_nothing_of_its_episodes(view: View, tmp_path: Path) -> None:
    build(view)
    assert "balanced set" not in Path(view.rows("report")["path"][0]).read_text()
    commit_rows(Lake(tmp_path), "verification_probe.sqr_sft", "toy", "probe_id", PROBE_COLUMNS, probes())
    assert build(view) == {"metrics": NUM_OF_PROBES, "report": 1}
    assert metric(view, "sqr_sft/balanced_verification_accuracy") == 0.5
    row = view.rows("metrics").row(by_predicate=pl.col("metric_id") == "fine_tuned/balanced_grounding_0.5", named=True)
    assert (row["value"], row["num_queries"]) == (None, 0)
    text = Path(view.rows("report")["path"][0]).read_text()
    assert "## Verification on a balanced set" in text
    assert "| sqr_sft | 50.0 [50.0, 50.0] |" in text


def test_the_constant_span_is_fitted_on_train_moments_and_changes_with_these_alone(view: View, tmp_path: Path) -> None:
    commit_rows(Lake(tmp_path), "verification_probe.sqr_sft", "toy", "probe_id", PROBE_COLUMNS, probes())
    build(view)
    constant = pl.col("metric_id") == "sqr_sft/constant_span_grounding_0.5"
    assert view.rows("metrics").filter(constant)["value"].to_list() == [None]
    table = view.table("moments")
    rows = table.rows().to_dicts()
    train = [{**r, "query_id": f"train_{r['query_id']}", "split": "train"} for r in rows]
    table.commit(table.frame([*rows, *train]), {})
    assert build(view) == {"metrics": 3 * NUM_OF_PROBES, "report": 1}
    assert 0.2 < view.rows("metrics").filter(constant)["value"][0] < 1.0
