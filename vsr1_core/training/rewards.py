"""The rewards of stage 2. Each is one decorated function of a finished episode; all lists of rewards follow from these.

To add a reward, write one more function with `@reward` at the end of this file. It is then computed, logged, and stored
as the column `reward_<name>` of the sampled episodes. Its weight is in the recipe (`recipes.RewardWeights`); a reward
without a weight adds nothing to the total. No torch, no model, no advantage here.

Differences from the text of the paper: rewards read whole episodes, not one turn on a stored ranking. A right rejection
in the last turn earns 0.5 for grounding, unless it writes a span, so that rejecting a wrong video is never worse than
guessing a span in it. An "unknown" decision counts as a wrong one everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vsr1_core.evaluation.spans import temporal_iou
from vsr1_core.reasoning.conversation import Decision, is_well_formed, writes_span

RIGHT_REJECTION = 0.5


@dataclass(frozen=True)
class TurnRecord:
    """One verification: what the policy wrote about one video, and whether the video is the right one."""

    text: str
    """The completion without its prompt."""
    decision: Decision
    shown_is_right: bool
    start_s: float | None = None
    """Start of the span in seconds; None if the completion has no span."""
    end_s: float | None = None

    @property
    def is_right(self) -> bool:
        """Whether the decision is right for the shown video; an unknown decision never is."""
        return self.decision == ("matched" if self.shown_is_right else "not_matched")


@dataclass(frozen=True)
class EpisodeRecord:
    """The facts about an episode that rewards read."""

    turns: Sequence[TurnRecord]
    gt_start_s: float
    """Start of the query's span in its right video, in seconds."""
    gt_end_s: float
    retrieval_loss: float
    """L_ret of the last refined query, or of the initial query if turn 1 matched."""
    system_prompt: str = ""
    """The policy's own prompt, which asks for the form of its texts; an empty text means the prompt of this project."""


@dataclass(frozen=True)
class Reward:
    """One reward: what it judges, and how."""

    name: str
    """The name of its weight in the recipe, of its logged values, and of its column `reward_<name>`."""
    says: str
    """What it judges, in one sentence."""
    low: float
    high: float
    """For any episode, the reward is in [low, high]."""
    judge: Callable[[EpisodeRecord], float]


REWARDS: dict[str, Reward] = {}
"""Every reward by its name, in the order of the columns."""
TOTAL = "total"
"""The name of the weighted sum of all rewards."""


def reward(
    name: str, *, says: str, low: float, high: float
) -> Callable[[Callable[[EpisodeRecord], float]], Callable[[EpisodeRecord], float]]:
    """Register a function of an episode as a reward.

    Args:
        name: The reward's name, a Python identifier, because it names a weight and a column.
        says: What it judges, in one sentence.
        low: The least that any episode can earn.
        high: The most that any episode can earn.

    Returns:
        A decorator that gives the function back unchanged.

    Raises:
        ValueError: The name is not an identifier or is used already, or the range is empty.
    """
    if not name.isidentifier() or name == TOTAL:
        raise ValueError(f"a reward cannot be named {name!r}: its name must be an identifier other than {TOTAL!r}")
    if name in REWARDS:
        raise ValueError(f"there is a reward {name!r} already; give the new one another name")
    if not low < high:
        raise ValueError(f"reward {name!r}: its range from {low} to {high} is empty; low must be below high")

    def register(judge: Callable[[EpisodeRecord], float]) -> Callable[[EpisodeRecord], float]:
        REWARDS[name] = Reward(name, says, low, high, judge)
        return judge

    return register


def reward_columns() -> dict[str, str]:
    """Column of a stored episode -> its meaning, for `reward_<name>` of every reward and for the total."""
    meanings = {name: f"Reward: {reward.says}" for name, reward in REWARDS.items()}
    meanings[TOTAL] = "Weighted sum of the rewards."
    return {f"reward_{name}": text for name, text in meanings.items()}


