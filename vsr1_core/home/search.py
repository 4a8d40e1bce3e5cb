"""Search one dataset by words, as a person does: the ranking, and what the policy said of each video it was shown."""

from __future__ import annotations

from typing import Any

import polars as pl

from vsr1_core.stages.base import Execution, View
from vsr1_core.stages.methods import ALL, BASIC
from vsr1_core.stages.predictions import searcher_of


def best_method(view: View) -> str:
    """The last of the report's methods whose checkpoint is built. LookupError when there is none."""
    for method in reversed(BASIC.values()):
        if method.row_id in view.versions(method.model):
            return method.name
    raise LookupError(
        f"dataset {view.entry.name!r} has no model to search with; run: vsr1 build --dataset {view.entry.name}"
    )


def search_once(view: View, text: str, split: str, top_k: int, execution: Execution) -> list[dict[str, Any]]:
    """The `top_k` videos of the last ranking, best first, after the policy's own refinements of the query.

    Each row: rank, video_id, score, path, and, where the video was shown to the policy, turn, decision, start_s,
    end_s and reasoning. Raises ValueError for a blank text, LookupError when something is not built.
    """
    from vsr1_core.search.episodes import EpisodeQuery

    if not text.strip():
        raise ValueError("the search text is blank; say what the moment shows")
    searcher, _ = searcher_of(view, split, ALL[best_method(view)], execution)
    episode = searcher.run([EpisodeQuery("search", text.strip())])[0]
    assert episode.final_vector is not None
    ids, scores = searcher.index.search(episode.final_vector[None].float().cpu().numpy(), top_k)
    paths = dict(view.rows("videos", ["video_id", "path"]).filter(pl.col("video_id").is_in(ids[0])).iter_rows())
    said = {turn.video_id: (number, turn) for number, turn in enumerate(episode.turns, 1)}
    rows = []
    for rank, (video_id, score) in enumerate(zip(ids[0], scores[0], strict=True), 1):
        number, turn = said.get(video_id, (None, None))
        rows.append(
            {
                "rank": rank,
                "video_id": video_id,
                "score": round(score, 4),
                "turn": number,
                "decision": turn.answer.decision if turn else None,
                "start_s": turn.answer.start_s if turn else None,
                "end_s": turn.answer.end_s if turn else None,
                "reasoning": turn.answer.reasoning if turn else None,
                "path": paths.get(video_id),
            }
        )
    return rows
