"""Metrics against public numbers, hand-computed cases and properties."""

from __future__ import annotations

import json
import math
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from fake_results import STRENGTHS, fake_moments, fake_predictions, moments_frame, predictions_frame
from hypothesis import given, settings
from hypothesis import strategies as st

from vsr1_core.evaluation import metrics
from vsr1_core.evaluation.metrics import Episodes, Scores, load_episodes, score, summarise, temporal_iou

SHARED_DATA = Path(__file__).parents[2] / "../shared/data"


def turn(number: int, video: str, decision: str, *, rank: int = 1, span: Any = None, probability: Any = None) -> dict:
    start, end = span if span else (None, None)
    return {
        "turn": number,
        "video_id": video,
        "decision": decision,
        "rank": rank,
        "start_s": start,
        "end_s": end,
        "matched_probability": probability,
        "num_text_tokens": 10,
        "num_latent_tokens": 8,
    }


def prediction(query_id: str, turns: list[dict], first_rank: int | None = 1, **changes: Any) -> dict:
    last = turns[-1]
    row = {name: last[name] for name in ("video_id", "decision", "rank", "start_s", "end_s")}
    tokens = {name: sum(t[name] for t in turns) for name in ("num_text_tokens", "num_latent_tokens")}
    best = {f"best_{name}": last[name] for name in ("video_id", "start_s", "end_s") if last["decision"] == "matched"}
    return {"query_id": query_id, "first_rank": first_rank, "turns": turns, **row, **tokens, **best, **changes}


def moment(query_id: str, start: float = 0.0, end: float = 10.0) -> dict:
    return {"query_id": query_id, "video_id": f"video_of_{query_id}", "start_s": start, "end_s": end}


def episodes_of(moments: list[dict], predictions: list[dict]) -> Episodes:
    return load_episodes(moments_frame(moments), predictions_frame(predictions))


def values_of(moments: list[dict], predictions: list[dict]) -> dict[str, float]:
    return metrics.values(score(episodes_of(moments, predictions)))


# Six queries whose metrics are worked out by hand below.
GOLDEN_MOMENTS = [moment(q) for q in "abcdef"]
GOLDEN_PREDICTIONS = [
    # a: right at once, IoU 0.8
    prediction("a", [turn(1, "video_of_a", "matched", span=(0, 8), probability=0.9)]),
    # b: a wrong video rejected, then right, IoU 0.4
    prediction(
        "b",
        [
            turn(1, "other", "not_matched", rank=4, probability=0.1),
            turn(2, "video_of_b", "matched", span=(6, 10), probability=0.8),
        ],
        first_rank=4,
        num_query_tokens=6,
    ),
    # c: a wrong video accepted
    prediction("c", [turn(1, "other", "matched", rank=7, span=(0, 10), probability=0.7)], first_rank=7),
    # d: right video rejected twice; third turn unknown; the best answer is the right video with a span of IoU 0.6
    prediction(
        "d",
        [
            turn(1, "video_of_d", "not_matched", probability=0.2),
            turn(2, "video_of_d", "not_matched", probability=0.45),
            turn(3, "other", "unknown", rank=12),
        ],
        best_video_id="video_of_d",
        best_start_s=0,
        best_end_s=6,
    ),
    # e: failed
    {"query_id": "e", "status": "failed", "error": "cannot decode", "rank": 1, "first_rank": 1},
    # f has no row at all
]
GOLDEN = {
    "first_recall_at_1": 2 / 6,
    "first_recall_at_5": 3 / 6,
    "first_recall_at_10": 4 / 6,
    "first_recall_at_100": 4 / 6,
    "recall_at_1": 2 / 6,
    "recall_at_5": 2 / 6,
    "recall_at_10": 3 / 6,
    "recall_at_100": 4 / 6,
    "mrr": (1 + 1 + 1 / 7 + 1 / 12) / 6,
    "median_rank": (7 + 12) / 2,
    "vcmr_0.3": 2 / 6,
    "vcmr_0.5": 1 / 6,
    "vcmr_0.7": 1 / 6,
    "miou": (0.8 + 0.4) / 6,
    "vcmr_best_0.3": 3 / 6,
    "vcmr_best_0.5": 2 / 6,
    "vcmr_best_0.7": 1 / 6,
    "verification_accuracy": 3 / 9,  # a, b twice; c and d wrong; e and f count as one wrong verification each
    "verification_accuracy_turn_1": 2 / 6,
    "matched_precision": 2 / 3,
    "matched_recall": 2 / 4,
    "grounding_0.5": 1 / 2,
    "grounding_0.7": 1 / 2,
    "num_text_tokens": (10 + 20 + 10 + 30) / 4,
    "num_latent_tokens": (8 + 16 + 8 + 24) / 4,
    "num_query_tokens": 6 / 4,
    **dict.fromkeys(metrics.PROBE_METRICS, math.nan),  # nothing was probed
}


