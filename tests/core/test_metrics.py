"""Metrics against public numbers, hand-computed cases and properties."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from fake_results import moments_frame, predictions_frame
from golden_episodes import (
    GOLDEN,
    GOLDEN_MOMENTS,
    GOLDEN_PREDICTIONS,
    episodes_of,
    moment,
    prediction,
    ranked,
    turn,
    values_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from vsr1_core.evaluation.bootstrap import summarise
from vsr1_core.evaluation.episodes import OUTCOMES, load_episodes, outcomes
from vsr1_core.evaluation.metrics import all_metrics, metrics_of, score
from vsr1_core.evaluation.probes import load_probes
from vsr1_core.evaluation.scores import values

SHARED_DATA = Path(__file__).parents[2] / "../shared/data"


def test_six_queries_score_as_worked_out_by_hand() -> None:
    found = values_of(GOLDEN_MOMENTS, GOLDEN_PREDICTIONS)
    assert found == pytest.approx(GOLDEN, nan_ok=True)


def test_every_metric_is_reported_once_and_in_order() -> None:
    table = summarise(score(episodes_of(GOLDEN_MOMENTS, GOLDEN_PREDICTIONS)), num_resamples=20)
    assert table["metric"].to_list() == list(all_metrics())
    assert dict(table.select("metric", "num_queries").iter_rows())["grounding_0.5"] == 2
    assert dict(table.select("metric", "num_queries").iter_rows())["num_text_tokens"] == 4


def test_each_query_ends_in_one_outcome() -> None:
    found = dict(outcomes(episodes_of(GOLDEN_MOMENTS, GOLDEN_PREDICTIONS)).iter_rows())
    assert found == {
        "a": "found",
        "b": "wrong_span",
        "c": "wrong_video_accepted",
        "d": "right_video_rejected",
        "e": "no_prediction",
        "f": "no_prediction",
    }
    assert set(found.values()) <= set(OUTCOMES)


def test_the_public_oracle_is_reproduced() -> None:
    folder = SHARED_DATA / "metric_oracle"
    if not folder.exists():
        pytest.skip(f"no public predictions at {folder}")
    annotations = {str(r["id"]): r for r in json.loads((folder / "ground_truth.json").read_text())["annotations"]}
    moments, predictions = [], []
    for query_id, row in json.loads((folder / "predictions.json").read_text()).items():
        start, end = annotations[query_id]["timestamp"]
        video = annotations[query_id]["image_id"]
        moments.append({"query_id": query_id, "video_id": video, "start_s": start, "end_s": end})
        span = row["timestamp"][0] if row["timestamp"] else None
        predictions.append(prediction(query_id, [turn(1, video, "matched", span=span)]))
    found = values_of(moments, predictions)
    assert len(predictions) == 500
    assert [round(100 * found[f"vcmr_{t}"], 1) for t in (0.3, 0.5, 0.7)] == [9.0, 3.4, 1.4]
    assert round(100 * found["miou"], 1) == 6.3


ranks_or_missing = st.lists(st.one_of(st.none(), st.integers(1, 100)), min_size=1, max_size=40)


@pytest.mark.slow
@settings(deadline=None)
@given(ranks_or_missing)
def test_recall_grows_with_k_and_bounds_mrr(ranks: list[int | None]) -> None:
    found = values(score(ranked(ranks)))
    recalls = [found[f"recall_at_{k}"] for k in (1, 5, 10, 100)]
    assert recalls == sorted(recalls)
    assert recalls[-1] == pytest.approx(sum(rank is not None for rank in ranks) / len(ranks))
    assert recalls[0] <= found["mrr"] + 1e-12 <= recalls[-1] + 1e-9
    assert recalls == [found[f"first_recall_at_{k}"] for k in (1, 5, 10, 100)]


@pytest.mark.slow
@settings(deadline=None)
@given(ranks_or_missing)
def test_a_missing_rank_is_the_worst_rank(ranks: list[int | None]) -> None:
    known = [rank for rank in ranks if rank is not None]
    median = values(score(ranked(ranks)))["median_rank"]
    assert math.isinf(median) == (2 * len(known) < len(ranks) + 1 + (len(ranks) % 2 == 0))
    if len(known) == len(ranks):
        assert median == pytest.approx(float(np.median(known)))


def test_no_queries_give_no_numbers() -> None:
    scores = score(episodes_of([], []))
    assert all(math.isnan(value) for value in values(scores).values())
    assert summarise(scores).is_empty()


def test_a_query_without_prediction_lowers_every_share() -> None:
    complete, missing = GOLDEN_MOMENTS[:1], [GOLDEN_MOMENTS[0], moment("z")]
    before, after = values_of(complete, GOLDEN_PREDICTIONS[:1]), values_of(missing, GOLDEN_PREDICTIONS[:1])
    for name in (
        "recall_at_1",
        "first_recall_at_100",
        "mrr",
        "vcmr_0.7",
        "miou",
        "verification_accuracy",
        "verification_accuracy_turn_1",
        "vcmr_best_0.3",
    ):
        assert after[name] == pytest.approx(before[name] / 2), name
    assert after["grounding_0.7"] == before["grounding_0.7"]
    assert after["num_text_tokens"] == before["num_text_tokens"]


def test_unknown_is_wrong_even_when_a_wrong_video_was_shown() -> None:
    rows = [prediction("a", [turn(1, "other", "unknown", rank=2)])]
    assert values_of([moment("a")], rows)["verification_accuracy"] == 0.0


def test_an_accepted_wrong_video_with_the_right_span_finds_nothing() -> None:
    found = values_of([moment("a")], [prediction("a", [turn(1, "other", "matched", span=(0, 10))])])
    assert found["miou"] == 0.0
    assert found["vcmr_best_0.3"] == 0.0


def test_the_best_answer_needs_the_right_video() -> None:
    rows = [prediction("a", [turn(1, "other", "unknown")], best_video_id="other", best_start_s=0, best_end_s=10)]
    assert values_of([moment("a")], rows)["vcmr_best_0.3"] == 0.0


def test_predictions_of_other_queries_do_not_count() -> None:
    extra = [*GOLDEN_PREDICTIONS, prediction("not_annotated", [turn(1, "x", "matched")])]
    assert values_of(GOLDEN_MOMENTS, extra) == pytest.approx(GOLDEN, nan_ok=True)


def test_two_rows_for_one_query_are_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        episodes_of(GOLDEN_MOMENTS, [GOLDEN_PREDICTIONS[0], GOLDEN_PREDICTIONS[0]])


# ---- probes: one right and one wrong video per query ---------------------------------------------------------------


def probe(query_id: str, label: str, decision: str, span: Any = (None, None), **changes: Any) -> dict:
    row = {"query_id": query_id, "label": label, "decision": decision, "start_s": span[0], "end_s": span[1]}
    return {**row, "shown_video_id": "v", "status": "ok", **changes}


PROBES = [
    probe("a", "matched", "matched", (0.0, 8.0)),  # IoU 0.8
    probe("a", "not_matched", "not_matched"),
    probe("b", "matched", "matched", (6.0, 10.0)),  # IoU 0.4
    probe("b", "not_matched", "matched", (0.0, 10.0)),
    probe("c", "matched", "not_matched"),
    probe("c", "not_matched", "unknown"),  # neither answer: wrong
    probe("d", "matched", "matched", (0.0, 10.0)),  # no wrong video to show: grounding only
    probe("e", "matched", "matched", (0.0, 10.0), status="failed"),
]


PROBE_SCHEMA = {"query_id": pl.String, "label": pl.String, "decision": pl.String, "start_s": pl.Float64,
                "end_s": pl.Float64, "shown_video_id": pl.String, "status": pl.String}  # fmt: skip


def probe_values(train: list[dict]) -> dict[str, float]:
    moments = moments_frame([{**m, "duration_s": 20.0} for m in GOLDEN_MOMENTS[:-1]] + [moment("f", 10.0, 20.0)])
    moments = moments.with_columns(duration_s=pl.lit(20.0))
    found = load_probes(moments, pl.DataFrame(PROBES, schema=PROBE_SCHEMA), moments_frame(train))
    scored = values(score(load_episodes(moments, predictions_frame(GOLDEN_PREDICTIONS)), found))
    return {metric.name: scored[metric.name] for metric in metrics_of("probes")}


def test_probes_score_as_worked_out_by_hand() -> None:
    train = [{**moment("t", 0.0, 4.0), "duration_s": 8.0}]  # the first half of a video
    assert probe_values(train) == {
        "balanced_verification_accuracy": 3 / 6,  # a twice, b's right one; d lacks its wrong one, e failed
        "balanced_grounding_0.5": 2 / 4,
        "grounding_given_matched_0.5": 2 / 3,
        "constant_span_grounding_0.5": 1.0,  # a to d lie in the first half of 20 seconds
    }


def test_the_span_in_a_window_is_compared_with_the_part_of_the_moment_that_it_shows() -> None:
    moments = moments_frame([moment("a", 4.0, 34.0), moment("b", 4.0, 34.0), moment("c", 4.0, 34.0)])
    found = [
        probe("a", "matched", "matched", (10.0, 20.0), shown_video_id="v//10-20"),
        probe("b", "matched", "matched", (10.0, 20.0)),
    ]
    iou = load_probes(moments, pl.DataFrame(found, schema=PROBE_SCHEMA), moments_frame([])).iou
    assert iou.tolist() == pytest.approx([1.0, 1 / 3, 0.0])


def test_the_constant_span_never_sees_the_moments_it_is_judged_on() -> None:
    last_quarter = [{**moment("t", 6.0, 8.0), "duration_s": 8.0}]
    assert probe_values(last_quarter)["constant_span_grounding_0.5"] == 0.0
    assert math.isnan(probe_values([])["constant_span_grounding_0.5"])
