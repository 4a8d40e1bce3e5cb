"""What a search returns: the verdict, both rankings, every turn, and what searched. Nothing is searched here.

The command line prints these objects, and the server sends them as JSON, so that all say the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

NOTHING_ABOVE = 0.05
"""Where more than this share of unrelated texts (`search.unrelated`) score as high, nothing like the query is there. At
99 texts, four of them may really fit the videos without a query that fits being taken for one that does not."""


@dataclass(frozen=True)
class Hit:
    """One video that a search found.

    Only videos that the policy was shown have a turn, a decision, a reasoning and possibly a span. Where an embedder
    searches without a policy, no video has these.

    Attributes:
        rank: Place in the last ranking, from 1.
        video: The video's id: its path below the folder, without the suffix.
        score: Cosine of the last version of the query and the video, in [-1, 1], rounded to 4 digits.
        path: The video's file; None where only its frames were imported.
        first_rank: Place in the first ranking, that of the query's own words, from 1.
        turn: The last turn, counted from 1, in which the policy was shown this video.
        decision: What the policy decided: `matched`, `not_matched`, or `unknown` where its answer cannot be read.
        matched_probability: Probability that the policy gave to `matched`, in [0, 1]; None where it did not decide.
        start_s: Where the moment begins, in seconds from the video's start; None unless it matched with a span.
        end_s: Where the moment ends, in seconds from the video's start; None unless it matched with a span.
        reasoning: What the policy wrote before it decided.
        window_start_s: Start of the window of a long video that ranks highest, in seconds from the video's start; None
            where the video is searched as a whole. Turn, decision and span are about this window.
        window_end_s: End of that window.

    Example:
        >>> hit = Hit(rank=1, video="kitchen/morning", score=0.71, decision="matched", start_s=3.0, end_s=7.5)
        >>> f"{hit.video}: {hit.start_s} to {hit.end_s} s"
        'kitchen/morning: 3.0 to 7.5 s'
    """

    rank: int
    video: str
    score: float
    path: str | None = None
    first_rank: int | None = None
    turn: int | None = None
    decision: str | None = None
    matched_probability: float | None = None
    start_s: float | None = None
    end_s: float | None = None
    reasoning: str | None = None
    window_start_s: float | None = None
    window_end_s: float | None = None

    @property
    def clip_s(self) -> tuple[float, float] | None:
        """(start, end) of what is to be played or cut out, in seconds: the span, else the window, else None."""
        for start_s, end_s in ((self.start_s, self.end_s), (self.window_start_s, self.window_end_s)):
            if start_s is not None and end_s is not None:
                return start_s, end_s
        return None


@dataclass(frozen=True)
class RankedVideo:
    """One place of a ranking. A video has one place, that of its best window.

    Attributes:
        video: The video's id.
        score: Cosine of the query, as it stood then, and the video, rounded to 4 digits.
        window_start_s: Start of the window that ranks here, in seconds from the video's start; None for a whole video.
        window_end_s: End of that window.
    """

    video: str
    score: float
    window_start_s: float | None = None
    window_end_s: float | None = None


@dataclass(frozen=True)
class ShownTurn:
    """One turn of a search: the video that the policy was shown, and what it said about it.

    Attributes:
        turn: Number of the turn, from 1.
        video: The shown video: the first one of this turn's ranking.
        score: Cosine of the query, as it stood in this turn, and the video, rounded to 4 digits.
        decision: `matched`, `not_matched`, or `unknown` where the answer cannot be read.
        matched_probability: Probability that the policy gave to `matched`, in [0, 1]; None where it did not decide.
        start_s: Where the moment begins, in seconds from the video's start; None unless it matched with a span.
        end_s: Where the moment ends, in seconds from the video's start; None unless it matched with a span.
        reasoning: What the policy wrote before it decided.
        new_query: The query that the policy rewrote in words; None where it did not.
        num_latent_tokens: How many soft tokens the query got after this turn.
        ranking: The first videos of this turn's ranking, best first, at most 10.
        last_rank: Place of the shown video in the last ranking, from 1; None while the search still runs.
        window_start_s: Start of the window that was shown, in seconds from the video's start; None for a whole video.
        window_end_s: End of that window.
    """

    turn: int
    video: str
    score: float
    decision: str
    matched_probability: float | None = None
    start_s: float | None = None
    end_s: float | None = None
    reasoning: str | None = None
    new_query: str | None = None
    num_latent_tokens: int = 0
    ranking: tuple[RankedVideo, ...] = ()
    last_rank: int | None = None
    window_start_s: float | None = None
    window_end_s: float | None = None


@dataclass(frozen=True)
class Found(Sequence[Hit]):
    """The result of one search; as a sequence, it is its hits, best first.

    Attributes:
        text: What was searched for; empty for a picture.
        dataset: Name of the dataset.
        split: The split whose videos were searched.
        hits: The first videos of the last ranking.
        first: The first videos of the first ranking, that of the query's own words.
        turns: Every video that the policy was shown, in order, also where it is not among the hits.
        method: Name of the method that searched; None where the embedder alone ranked the videos.
        checkpoint: Digest of the weights that verified; of the embedder where nothing was verified.
        image: Name of the picture that was searched with; None for a text.
        unrelated_share: Share of unrelated texts that score at least as high on these videos as the query's own words,
            in (0, 1]; None where a video was matched, or where it was not computed.
        seconds: How long the search itself took.
        loading_s: How long the models took to load before it; about 0 where they were open.

    Example:
        >>> found = Found("a dog", "mine", "test", hits=(Hit(1, "garden", 0.7),))
        >>> found.verdict, found[0].video
        ('not verified; videos by similarity follow', 'garden')
    """

    text: str
    dataset: str
    split: str
    hits: tuple[Hit, ...] = ()
    first: tuple[RankedVideo, ...] = ()
    turns: tuple[ShownTurn, ...] = ()
    method: str | None = None
    checkpoint: str = ""
    image: str | None = None
    unrelated_share: float | None = None
    seconds: float = field(default=0.0, compare=False)
    loading_s: float = field(default=0.0, compare=False)

    @property
    def matched_turn(self) -> int | None:
        """The turn, from 1, whose video the policy matched; None where it matched none."""
        return next((turn.turn for turn in self.turns if turn.decision == "matched"), None)

    @property
    def verdict(self) -> str:
        """The result in a few words."""
        if self.matched_turn is not None:
            return f"matched in turn {self.matched_turn}"
        begins = "not verified" if self.method is None else "nothing matched"
        if self.unrelated_share is not None and self.unrelated_share > NOTHING_ABOVE:
            share = f"unrelated texts score as high in {self.unrelated_share:.0%} of cases"
            return f"{begins}; nothing like that is here ({share}); nearest videos follow"
        return f"{begins}; {'videos by similarity' if self.method is None else 'nearest videos'} follow"

    @overload
    def __getitem__(self, at: int) -> Hit: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, at: int | slice) -> Hit | tuple[Hit, ...]:
        return self.hits[at]

    def __len__(self) -> int:
        """The number of hits."""
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def with_paths(self, paths: Mapping[str, str | None]) -> Found:
        """The same result with the file of each hit: video id -> path; None where it is not in `paths`."""
        hits = (dataclasses.replace(hit, path=paths.get(hit.video)) for hit in self.hits)
        return dataclasses.replace(self, hits=tuple(hits))

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values, for JSON; `verdict` and `matched_turn` come first."""
        return {"verdict": self.verdict, "matched_turn": self.matched_turn, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Found:
        """The result that `to_dict` gave.

        Raises:
            TypeError, KeyError: The values are not those of a result of this version.
        """
        kept = {f.name: values[f.name] for f in dataclasses.fields(cls)}
        turns = (ShownTurn(**{**turn, "ranking": _places(turn["ranking"])}) for turn in kept["turns"])
        hits = (Hit(**hit) for hit in kept["hits"])
        return cls(**{**kept, "hits": tuple(hits), "first": _places(kept["first"]), "turns": tuple(turns)})


def _places(values: Sequence[Mapping[str, Any]]) -> tuple[RankedVideo, ...]:
    return tuple(RankedVideo(**place) for place in values)