def test_six_queries_score_as_worked_out_by_hand() -> None:
    found = values_of(GOLDEN_MOMENTS, GOLDEN_PREDICTIONS)
    assert found == pytest.approx(GOLDEN, nan_ok=True)


def test_every_metric_of_the_list_is_reported_once_and_in_order() -> None:
    table = summarise(score(episodes_of(GOLDEN_MOMENTS, GOLDEN_PREDICTIONS)), num_resamples=20)
    assert tuple(table["metric"]) == metrics.metric_names()
    assert dict(table.select("metric", "num_queries").iter_rows())["grounding_0.5"] == 2
    assert dict(table.select("metric", "num_queries").iter_rows())["num_text_tokens"] == 4


def test_each_query_ends_in_one_outcome() -> None:
    found = dict(metrics.outcomes(episodes_of(GOLDEN_MOMENTS, GOLDEN_PREDICTIONS)).iter_rows())
    assert found == {
        "a": "found",
        "b": "wrong_span",
        "c": "wrong_video_accepted",
        "d": "right_video_rejected",
        "e": "no_prediction",
        "f": "no_prediction",
    }
    assert set(found.values()) <= set(metrics.OUTCOMES)


def test_the_public_oracle_is_reproduced() -> None:
    folder = SHARED_DATA / "metric_oracle"
    if not folder.exists():
        pytest.skip(f"no public predictions at {folder}")
    annotations = json.loads((folder / "ground_truth.json").read_text())["annotations"]
    predicted = json.loads((folder / "predictions.json").read_text())
    truth = {str(row["id"]): row["timestamp"] for row in annotations}
    spans = [(row["timestamp"] or [(None, None)])[0] for row in predicted.values()]
    starts, ends = (np.array([span[i] for span in spans], dtype=float) for i in (0, 1))
    gt = np.array([truth[query_id] for query_id in predicted], dtype=float)
    iou, right = temporal_iou(starts, ends, gt[:, 0], gt[:, 1]), np.ones(len(spans), dtype=bool)
    assert len(spans) == 500
    assert [round(100 * metrics.vcmr(right, right, iou, t), 1) for t in (0.3, 0.5, 0.7)] == [9.0, 3.4, 1.4]
    assert round(100 * metrics.miou(right, right, iou), 1) == 6.3


def test_the_oracle_scores_the_same_through_the_tables() -> None:
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
    assert [round(100 * found[f"vcmr_{t}"], 1) for t in (0.3, 0.5, 0.7)] == [9.0, 3.4, 1.4]
    assert round(100 * found["miou"], 1) == 6.3


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ((0, 10), 1.0),
        ((0, 5), 0.5),
        ((5, 15), 1 / 3),
        ((10, 20), 0.0),
        ((5, 5), 0.0),
        ((5, 5 + 1e-10), 0.0),
        ((8, 2), 0.0),
        ((None, 5), 0.0),
        ((float("nan"), 5), 0.0),
        ((0, float("inf")), 0.0),
        ((-1e308, 1e308), 0.0),
    ],
)
def test_iou_of_known_spans(span: tuple[float, float], expected: float) -> None:
    assert float(temporal_iou(*span, 0, 10)) == pytest.approx(expected)


def test_a_truth_without_length_has_iou_zero_even_with_itself() -> None:
    assert float(temporal_iou(3, 3, 3, 3)) == 0.0


seconds = st.floats(-1e4, 1e4, allow_nan=False)


