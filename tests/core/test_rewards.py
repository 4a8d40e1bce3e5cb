"""Rewards of whole episodes, worked out by hand, and completions that try to cheat."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys
from dataclasses import dataclass

import pytest

from vsr1_core.reasoning.conversation import answer_text, parse_answer
from vsr1_core.reward_weights import RewardWeights
from vsr1_core.rows.versions import fingerprint
from vsr1_core.training.rewards import (
    REWARDS,
    EpisodeRecord,
    Reward,
    TurnRecord,
    format_reward,
    grounding_reward,
    retrieval_reward,
    reward,
    score_episode,
    verification_reward,
)

DURATION_S = 20.0
WEIGHTS = RewardWeights(format=0.5, verification=1.0, retrieval=2.0, grounding=4.0)


def turn(text, shown_is_right=True):
    answer = parse_answer(text, DURATION_S)
    return TurnRecord(text, answer.decision, shown_is_right, answer.start_s, answer.end_s)


def match(start_s, end_s, shown_is_right=True):
    return turn(answer_text("a circle", True, start_s, end_s), shown_is_right)


def reject(shown_is_right=False):
    return turn(answer_text("no circle", False), shown_is_right)


def episode(*turns, loss=0.0):
    return EpisodeRecord(turns, 4.0, 10.0, loss)


def rewards(*turns, loss=0.0):
    return score_episode(episode(*turns, loss=loss), WEIGHTS)


def test_a_rejection_then_a_match():
    got = rewards(reject(), match(7.0, 13.0), loss=math.log(2))
    assert [got[name] for name in ("format", "verification", "retrieval")] == pytest.approx([1.0, 1.0, 0.5])
    assert got["grounding"] == pytest.approx(3 / 9)
    assert got.total == pytest.approx(0.5 + 1.0 + 2 * 0.5 + 4 / 3)


def test_a_wrong_match_earns_format_and_retrieval_only():
    got = rewards(match(4.0, 10.0, shown_is_right=False))
    assert got.parts == {"format": 1.0, "verification": -1.0, "retrieval": 1.0, "grounding": 0.0}
    assert got.total == pytest.approx(0.5 - 1 + 2)


def test_rejecting_a_wrong_video_beats_guessing_a_span_in_it():
    assert rewards(reject()).total > rewards(match(4.0, 10.0, shown_is_right=False)).total
    assert rewards(reject())["grounding"] == 0.5


@pytest.mark.parametrize("span", ["<start>1.0</start> <end>2.0</end>", "<START>", "</end>"])
def test_a_right_rejection_with_a_span_earns_no_grounding(span):
    rejection = answer_text("no circle", False).replace(" <REFINE>", f" {span} <REFINE>")
    got = rewards(turn(rejection, shown_is_right=False))
    assert (got["verification"], got["grounding"], got["format"]) == (1.0, 0.0, 0.0)


def test_a_match_that_ends_with_refine_is_well_formed_where_the_policys_prompt_asks_for_it():
    ended = [turn(answer_text("a circle", True, 4.0, 10.0) + " <REFINE>")]
    asks = "Write <answer>matched</answer> <start>S</start> <end>E</end> <REFINE>, or <answer>not_matched</answer>."
    assert format_reward(EpisodeRecord(ended, 4.0, 10.0, 0.0)) == 0.0
    assert format_reward(EpisodeRecord(ended, 4.0, 10.0, 0.0, system_prompt=asks)) == 1.0


def test_a_wrong_rejection_earns_no_grounding():
    got = rewards(reject(shown_is_right=True))
    assert (got["verification"], got["grounding"]) == (-1.0, 0.0)


def test_verification_is_the_mean_over_turns_and_unknown_is_wrong():
    assert verification_reward(episode(reject(), turn("who knows", False), match(1, 2))) == pytest.approx(1 / 3)
    assert grounding_reward(episode(turn("who knows", shown_is_right=False))) == 0.0


def test_a_perfect_span_earns_everything():
    got = rewards(match(4.0, 10.0))
    assert got.parts == dict.fromkeys(REWARDS, 1.0)


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
    assert format_reward(episode(turn(text))) == 0.0
    total = rewards(turn(text)).total
    assert math.isfinite(total)
    assert total < rewards(match(4.0, 10.0)).total


def test_a_whole_video_span_earns_its_iou_and_no_more():
    assert grounding_reward(episode(match(0.0, 999.0))) == pytest.approx(6 / 20)
    assert grounding_reward(episode(match(5.0, 5.0))) == 0.0


def test_spans_that_are_no_numbers_ground_nothing():
    for bad in ("nan", "inf", "-inf", "1e309"):
        text = f"<think>a</think> <answer>matched</answer> <start>{bad}</start> <end>10.0</end>"
        assert grounding_reward(episode(turn(text))) == 0.0


def test_the_retrieval_reward_falls_with_the_loss_and_refuses_nonsense():
    assert [retrieval_reward(episode(loss=x)) for x in (0.0, 1.0, math.inf)] == pytest.approx([1.0, math.exp(-1), 0.0])
    assert retrieval_reward(episode(loss=-1e-9)) == 1.0
    for bad in (math.nan, -1.0):
        with pytest.raises(ValueError, match="retrieval loss"):
            retrieval_reward(episode(loss=bad))


def test_an_episode_without_turns_is_an_error():
    with pytest.raises(ValueError, match="without turns"):
        rewards()


def test_rewards_import_no_torch():
    code = "import sys, vsr1_core.training.rewards; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_weight_without_a_reward_is_refused_with_the_rewards_there_are():
    weights = RewardWeights(brevity=0.5)
    with pytest.raises(ValueError, match=r"'brevity', which does not exist; there are: format, .*grounding\. Use one"):
        score_episode(episode(match(4.0, 10.0)), weights)


def test_a_reward_needs_a_name_of_its_own_and_a_range_that_it_keeps(monkeypatch):
    for name, low, problem in (("format", 0.0, "already"), ("total", 0.0, "identifier"), ("mine", 2.0, "is empty")):
        with pytest.raises(ValueError, match=problem):
            reward(name, says="nothing.", low=low, high=1.0)
    monkeypatch.setitem(REWARDS, "mine", Reward("mine", "nothing.", 0.0, 1.0, lambda episode: 3.0))
    with pytest.raises(ValueError, match=r"'mine' is 3.0, which is outside its range \[0.0, 1.0\]"):
        rewards(match(4.0, 10.0))


ADDED = """
import json, sys
from pathlib import Path
from vsr1_core.training.rewards import EpisodeRecord, TurnRecord, reward, score_episode

