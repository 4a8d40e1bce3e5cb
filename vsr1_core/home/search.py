"""One search of a dataset by words: the ranking, and what the policy said about each video that it was shown."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import polars as pl

from vsr1_core.stages.base import View
from vsr1_core.stages.methods import BASIC, Method

if TYPE_CHECKING:
    from vsr1_core.search.episodes import Episode
    from vsr1_core.stages.opened import OpenedModels


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
        turn: The last turn, counted from 1, in which the policy was shown this video.
        decision: What the policy decided: `matched`, `not_matched`, or `unknown` where its answer cannot be read.
        start_s: Where the moment begins, in seconds from the video's start; None unless it matched with a span.
        end_s: Where the moment ends, in seconds from the video's start; None unless it matched with a span.
        reasoning: What the policy wrote before it decided.

    Example:
        >>> hit = Hit(rank=1, video="kitchen/morning", score=0.71, decision="matched", start_s=3.0, end_s=7.5)
        >>> f"{hit.video}: {hit.start_s} to {hit.end_s} s"
        'kitchen/morning: 3.0 to 7.5 s'
    """

    rank: int
    video: str
    score: float
    path: str | None = None
    turn: int | None = None
    decision: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    reasoning: str | None = None


def best_method(view: View) -> Method | None:
    """The last method of the report whose checkpoint is built. None where only the embedder is built.

    Raises:
        LookupError: No model is built; the message has the command that builds one.
    """
    for method in reversed(BASIC.values()):
        if method.row_id in view.versions(method.model):
            return method
    if "embedder" in view.versions("base_models"):
        return None
    raise LookupError(
        f"dataset {view.entry.name!r} has no model to search with; run: vsr1 build --dataset {view.entry.name}"
    )


def search_once(opened: OpenedModels, method: Method | None, text: str, split: str, top_k: int) -> list[Hit]:
    """The `top_k` videos of the last ranking, best first, after the policy's own refinements of the query.

    Where `method` is None, the embedder alone ranks the videos by the text as it is.

    Raises:
        ValueError: The text is blank, or `top_k` is less than 1.
        LookupError: A model or the index of `split` is not built; the message has the command that builds it.
    """
    from vsr1_core.search.episodes import EpisodeQuery

    if not text.strip():
        raise ValueError("the search text is blank; say what the moment shows")
    if top_k < 1:
        raise ValueError(f"top_k is the number of videos to return: at least 1, not {top_k}")
    index = opened.index(split)
    if method is None:
        episode, vector = None, opened.plain.get([text.strip()])[0]
    else:
        episode = opened.searcher(split, method).run([EpisodeQuery("search", text.strip())])[0]
        assert episode.final_vector is not None
        vector = episode.final_vector
    ids, scores = index.search(vector[None].float().cpu().numpy(), top_k)
    return _hits(opened.view, ids[0], scores[0], episode)


def _hits(view: View, ids: list[str], scores: list[float], episode: Episode | None) -> list[Hit]:
    paths = dict(view.rows("videos", ["video_id", "path"]).filter(pl.col("video_id").is_in(ids)).iter_rows())
    said = {turn.video_id: (number, turn) for number, turn in enumerate(episode.turns if episode else (), 1)}
    hits = []
    for rank, (video_id, score) in enumerate(zip(ids, scores, strict=True), 1):
        hit = Hit(rank, video_id, round(score, 4), paths.get(video_id))
        if video_id in said:
            number, turn = said[video_id]
            said_of = {name: getattr(turn.answer, name) for name in ("decision", "start_s", "end_s", "reasoning")}
            hit = replace(hit, turn=number, **said_of)
        hits.append(hit)
    return hits