@given(seconds, seconds, seconds, seconds)
def test_iou_is_symmetric_and_in_the_unit_interval(a: float, b: float, c: float, d: float) -> None:
    forward, backward = float(temporal_iou(a, b, c, d)), float(temporal_iou(c, d, a, b))
    assert forward == pytest.approx(backward)
    assert 0.0 <= forward <= 1.0 + 1e-12


@given(seconds, st.floats(0.01, 1e3), seconds)
def test_iou_is_one_with_itself_and_does_not_move_with_the_clock(start: float, length: float, shift: float) -> None:
    assert float(temporal_iou(start, start + length, start, start + length)) == pytest.approx(1.0)
    half = float(temporal_iou(start, start + length / 2, start, start + length))
    moved = float(temporal_iou(start + shift, start + shift + length / 2, start + shift, start + shift + length))
    assert half == pytest.approx(moved, abs=1e-6)


ranks_or_missing = st.lists(st.one_of(st.none(), st.integers(1, 300)), min_size=1, max_size=40)


@given(ranks_or_missing)
def test_recall_grows_with_k_and_bounds_mrr(ranks: list[int | None]) -> None:
    recalls = [metrics.recall_at_k(ranks, k) for k in (1, 5, 10, 100, 300)]
    assert recalls == sorted(recalls)
    assert recalls[-1] == pytest.approx(sum(rank is not None for rank in ranks) / len(ranks))
    assert recalls[0] <= metrics.mrr(ranks) + 1e-12 <= recalls[-1] + 1e-9


@given(ranks_or_missing)
def test_a_missing_rank_is_the_worst_rank(ranks: list[int | None]) -> None:
    known = [rank for rank in ranks if rank is not None]
    median = metrics.median_rank(ranks)
    assert math.isinf(median) == (2 * len(known) < len(ranks) + 1 + (len(ranks) % 2 == 0))
    if len(known) == len(ranks):
        assert median == pytest.approx(float(np.median(known)))


def test_no_queries_give_no_numbers() -> None:
    assert math.isnan(metrics.recall_at_k([], 1))
    assert math.isnan(metrics.median_rank([]))
    assert summarise(score(episodes_of([], []))).is_empty()


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


def fake_scores(method: str, num_queries: int = 200) -> Scores:
    moments = fake_moments(num_queries)
    return score(episodes_of(moments, fake_predictions(moments, STRENGTHS[method], seed=3)))


def test_intervals_hold_their_value_and_repeat_with_the_seed() -> None:
    scores = fake_scores("sqr_sft")
    table = summarise(scores, 300, seed=7)
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()
    assert table.equals(summarise(scores, 300, seed=7))
    assert not table.equals(summarise(scores, 300, seed=8))


def test_an_interval_has_the_width_that_theory_gives_a_share() -> None:
    moments = fake_moments(400)
    rows = [
        prediction(m["query_id"], [turn(1, m["video_id"], "matched")], rank=1 if i % 2 else 50)
        for i, m in enumerate(moments)
    ]
    row = summarise(score(episodes_of(moments, rows)), 1000).row(
        by_predicate=pl.col("metric") == "recall_at_1", named=True
    )
    expected = 2 * 1.96 * math.sqrt(0.25 / 400)
    assert row["value"] == 0.5
    assert row["high"] - row["low"] == pytest.approx(expected, rel=0.12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(0, 100))
def test_resampled_medians_are_those_of_the_drawn_ranks(ranks: list[int], seed: int) -> None:
    ordered = np.sort(np.array(ranks, dtype=float))
    counts = next(metrics._resamples(len(ranks), 5, seed))
    expected = [np.median(np.repeat(ordered, row.astype(int))) for row in counts]
    assert metrics._weighted_medians(ordered, counts).tolist() == expected


def test_a_method_does_not_differ_from_itself() -> None:
    table = metrics.paired_differences(fake_scores("sqr_sft"), fake_scores("sqr_sft"), 50)
    assert (table["difference"].abs().max(), table["low"].abs().max(), table["high"].abs().max()) == (0, 0, 0)