@reward("brevity", says="1 where the last text is short.", low=0.0, high=1.0)
def brevity(episode):
    return float(len(episode.turns[-1].text) < 10)

from vsr1_core.home import warehouse
from vsr1_core.reward_weights import RewardWeights
from vsr1_core.rows.versions import fingerprint
from vsr1_core.rows.lake import Lake
from vsr1_core.stages.columns import dtypes
from vsr1_core.stages.graph import all_stages

earned = score_episode(EpisodeRecord([TurnRecord("short", "matched", True)], 0.0, 1.0, 0.0), RewardWeights(brevity=8.0))
episode = {"step": 1, "sample": 0, "query_id": "q", **earned.columns}
home, stage = Path(sys.argv[1]), all_stages()["grpo_checkpoint"]
table = Lake(home / "lake").table("grpo_checkpoint", "toy", stage.key, dtypes(stage.columns))
row = {"checkpoint": "grpo_checkpoint", "status": "ok", "row_version": "v", "row_inputs": "{}"}
table.commit(table.frame([{**row, "episodes": [episode]}]), {})
warehouse.refresh(home, all_stages())
found = warehouse.query(home, "select reward_brevity, reward_total from grpo_episodes").rows()
said = warehouse.query(home, "select comment from duckdb_columns() where column_name = 'reward_brevity'").rows()
print(json.dumps([found, earned.total, said[0][0]]))
"""


@pytest.mark.slow
def test_a_reward_added_by_one_function_is_weighed_stored_and_described(tmp_path):
    out = subprocess.run([sys.executable, "-c", ADDED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    found, total, meaning = json.loads(out.stdout.splitlines()[-1])
    assert found == [[1.0, total]]
    assert total == pytest.approx(1.0 * 0.0 + 1.0 + 1.0 + 0.0 + 8.0)  # no tags, a right match without a span, short
    assert meaning == "Reward: 1 where the last text is short."
    assert "brevity" not in REWARDS


def test_the_weights_of_a_recipe_are_a_value():
    weights = RewardWeights(format=0.25)
    assert dict(weights) == {"format": 0.25, "verification": 1.0, "retrieval": 1.0, "grounding": 1.0}
    assert (weights, hash(weights)) == (RewardWeights(format=0.25), hash(RewardWeights(format=0.25)))
    assert pickle.loads(pickle.dumps(weights)) == copy.deepcopy(weights) == weights
    with pytest.raises(TypeError):
        weights["format"] = 1.0
    with pytest.raises(ValueError, match=r"'format' has to be a finite number, not 'much'"):
        RewardWeights(format="much")


def test_weights_have_the_fingerprint_they_had_as_a_dataclass_and_each_one_counts():
    @dataclass(frozen=True)
    class RewardWeightsOnce:
        format: float = 0.5
        verification: float = 1.0
        retrieval: float = 1.0
        grounding: float = 1.0

    RewardWeightsOnce.__name__ = "RewardWeights"
    assert fingerprint(RewardWeights()) == fingerprint(RewardWeightsOnce())
    changed = [RewardWeights(**{name: 7.0}) for name in (*RewardWeights(), "brevity")]
    assert len({fingerprint(weights) for weights in (RewardWeights(), *changed)}) == 1 + len(changed)
