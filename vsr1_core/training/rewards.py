"""The four rewards of METHOD 6 as pure functions of a finished episode. No torch, no model, no advantage.

Differences from the paper's text: rewards read whole episodes, not one turn on a stored ranking; a right rejection in
the last turn earns 0.5 for grounding, so that rejecting a wrong video is never worse than guessing a span in it.
An "unknown" decision counts as a wrong one everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vsr1_core.evaluation.spans import temporal_iou
from vsr1_core.reasoning.conversation import Decision, is_well_formed, parse_answer
from vsr1_core.recipes import RewardWeights

RIGHT_REJECTION = 0.5


@dataclass(frozen=True)
class TurnRecord:
    """One verification. `text` is the completion without its prompt; the span is in seconds, None without one."""

    text: str
    decision: Decision
    shown_is_right: bool
    start_s: float | None = None
    end_s: float | None = None

    @classmethod
    def from_text(cls, text: str, shown_is_right: bool, duration_s: float) -> TurnRecord:
        """The record of a completion about a video of `duration_s` seconds."""
        answer = parse_answer(text, duration_s)
        return cls(text, answer.decision, shown_is_right, answer.start_s, answer.end_s)

    @property
    def is_right(self) -> bool:
        return self.decision == ("matched" if self.shown_is_right else "not_matched")


@dataclass(frozen=True)
class EpisodeRecord:
    """What the rewards read. gt_start_s, gt_end_s: the query's span in its right video, in seconds.

    retrieval_loss: L_ret of the last refined query, or of the initial one where turn 1 matched.
    """

    turns: Sequence[TurnRecord]
    gt_start_s: float
    gt_end_s: float
    retrieval_loss: float


@dataclass(frozen=True)
class RewardBreakdown:
    """The four rewards before weighting, and their weighted sum."""

    format: float
    verification: float
    retrieval: float
    grounding: float
    total: float


def score_episode(episode: EpisodeRecord, weights: RewardWeights) -> RewardBreakdown:
    """All four rewards of an episode. ValueError for one without turns, or whose retrieval loss is NaN or negative."""
    if not episode.turns:
        raise ValueError("an episode without turns has no reward")
    parts = {
        "format": format_reward(episode.turns),
        "verification": verification_reward(episode.turns),
        "retrieval": retrieval_reward(episode.retrieval_loss),
        "grounding": grounding_reward(episode.turns[-1], episode.gt_start_s, episode.gt_end_s),
    }
    return RewardBreakdown(**parts, total=sum(getattr(weights, name) * value for name, value in parts.items()))


def format_reward(turns: Sequence[TurnRecord]) -> float:
    """Share of turns whose tags are exactly those of the decision taken, in [0, 1]."""
    return sum(is_well_formed(turn.text) for turn in turns) / len(turns)


def verification_reward(turns: Sequence[TurnRecord]) -> float:
    """Mean over turns of +1 for a right decision and -1 for a wrong or unknown one."""
    return sum(1 if turn.is_right else -1 for turn in turns) / len(turns)


def retrieval_reward(loss: float) -> float:
    """exp(-L_ret), in [0, 1]: the probability that the search gives the right video among its negatives."""
    if math.isnan(loss) or loss < -1e-6:
        raise ValueError(f"a retrieval loss cannot be {loss}: the query or a video vector is broken")
    return math.exp(-max(loss, 0.0))


def grounding_reward(last: TurnRecord, gt_start_s: float, gt_end_s: float) -> float:
    """Temporal IoU where the episode ends with a right match, 0.5 where it ends with a right rejection, else 0."""
    if not last.is_right:
        return 0.0
    if last.decision == "not_matched":
        return RIGHT_REJECTION
    if last.start_s is None or last.end_s is None:
        return 0.0
    return float(temporal_iou(last.start_s, last.end_s, gt_start_s, gt_end_s))
