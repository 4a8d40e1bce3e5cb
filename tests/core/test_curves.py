"""Metrics by the number of turns and of soft tokens allowed, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
from fake_results import moments_frame, predictions_frame
from golden_episodes import GOLDEN, GOLDEN_MOMENTS, GOLDEN_PREDICTIONS

from vsr1_core.evaluation.curves import prefix_ranks, score_soft_tokens, score_turns, soft_token_points, turn_points
from vsr1_core.evaluation.episodes import cut_after, load_episodes
from vsr1_core.evaluation.scores import values

PREFIX_RANKS = {"b": [4, 2, 1], "d": [1, None, 12]}
"""b is refined once and found with both tokens; d, refined until it is lost, had been first."""
PREDICTIONS = predictions_frame(
    [{**row, "prefix_ranks": PREFIX_RANKS.get(row["query_id"])} for row in GOLDEN_PREDICTIONS]
)
EPISODES = load_episodes(moments_frame(GOLDEN_MOMENTS), PREDICTIONS)


def test_more_turns_are_the_same_episodes_cut_later() -> None:
    found = values(score_turns(EPISODES, 3))
    assert list(found) == [point.name for point in turn_points(3)]
    by_metric = {p.metric: [found[q.name] for q in turn_points(3) if q.metric == p.metric] for p in turn_points(1)}
    assert by_metric == {
        "recall_at_1": pytest.approx([2 / 6, 3 / 6, 2 / 6]),
        "vcmr_0.3": pytest.approx([1 / 6, 2 / 6, 2 / 6]),
        "vcmr_0.5": pytest.approx([1 / 6] * 3),
        "vcmr_0.7": pytest.approx([1 / 6] * 3),
        "num_text_tokens": pytest.approx([40 / 4, 60 / 4, 70 / 4]),
        "num_latent_tokens": pytest.approx([32 / 4, 48 / 4, 56 / 4]),
    }


def test_all_turns_and_all_soft_tokens_are_the_whole_search() -> None:
    turns, tokens = values(score_turns(EPISODES, 3)), values(score_soft_tokens(EPISODES, PREDICTIONS, 2))
    for name in ("vcmr_0.3", "vcmr_0.5", "vcmr_0.7", "num_text_tokens", "num_latent_tokens"):
        assert turns[f"turns/3/{name}"] == GOLDEN[name]
    for name in ("recall_at_1", "recall_at_5", "recall_at_10"):
        assert tokens[f"soft_tokens/2/{name}"] == GOLDEN[name]
        assert tokens[f"soft_tokens/0/{name}"] == GOLDEN[f"first_{name}"]


def test_a_query_without_latents_keeps_its_rank_and_one_without_prediction_has_none() -> None:
    assert prefix_ranks(EPISODES, PREDICTIONS, 2).tolist() == [
        [1, 1, 1], [4, 2, 1], [7, 7, 7], [1, math.inf, 12], [math.inf] * 3, [math.inf] * 3
    ]  # fmt: skip
    found = values(score_soft_tokens(EPISODES, PREDICTIONS, 2))
    assert list(found) == [point.name for point in soft_token_points(2)]
    assert found["soft_tokens/1/recall_at_1"] == pytest.approx(1 / 6)
    assert found["soft_tokens/1/recall_at_5"] == pytest.approx(2 / 6)


def test_episodes_cut_after_their_last_turn_are_the_same_episodes() -> None:
    cut = cut_after(EPISODES, 3)
    for name in ("rank", "is_matched", "iou", "num_text_tokens", "num_latent_tokens"):
        ran = EPISODES.has_prediction
        assert getattr(cut, name)[ran].tolist() == getattr(EPISODES, name)[ran].tolist(), name
    assert cut_after(EPISODES, 1).verifications.query.tolist() == [0, 1, 2, 3]
