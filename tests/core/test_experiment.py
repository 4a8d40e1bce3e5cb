"""Several seeds as one result, on made-up predictions of known strength."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from fake_results import STRENGTHS, Strength, fake_moments, fake_predictions, moments_frame, predictions_frame

from vsr1_core.configurations import CONFIGURATIONS, TINY, with_seed
from vsr1_core.evaluation import experiment as ex
from vsr1_core.evaluation.bootstrap import paired_differences
from vsr1_core.evaluation.claims import claims
from vsr1_core.evaluation.curves import score_soft_tokens, score_turns
from vsr1_core.evaluation.episodes import load_episodes
from vsr1_core.evaluation.expected import ExpectedRanges, Range, configuration_key, expected_ranges, measured_ranges
from vsr1_core.evaluation.experiment import Experiment, Run, mean_interval, t_point
from vsr1_core.evaluation.experiment_text import write_experiment
from vsr1_core.evaluation.metrics import metrics_shown, score
from vsr1_core.evaluation.scores import Ratio, Scores
from vsr1_core.home.metrics_grid import expected_grid
from vsr1_core.stages.method_styles import STYLES

SEEDS = (1, 2, 3)


def scores_of(strength: Strength, seed: int, num_queries: int = 80) -> Scores:
    moments = fake_moments(num_queries)
    predictions = predictions_frame(fake_predictions(moments, strength, seed=seed))
    episodes = load_episodes(moments_frame(moments), predictions)
    curves = [score_turns(episodes, 3), score_soft_tokens(episodes, predictions, 8)]
    return Scores.joined([score(episodes), *curves])


def experiment_of(strengths: dict[str, Strength], seeds: tuple[int, ...] = SEEDS) -> Experiment:
    numbered = list(enumerate(strengths.items()))
    runs = {Run(seed): {name: scores_of(strength, 10 * seed + i) for i, (name, strength) in numbered} for seed in seeds}
    return Experiment("tiny", runs, STYLES, num_resamples=200)


def only(frame: pl.DataFrame, **values: str) -> dict[str, Any]:
    return frame.row(by_predicate=pl.all_horizontal(pl.col(k) == v for k, v in values.items()), named=True)


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return experiment_of({**STRENGTHS, "hard_refine": replace(STRENGTHS["sqr_sft"], refined_right=0.4)})


def test_the_interval_over_seeds_is_that_of_students_t() -> None:
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    assert (mean, high - mean) == (2.0, pytest.approx(4.303 / math.sqrt(3)))
    assert mean - low == pytest.approx(high - mean)
    assert mean_interval([5.0, 7.0])[2] - 6.0 == pytest.approx(12.706 * math.sqrt(2) / math.sqrt(2))
    assert math.isnan(mean_interval([5.0])[1])
    many = np.random.default_rng(0).normal(size=400)
    assert mean_interval(many)[2] - many.mean() == pytest.approx(1.966 * many.std(ddof=1) / 20, rel=1e-4)


def test_the_points_of_students_t_are_those_of_printed_tables_and_fall_to_the_normal_one() -> None:
    printed = {1: 12.706, 15: 2.131, 16: 2.120, 17: 2.110, 20: 2.086, 30: 2.042, 60: 2.000, 120: 1.980, 10**9: 1.960}
    assert {freedom: t_point(freedom + 1) for freedom in printed} == pytest.approx(printed, abs=1e-3)
    points = [t_point(count) for count in range(2, 60)]
    assert points == sorted(points, reverse=True)


def test_results_average_the_seeds(experiment: Experiment) -> None:
    row = only(ex.results(experiment), method="sqr_sft", metric="recall_at_1")
    each = [scores_of(STRENGTHS["sqr_sft"], 10 * seed + 2) for seed in SEEDS]
    assert row["values"] == pytest.approx([s.parts["recall_at_1"].numerators.mean() for s in each])
    assert (row["mean"], row["low"], row["high"]) == pytest.approx(mean_interval(row["values"]))
    assert (row["lowest"], row["highest"]) == (min(row["values"]), max(row["values"]))
    points = set(ex.results(experiment)["metric"])
    assert {"turns/3/vcmr_0.5", "soft_tokens/0/recall_at_1", "median_rank"} <= points


def test_runs_of_one_seed_are_averaged_before_the_interval_over_seeds() -> None:
    runs = {Run(s, n): {"sqr_sft": scores_of(STRENGTHS["sqr_sft"], 10 * s + n)} for s in SEEDS for n in (1, 2)}
    row = only(ex.results(Experiment("tiny", runs, STYLES, num_resamples=20)), method="sqr_sft", metric="recall_at_1")
    pairs = np.reshape(row["values"], (3, 2))
    assert (row["mean"], row["low"], row["high"]) == pytest.approx(mean_interval(pairs.mean(axis=1)))
    assert row["highest"] - row["lowest"] == pytest.approx(pairs.max() - pairs.min())


def test_the_ranges_of_an_experiment_are_what_its_configuration_is_expected_to_give(tmp_path: Path) -> None:
    runs = {Run(s, n): {"sqr_sft": scores_of(STRENGTHS["sqr_sft"], 10 * s + n)} for s in SEEDS for n in (1, 2)}
    found = Experiment("tiny", runs, STYLES, num_resamples=20)
    stored = measured_ranges(found, configuration_key(with_seed(TINY, 5, 1)), "vsr1 experiment", "test")
    (tmp_path / "ranges.json").write_text(json.dumps(stored))
    expected = expected_ranges(with_seed(TINY, 9), tmp_path / "ranges.json")
    assert expected is not None
    recall = expected.ranges["sqr_sft"]["recall_at_1"]
    values = found.values("sqr_sft", "recall_at_1")
    assert recall.values == tuple(values)
    assert expected.num_runs == 6
    other = replace(TINY, sft=replace(TINY.sft, steps=TINY.sft.steps + 1))
    assert expected_ranges(other, tmp_path / "ranges.json") is None


def test_the_ranges_that_are_kept_are_those_of_the_demo_and_show_what_is_claimed() -> None:
    """Whoever changes the demo's configuration measures it again: `vsr1 experiment --config tiny --seeds
    1,2,3,4,5,6 --perturb 1`; its `ranges.json` is the new file."""
    expected = expected_ranges(TINY)
    assert expected is not None
    assert expected.num_runs == 6
    first, last = (np.array(expected.ranges["sqr_sft"][m].values) for m in ("first_recall_at_1", "recall_at_1"))
    assert (last > 1.6 * first).all()
    assert np.ptp(last) <= 0.1
    assert first.tolist() == list(expected.ranges["zero_shot"]["recall_at_1"].values)


def test_a_value_outside_its_expected_range_is_marked() -> None:
    expected = ExpectedRanges("", "", "test", 3, {"sqr_sft": {"recall_at_1": Range((0.24, 0.25, 0.26))}})
    half = 4.303 * 0.01 * math.sqrt(4 / 3)
    assert expected.ranges["sqr_sft"]["recall_at_1"].expected == pytest.approx((0.25 - half, 0.25 + half))
    frame = pl.DataFrame({"method": "sqr_sft", "metric": "recall_at_1", "split": ["test", "val"], "value": [0.35, 0.1]})
    assert expected_grid(frame, expected)[1] == [["recall_at_1", "35.0 (20.0 to 30.0) outside"]]
    inside = frame.with_columns(value=pl.lit(0.29))
    assert expected_grid(inside, expected)[1] == [["recall_at_1", "29.0 (20.0 to 30.0)"]]
    assert 0.1 in Range((0.1, 0.1, 0.1))
    assert 0.9 in Range((0.1,))


def test_differences_of_one_seed_are_the_paired_ones_of_its_report() -> None:
    experiment = experiment_of(STRENGTHS, seeds=(4,))
    found = only(ex.differences(experiment), after="sqr_sft", metric="vcmr_0.5")
    ours, theirs = experiment.runs[Run(4)]["sqr_sft"], experiment.runs[Run(4)]["fine_tuned"]
    row = only(paired_differences(ours, theirs, 200, 42), metric="vcmr_0.5")
    names = ("difference", "low", "high")
    assert [found[name] for name in names] == [row[name] for name in names]
    assert found["seeds_low"] is None


def test_averaging_over_seeds_narrows_the_interval_over_queries(experiment: Experiment) -> None:
    def width(e: Experiment) -> float:
        low, high = (e.estimate("sqr_sft", "recall_at_1") - e.estimate("fine_tuned", "recall_at_1")).interval
        return high - low

    assert width(experiment) < 0.8 * width(Experiment("tiny", {Run(1): experiment.runs[Run(1)]}, STYLES, 200))


def test_claims_hold_where_the_methods_are_as_the_paper_says_and_fail_where_they_are_not(
    experiment: Experiment,
) -> None:
    found = {claim.text: claim.holds for claim in claims(experiment, 8)}
    lifted = "SQR after stage 1 lifts R@1 over the first ranking by at least 60 %, interval above 0"
    assert found[lifted]
    assert found["VCMR: stage 1 above fine-tuned"]
    assert found["R@1: soft refinement (stage 1) not below hard refinement"]
    assert found["R@1 with 8 soft tokens above R@1 with 0"]
    assert found["VCMR rises from turn 1 to turn 2"]
    swapped = {"fine_tuned": STRENGTHS["sqr_sft"], "sqr_sft": STRENGTHS["fine_tuned"]}
    worse = {claim.text: claim.holds for claim in claims(experiment_of(swapped), 8)}
    assert worse["VCMR: stage 1 above fine-tuned"] is False
    assert worse[lifted] is False
    assert not any("hard refinement" in text or "stage 2" in text for text in worse)


SHARES = {"vcmr_0.5", "recall_at_1", "first_recall_at_1", "verification_accuracy", "grounding_0.5"}


def shares_of(hits: dict[str, int], others: int = 5) -> Scores:
    """Scores over ten queries. hits: metric -> how many of them it counts, `others` where it is not named."""
    counted = {
        name: np.arange(10) < hits.get(name, others) for name in (*SHARES, "num_text_tokens", "num_latent_tokens")
    }
    return Scores(tuple("abcdefghij"), {name: Ratio(one.astype(float), np.ones(10)) for name, one in counted.items()})


def test_equal_means_are_equal_in_the_claims_whatever_the_order_of_the_seeds() -> None:
    """(0.1 + 0.2 + 0.3) / 3 is one bit more than (0.3 + 0.2 + 0.1) / 3."""
    for before, after in ((3, 2, 1), (1, 2, 3)), ((1, 2, 3), (3, 2, 1)):
        runs = {
            Run(seed): {
                "fine_tuned": shares_of({"vcmr_0.5": before[seed]}),
                "sqr_sft": shares_of({"vcmr_0.5": after[seed]}),
                "videosearch_r1": shares_of({"vcmr_0.5": before[seed]}),
            }
            for seed in range(3)
        }
        found = {claim.text: claim.holds for claim in claims(Experiment("x", runs, STYLES, 20), 0)}
        assert found["VCMR: stage 1 above fine-tuned"] is False
        assert found["VCMR: stage 2 not below stage 1"] is True


def test_a_metric_that_one_run_cannot_judge_has_no_range_whichever_run_that_is() -> None:
    judged, nothing = Ratio(np.array([1.0]), np.array([1.0])), Ratio(np.array([0.0]), np.array([0.0]))
    for order in ((judged, nothing), (nothing, judged)):
        runs = {Run(seed): {"sqr_sft": Scores(("a",), {"grounding_0.5": part})} for seed, part in enumerate(order)}
        row = only(ex.results(Experiment("x", runs, STYLES, 20)), metric="grounding_0.5")
        assert (row["mean"], row["lowest"], row["highest"]) == (None, None, None)


@pytest.mark.parametrize(("num_soft_tokens", "said"), [(0, 0), (1, 1), (8, 2)])
def test_claims_about_soft_tokens_are_those_that_as_many_can_show(num_soft_tokens: int, said: int) -> None:
    texts = [claim.text for claim in claims(experiment_of({"sqr_sft": STRENGTHS["sqr_sft"]}), num_soft_tokens)]
    assert len(texts) == len(set(texts))
    assert sum("soft tokens" in text for text in texts) == said


def test_a_relative_gain_on_nothing_is_not_known() -> None:
    never = {"sqr_sft": Strength(0.0, 0.0), "fine_tuned": Strength(0.0, 0.0)}
    claim = claims(experiment_of(never), 8)[0]
    assert (claim.holds, math.isnan(claim.value)) == (None, True)


def test_runs_over_other_queries_are_not_compared() -> None:
    runs = {
        Run(1): {"sqr_sft": scores_of(STRENGTHS["sqr_sft"], 1, 20)},
        Run(2): {"sqr_sft": scores_of(STRENGTHS["sqr_sft"], 1, 21)},
    }
    with pytest.raises(ValueError, match="2 sets of queries"):
        Experiment("tiny", runs, STYLES)


def test_what_is_written_can_be_read_by_people_and_programs(experiment: Experiment, tmp_path: Path) -> None:
    found = claims(experiment, 8)
    path = write_experiment(experiment, found, tmp_path / "tiny", {"seconds": 7})
    text = path.read_text()
    assert "seeds 1, 2, 3, 80 test queries" in text
    assert "Lowest to highest of the 3 runs" in text
    assert "| metric | zero_shot | fine_tuned | hard_refine | sqr_sft | videosearch_r1 |" in text
    assert "| VCMR: stage 1 above fine-tuned |" in text
    record = json.loads((path.parent / "results.json").read_text())
    assert (record["seeds"], record["seconds"], len(record["claims"])) == ([1, 2, 3], 7, len(found))
    assert pl.read_parquet(path.parent / "differences.parquet").height == 4 * len(metrics_shown("differences"))


def test_a_seed_changes_all_that_trains_and_nothing_else() -> None:
    other = with_seed(TINY, 7, noise=2)
    tiny = replace(TINY.models.tiny, seed=7, noise=2)
    assert other.models == replace(TINY.models, options=replace(TINY.models.options, seed=7), tiny=tiny)
    for name in ("sft", "fine_tuned", "hard_refine"):
        assert getattr(other, name) == replace(getattr(TINY, name), seed=7, noise=2)
    assert other.grpo == replace(TINY.grpo, seed=7)
    for name in ("toy", "frames", "pool", "teacher", "retrieval", "evaluation", "name"):
        assert getattr(other, name) == getattr(TINY, name)


def test_the_experiment_is_tiny_with_more_videos_steps_and_methods() -> None:
    config = CONFIGURATIONS["experiment"]
    assert set(config.evaluation.methods) > set(TINY.evaluation.methods)
    assert config.fine_tuned.steps == config.hard_refine.steps > TINY.hard_refine.steps
    trained = ("sft", "fine_tuned", "hard_refine", "grpo")
    as_tiny = {n: replace(getattr(config, n), steps=getattr(TINY, n).steps) for n in trained}
    as_tiny["grpo"] = replace(as_tiny["grpo"], lr=TINY.grpo.lr)
    as_tiny["sft"] = replace(as_tiny["sft"], retrieval_weight=TINY.sft.retrieval_weight)
    as_tiny["toy"] = replace(config.toy, num_train=TINY.toy.num_train)
    steps = {name: getattr(TINY.models.tiny, name) for name in ("vision_pretraining_steps", "contrastive_steps")}
    models = replace(config.models, tiny=replace(config.models.tiny, **steps))
    assert replace(config, name="tiny", evaluation=TINY.evaluation, models=models, **as_tiny) == TINY