@dataclass(frozen=True)
class RewardBreakdown:
    """The rewards of an episode: every reward before weighting, and the weighted sum of all."""

    parts: Mapping[str, float]
    total: float

    def __getitem__(self, name: str) -> float:
        return self.total if name == TOTAL else self.parts[name]

    @property
    def names(self) -> tuple[str, ...]:
        """The rewards' names, and `total`."""
        return (*self.parts, TOTAL)

    @property
    def columns(self) -> dict[str, float]:
        """The columns of a stored episode: `reward_<name>` -> value."""
        return {f"reward_{name}": self[name] for name in self.names}


def check_weights(weights: Mapping[str, float]) -> None:
    """Raise ValueError if a weight belongs to no reward."""
    if unknown := sorted(set(weights) - set(REWARDS)):
        raise ValueError(
            f"the configuration has a weight for the reward {unknown[0]!r}, which does not exist; there are: "
            f"{', '.join(REWARDS)}. Use one of these names, or add a function with @reward to "
            "vsr1_core/training/rewards.py"
        )


def score_episode(episode: EpisodeRecord, weights: Mapping[str, float]) -> RewardBreakdown:
    """Judge an episode by every reward.

    Args:
        episode: The facts that rewards read.
        weights: Reward -> its weight in the total; a reward without a weight adds nothing.

    Returns:
        Every reward before weighting, and the weighted sum.

    Raises:
        ValueError: The episode has no turns, its retrieval loss is NaN or negative, a weight belongs to no reward, or
            a reward is outside its range.
    """
    if not episode.turns:
        raise ValueError("an episode without turns has no reward")
    check_weights(weights)
    parts = {name: _in_range(reward, reward.judge(episode)) for name, reward in REWARDS.items()}
    return RewardBreakdown(parts, total=sum(weights.get(name, 0.0) * value for name, value in parts.items()))


def _in_range(reward: Reward, value: float) -> float:
    if not reward.low - 1e-9 <= value <= reward.high + 1e-9:
        raise ValueError(f"reward {reward.name!r} is {value}, which is outside its range [{reward.low}, {reward.high}]")
    return value


# ---- the rewards -------------------------------------------------------------------------------------------------


@reward(
    "format",
    says="share of turns whose tags are exactly those that the policy's prompt asks for with the decision taken.",
    low=0.0,
    high=1.0,
)
def format_reward(episode: EpisodeRecord) -> float:
    return sum(is_well_formed(turn.text, episode.system_prompt) for turn in episode.turns) / len(episode.turns)


@reward(
    "verification",
    says="mean over turns of +1 for a right decision and -1 for a wrong or unknown one.",
    low=-1.0,
    high=1.0,
)
def verification_reward(episode: EpisodeRecord) -> float:
    return sum(1 if turn.is_right else -1 for turn in episode.turns) / len(episode.turns)


@reward(
    "retrieval",
    says="exp(-L_ret), the probability that the last query's search gives the right video among its negatives.",
    low=0.0,
    high=1.0,
)
def retrieval_reward(episode: EpisodeRecord) -> float:
    loss = episode.retrieval_loss
    if math.isnan(loss) or loss < -1e-6:
        raise ValueError(f"a retrieval loss cannot be {loss}: the query or a video vector is broken")
    return math.exp(-max(loss, 0.0))


@reward(
    "grounding",
    says="IoU of the span if the episode ends with a right match, 0.5 if it ends with a right rejection that writes no "
    "span, otherwise 0.",
    low=0.0,
    high=1.0,
)
def grounding_reward(episode: EpisodeRecord) -> float:
    last = episode.turns[-1]
    if not last.is_right:
        return 0.0
    if last.decision == "not_matched":
        return 0.0 if writes_span(last.text) else RIGHT_REJECTION
    if last.start_s is None or last.end_s is None:
        return 0.0
    return float(temporal_iou(last.start_s, last.end_s, episode.gt_start_s, episode.gt_end_s))
