"""Intervals over queries and paired differences: what theory gives, and naive versions."""

from __future__ import annotations

import math
import sys
import tracemalloc
from collections import Counter

import numpy as np
import polars as pl
import pytest
from fake_results import STRENGTHS, fake_moments, fake_predictions
from golden_episodes import episodes_of, moment, prediction, ranked, turn
from hypothesis import given, settings
from hypothesis import strategies as st

from vsr1_core.evaluation import bootstrap
from vsr1_core.evaluation.bootstrap import paired_differences, summarise
from vsr1_core.evaluation.metrics import all_metrics, score
from vsr1_core.evaluation.scores import Median, Ratio, Scores


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
    counts = next(bootstrap._resamples(len(ranks), 5, seed))
    expected = [np.median(np.repeat(ordered, row.astype(int))) for row in counts]
    assert bootstrap._weighted_medians(ordered, counts).tolist() == expected


def test_a_method_does_not_differ_from_itself() -> None:
    table = paired_differences(fake_scores("sqr_sft"), fake_scores("sqr_sft"), 50)
    assert (table["difference"].abs().max(), table["low"].abs().max(), table["high"].abs().max()) == (0, 0, 0)


def test_paired_intervals_are_narrower_than_those_of_unrelated_methods() -> None:
    """Two methods that differ in one query of 200: pairing sees that nothing else moved."""
    moments = fake_moments(200)
    rows = fake_predictions(moments, STRENGTHS["sqr_sft"], seed=3)
    missed = next(i for i, row in enumerate(rows) if row["rank"] == 1)
    changed = [{**row, "rank": 99} if i == missed else row for i, row in enumerate(rows)]
    one, two = (score(episodes_of(moments, r)) for r in (rows, changed))
    paired = paired_differences(one, two, 300).row(by_predicate=pl.col("metric") == "recall_at_1")
    assert paired[1] == pytest.approx(1 / 200)
    alone = summarise(one, 300).row(by_predicate=pl.col("metric") == "recall_at_1", named=True)
    assert paired[3] - paired[2] < 0.25 * (alone["high"] - alone["low"])


def test_differences_over_other_queries_are_refused() -> None:
    with pytest.raises(ValueError, match="same queries"):
        paired_differences(fake_scores("sqr_sft"), fake_scores("sqr_sft", 100))


def test_what_cannot_be_known_is_null_and_not_infinite() -> None:
    table = summarise(score(episodes_of([moment("a"), moment("b")], [])), 20)
    found = dict(table.select("metric", "value").iter_rows())
    assert found["median_rank"] is None
    assert found["grounding_0.5"] is None
    assert found["num_text_tokens"] is None
    assert found["vcmr_0.5"] == 0.0
    assert found["verification_accuracy"] == 0.0


@pytest.mark.slow
def test_twenty_thousand_queries_take_no_loop_in_python_and_bounded_memory() -> None:
    rng = np.random.default_rng(0)
    every, parts = np.ones(20_000), {}
    for name, metric in all_metrics().items():
        is_median = isinstance(metric.measure(ranked([1]), None), Median)
        numbers = rng.integers(1, 100, 20_000) if is_median else rng.random(20_000) < 0.5
        parts[name] = Median(numbers.astype(float)) if is_median else Ratio(numbers.astype(float), every)
    scores = Scores(tuple(map(str, range(20_000))), parts)
    events = Counter[str]()
    tracemalloc.start()
    sys.setprofile(lambda _frame, event, _value: events.update([event]))
    try:
        table = summarise(scores, 1000)
    finally:
        sys.setprofile(None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert table.height == len(parts)
    assert 100 < events["call"] < 5_000, "fewer than there are queries: numpy goes over them"
    assert peak < 300e6


def test_parts_of_a_wrong_shape_are_refused_with_the_metric_and_the_shape_needed() -> None:
    with pytest.raises(ValueError, match=r"metric 'mine' gave arrays of shape \(2,\); .* shape \(3,\)"):
        Scores(("a", "b", "c"), {"mine": Median(np.ones(2))})
