"""Sampled episodes in plain values, for people to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vsr1_core.search.turn_rows import turn_row
from vsr1_core.training.rewards import RewardBreakdown
from vsr1_core.training.rollout import Rollout


@dataclass(frozen=True)
class EpisodeTrace:
    """One sampled episode for people to read, in plain values."""

    step: int
    sample: int
    """Index of the episode in its group."""
    query_id: str
    query: str
    gt_video_id: str
    gt_start_s: float
    gt_end_s: float
    first_rank: int | None
    """Rank of the right video for the query's own text."""
    rank: int | None
    """Rank of the right video in the last ranking."""
    reward: RewardBreakdown
    advantage: float
    turns: tuple[Mapping[str, Any], ...]
    """One row of `search.turn_rows.turn_row` per turn."""


def trace_of(step: int, sample: int, rollout: Rollout) -> EpisodeTrace:
    """The trace of an episode that was sampled in `step`, the `sample`-th of its group."""
    prompt, episode = rollout.prompt, rollout.episode
    return EpisodeTrace(
        step=step,
        sample=sample,
        query_id=prompt.query_id,
        query=prompt.query,
        gt_video_id=prompt.gt_video_id,
        gt_start_s=prompt.start_s,
        gt_end_s=prompt.end_s,
        first_rank=episode.first_rank,
        rank=episode.final_rank,
        reward=rollout.reward,
        advantage=rollout.advantage,
        turns=tuple(turn_row(number, turn) for number, turn in enumerate(episode.turns, 1)),
    )
