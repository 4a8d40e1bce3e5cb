"""Rewards of whole episodes, worked out by hand, and completions that try to cheat."""

from __future__ import annotations

import math

import pytest

from vsr1_core.reasoning.conversation import answer_text
from vsr1_core.recipes import RewardWeights
from vsr1_core.training.rewards import (
    EpisodeRecord,
    TurnRecord,
    format_reward,
    grounding_reward,
    retrieval_reward,
    score_episode,
    verification_reward,
)

DURATION_S = 20.0
WEIGHTS = RewardWeights(format=0.5, verification=1.0, retrieval=2.0, grounding=4.0)


def turn(text, shown_is_right=True):
    return TurnRecord.from_text(text, shown_is_right, DURATION_S)


def match(start_s, end_s, shown_is_right=True):
    return turn(answer_text("a circle", True, start_s, end_s), shown_is_right)


def reject(shown_is_right=False):
    return turn(answer_text("no circle", False), shown_is_right)


def rewards(*turns, loss=0.0):
    return score_episode(EpisodeRecord(turns, 4.0, 10.0, loss), WEIGHTS)


def test_a_rejection_then_a_match():
    got = rewards(reject(), match(7.0, 13.0), loss=math.log(2))
    assert (got.format, got.verification, got.retrieval) == pytest.approx((1.0, 1.0, 0.5))
    assert got.grounding == pytest.approx(3 / 9)
    assert got.total == pytest.approx(0.5 + 1.0 + 2 * 0.5 + 4 / 3)


def test_a_wrong_match_earns_format_and_retrieval_only():
    got = rewards(match(4.0, 10.0, shown_is_right=False))
    assert (got.format, got.verification, got.retrieval, got.grounding) == (1.0, -1.0, 1.0, 0.0)
    assert got.total == pytest.approx(0.5 - 1 + 2)


def test_rejecting_a_wrong_video_beats_guessing_a_span_in_it():
    assert rewards(reject()).total > rewards(match(4.0, 10.0, shown_is_right=False)).total
    assert rewards(reject()).grounding == 0.5


def test_a_wrong_rejection_earns_no_grounding():
    got = rewards(reject(shown_is_right=True))
    assert (got.verification, got.grounding) == (-1.0, 0.0)


def test_verification_is_the_mean_over_turns_and_unknown_is_wrong():
    assert verification_reward([reject(), turn("who knows", False), match(1, 2)]) == pytest.approx(1 / 3)
    assert grounding_reward(turn("who knows", shown_is_right=False), 4.0, 10.0) == 0.0


def test_a_perfect_span_earns_everything():
    got = rewards(match(4.0, 10.0))
    assert (got.format, got.verification, got.retrieval, got.grounding) == (1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    "text",
    [
        answer_text("a", True, 4.0, 10.0) + answer_text("b", False),
        "<think>a</think> <answer><answer>matched</answer></answer> <start>4.0</start> <end>10.0</end>",
        "<think>a</think> <answer>matched</answer> <start>nan</start> <end>10.0</end>",
        "<think>a</think> <answer>matched</answer> <start>4.0</start> <end>inf</end>",
        "<think>a</think> <answer>matched</answer> <start>4.0</start> <end>1e309</end>",
        "<think>a</think> <answer>matched</answer> <start>10.0</start> <end>4.0</end>",
        "<think></think> <answer>matched</answer> <start>4.0</start> <end>10.0</end>",
        "<think>a</think> <answer>not_matched</answer>",
        "<REFINE> <think>a</think> <answer>not_matched</answer>",
        answer_text("a", True, 4.0, 10.0) * 20_000,
        "",
    ],
)
def test_hostile_completions_earn_no_format_reward(text):
    assert format_reward([turn(text)]) == 0.0
    total = rewards(turn(text)).total
    assert math.isfinite(total)
    assert total < rewards(match(4.0, 10.0)).total


def test_a_whole_video_span_earns_its_iou_and_no_more():
    assert grounding_reward(match(0.0, 999.0), 4.0, 10.0) == pytest.approx(6 / 20)
    assert grounding_reward(match(5.0, 5.0), 4.0, 10.0) == 0.0


def test_spans_that_are_no_numbers_ground_nothing():
    for bad in ("nan", "inf", "-inf", "1e309"):
        text = f"<think>a</think> <answer>matched</answer> <start>{bad}</start> <end>10.0</end>"
        assert grounding_reward(turn(text), 4.0, 10.0) == 0.0


def test_the_retrieval_reward_falls_with_the_loss_and_refuses_nonsense():
    assert [retrieval_reward(x) for x in (0.0, 1.0, math.inf)] == pytest.approx([1.0, math.exp(-1), 0.0])
    assert retrieval_reward(-1e-9) == 1.0
    for bad in (math.nan, -1.0):
        with pytest.raises(ValueError, match="retrieval loss"):
            retrieval_reward(bad)


def test_an_episode_without_turns_is_an_error():
    with pytest.raises(ValueError, match="without turns"):
        rewards()


def test_rewards_import_no_torch():
    import subprocess
    import sys

    code = "import sys, vsr1_core.training.rewards; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
