"""An episode and its turns: what is asked, what was shown, what the policy answered. `search.episodes` plays them.

A `video_id` of what was shown, ranked or rejected may name a window of a video (`vsr1_core.segments`); `gt_video_id`
never does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from vsr1_core.models.prompts import Prompt
from vsr1_core.models.protocols import Decoded
from vsr1_core.reasoning.conversation import Answer

Ranked = tuple[tuple[str, float], ...]
"""The first videos of a ranking, best first: (video id, cosine)."""


@dataclass(frozen=True)
class EpisodeQuery:
    """A query to search for. `gt_video_id` is None if the right video is not known; all ranks are None then."""

    query_id: str
    text: str
    gt_video_id: str | None = None


@dataclass
class Turn:
    """One verification: the shown video (first in the ranking), its score, the rank of the right video, the answer."""

    video_id: str
    score: float
    rank: int | None
    prompt: Prompt
    decoded: Decoded
    answer: Answer
    num_query_tokens: int = 0
    """How many of the decoded tokens are a new query."""
    ranked: Ranked = ()
    """The first videos of the ranking in which the shown video is the first."""


@dataclass
class Episode:
    """All turns of one query.

    The last ranking is that of the matched turn, or the one after the last refinement: `final_rank` is the rank of the
    right video in it, `final_video_id` and `final_score` are its first video, `ranked` its first videos, and
    `final_vector` [D] is the query vector that made it, as `first_vector` made the first ranking. `search_text` is the
    text that is embedded: the query, until the policy writes a new one. The policy is always asked about the query
    itself. `plain_vector` [D] is the known vector of the query's own text."""

    query: EpisodeQuery
    turns: list[Turn] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    rejected: set[str] = field(default_factory=set)
    first_rank: int | None = None
    final_rank: int | None = None
    final_video_id: str = ""
    final_score: float = 0.0
    final_vector: Tensor | None = None
    first_vector: Tensor | None = None
    ranked: Ranked = ()
    search_text: str = ""
    plain_vector: Tensor | None = None

    def __post_init__(self) -> None:
        self.search_text = self.search_text or self.query.text

    @property
    def is_matched(self) -> bool:
        """Whether the policy matched the video of the last turn."""
        return bool(self.turns) and self.turns[-1].answer.decision == "matched"


@dataclass(frozen=True)
class BestAnswer:
    """The best answer: the turn and its video, the span in seconds (None if none can be read), and how many tokens were
    decoded for the span in addition to those of the episode."""

    turn: int
    video_id: str
    start_s: float | None
    end_s: float | None
    num_text_tokens: int = 0


def best_turn(episode: Episode) -> Turn | None:
    """The turn of the best answer: the match, or else the turn of the highest match probability (the earlier one on a
    tie). None if no turn has a decision."""
    if episode.is_matched:
        return episode.turns[-1]
    decided = [turn for turn in episode.turns if turn.decoded.matched_probability is not None]
    return max(decided, key=lambda turn: turn.decoded.matched_probability or 0.0, default=None)