def test_paired_intervals_are_narrower_than_those_of_unrelated_methods() -> None:
    """Two methods that differ in one query of 200: pairing sees that nothing else moved."""
    moments = fake_moments(200)
    rows = fake_predictions(moments, STRENGTHS["sqr_sft"], seed=3)
    missed = next(i for i, row in enumerate(rows) if row["rank"] == 1)
    changed = [{**row, "rank": 99} if i == missed else row for i, row in enumerate(rows)]
    one, two = (score(episodes_of(moments, r)) for r in (rows, changed))
    paired = metrics.paired_differences(one, two, 300).row(by_predicate=pl.col("metric") == "recall_at_1")
    assert paired[1] == pytest.approx(1 / 200)
    alone = summarise(one, 300).row(by_predicate=pl.col("metric") == "recall_at_1", named=True)
    assert paired[3] - paired[2] < 0.25 * (alone["high"] - alone["low"])


def test_differences_over_other_queries_are_refused() -> None:
    with pytest.raises(ValueError, match="same queries"):
        metrics.paired_differences(fake_scores("sqr_sft"), fake_scores("sqr_sft", 100))


def test_what_cannot_be_known_is_null_and_not_infinite() -> None:
    table = summarise(score(episodes_of([moment("a"), moment("b")], [])), 20)
    found = dict(table.select("metric", "value").iter_rows())
    assert found["median_rank"] is None
    assert found["grounding_0.5"] is None
    assert found["num_text_tokens"] is None
    assert found["vcmr_0.5"] == 0.0
    assert found["verification_accuracy"] == 0.0


def test_twenty_thousand_queries_take_seconds_and_bounded_memory() -> None:
    rng = np.random.default_rng(0)
    names = tuple(name for name in metrics.metric_names() if name != "median_rank")
    numerators = (rng.random((20_000, len(names))) < 0.5).astype(float)
    ranks = rng.integers(1, 100, 20_000).astype(float)
    scores = Scores(tuple(map(str, range(20_000))), names, numerators, np.ones_like(numerators), ranks)
    tracemalloc.start()
    started = time.monotonic()
    table = summarise(scores, 1000)
    seconds, peak = time.monotonic() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert table.height == len(names) + 1
    assert seconds < 20
    assert peak < 300e6


# ---- probes: one right and one wrong video a query -----------------------------------------------------------------


def probe(query_id: str, label: str, decision: str, span: Any = (None, None), **changes: Any) -> dict:
    row = {"query_id": query_id, "label": label, "decision": decision, "start_s": span[0], "end_s": span[1]}
    return {**row, "status": "ok", **changes}


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


def probe_values(train: list[dict]) -> dict[str, float]:
    schema = {"query_id": pl.String, "label": pl.String, "decision": pl.String, "start_s": pl.Float64,
              "end_s": pl.Float64, "status": pl.String}  # fmt: skip
    moments = moments_frame([{**m, "duration_s": 20.0} for m in GOLDEN_MOMENTS[:-1]] + [moment("f", 10.0, 20.0)])
    moments = moments.with_columns(duration_s=pl.lit(20.0))
    found = metrics.load_probes(moments, pl.DataFrame(PROBES, schema=schema), moments_frame(train))
    values = metrics.values(score(load_episodes(moments, predictions_frame(GOLDEN_PREDICTIONS)), found))
    return {name: values[name] for name in metrics.PROBE_METRICS}


def test_probes_score_as_worked_out_by_hand() -> None:
    train = [{**moment("t", 0.0, 4.0), "duration_s": 8.0}]  # the first half of a video
    assert probe_values(train) == {
        "balanced_verification_accuracy": 3 / 6,  # a twice, b's right one; d lacks its wrong one, e failed
        "balanced_grounding_0.5": 2 / 4,
        "grounding_given_matched_0.5": 2 / 3,
        "constant_span_grounding_0.5": 1.0,  # a to d lie in the first half of 20 seconds
    }


def test_the_constant_span_never_sees_the_moments_it_is_judged_on() -> None:
    last_quarter = [{**moment("t", 6.0, 8.0), "duration_s": 8.0}]
    assert probe_values(last_quarter)["constant_span_grounding_0.5"] == 0.0
    assert math.isnan(probe_values([])["constant_span_grounding_0.5"])
