"""What the tables of a home say, for the page: datasets, videos, and evaluated queries. Nothing is searched here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from vsr1_core.datasets.registry import load_entries
from vsr1_core.home import warehouse
from vsr1_core.home.row_sql import quoted_text
from vsr1_core.home.search import built_methods
from vsr1_core.segments import best_of_each, video_of, window_of
from vsr1_core.serve.errors import without_folders
from vsr1_core.stages.base import View
from vsr1_core.stages.graph import open_view
from vsr1_core.stages.methods import ALL

OUTCOMES = {
    "found": "found",
    "wrong_span": "span off",
    "wrong_video_accepted": "wrongly accepted",
    "right_video_rejected": "wrongly rejected",
    "never_shown": "never shown",
    "no_prediction": "failed",
}
"""Outcomes of the view `outcomes` -> how the page calls them."""


EARLIER = "@earlier"
"""In place of a method: what the same method answered before the last build that changed its answer."""
BUILT_AT = "%Y-%m-%dT%H:%M:%S.%f"
MAX_EARLIER = 50
"""How many earlier answers to a query are listed."""


@dataclass(frozen=True)
class QueryFilter:
    """Which evaluated queries are listed. Empty values filter nothing. text: what the query contains. beside: a method
    whose outcomes stand beside, or EARLIER; differs: only queries whose outcome is another one there."""

    method: str = ""
    split: str = ""
    outcome: str = ""
    text: str = ""
    offset: int = 0
    limit: int = 50
    beside: str = ""
    differs: bool = False

    def where(self, dataset: str) -> str:
        """The condition in SQL; every value is quoted."""
        asked = {"method": self.method, "split": self.split, "outcome": self.outcome}
        same = [f"{name} = {quoted_text(value)}" for name, value in asked.items() if value]
        has = [f"contains(lower(query), {quoted_text(self.text.lower())})"] if self.text else []
        other = ["beside_outcome <> outcome"] if self.beside and self.differs else []
        return " AND ".join([f"dataset = {quoted_text(dataset)}", *same, *has, *other])

    def source(self, dataset: str) -> str:
        """SQL of the outcomes, with what stands beside as `beside_outcome`, `beside_rank` and `beside_built_at`."""
        other = "SELECT query_id, method, outcome AS beside_outcome, rank AS beside_rank"
        of_dataset = f"dataset = {quoted_text(dataset)}"
        if self.beside == EARLIER:
            before = f"{other}, built_at AS beside_built_at FROM prediction_history WHERE {of_dataset}"
            return f"outcomes LEFT JOIN ({before} AND states_ago = 1) USING (query_id, method)"
        named = f"{other}, NULL::TIMESTAMP AS beside_built_at FROM outcomes WHERE {of_dataset}"
        of_method = f"{named} AND method = {quoted_text(self.beside)}"
        return f"outcomes LEFT JOIN (SELECT * EXCLUDE (method) FROM ({of_method})) USING (query_id)"


@dataclass(frozen=True)
class Library:
    """The tables of the home at `home`."""

    home: Path

    def view(self, dataset: str) -> View:
        """LookupError: there is no such dataset."""
        return open_view(self.home, dataset)

    def datasets(self) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """What is built of each dataset; one that is not built at all is left out. And what is wrong with each dataset
        that cannot be read: the others can be searched."""
        found, problems = list[dict[str, Any]](), dict[str, str]()
        for name in load_entries(self.home):
            try:
                found.append(self._dataset(name))
            except (OSError, ValueError, LookupError) as error:
                problems[name] = without_folders(str(error))
        return [dataset for dataset in found if dataset["num_videos"]], problems

    def _dataset(self, name: str) -> dict[str, Any]:
        view = self.view(name)
        methods = built_methods(view)
        indexes = view.rows("video_index", ["split", "num_videos"])
        segments = view.rows("video_embeddings", ["video_id"])["video_id"]
        return {
            "name": name,
            "num_videos": len({video_of(segment_id) for segment_id in segments}),
            "splits": dict(indexes.iter_rows()),
            "methods": [{"name": m.name, "label": m.label, "says": m.says} for m in methods],
            "evaluated": [
                {"name": m.name, "label": m.label} for m in ALL.values() if view.versions(f"predictions.{m.name}")
            ],
        }

    def videos(self, dataset: str, text: str, offset: int, limit: int) -> dict[str, Any]:
        """Ids and lengths of the videos whose id contains `text`, sorted by id."""
        rows = self.view(dataset).rows("videos", ["video_id", "duration_s", "splits"]).sort("video_id")
        rows = rows.filter(pl.col("video_id").str.contains(text, literal=True)) if text else rows
        return {"total": rows.height, "videos": rows.slice(offset, limit).to_dicts()}

    def queries(self, dataset: str, wanted: QueryFilter) -> dict[str, Any]:
        """Evaluated queries with their outcomes, and how many there are of each outcome under the other filters."""
        self.view(dataset)
        columns = "method, query_id, split, query, outcome, gt_video_id, video_id, iou, first_rank, rank, num_turns"
        source, built = wanted.source(dataset), f"strftime(beside_built_at, '{BUILT_AT}') AS beside_built_at"
        without = replace(wanted, outcome="").where(dataset)
        with warehouse.queries(self.home) as ask:
            rows = ask(
                f"SELECT {columns}, beside_outcome, beside_rank, {built} "
                f"FROM {source} WHERE {wanted.where(dataset)} ORDER BY query_id, method "
                f"LIMIT {int(wanted.limit)} OFFSET {int(wanted.offset)}"
            )
            counted = ask(f"SELECT outcome, count(*) AS n FROM {source} WHERE {without} GROUP BY outcome")
        counts = dict(counted.iter_rows())
        total = counts.get(wanted.outcome, 0) if wanted.outcome else sum(counts.values())
        return {"total": total, "counts": counts, "queries": rows.to_dicts()}

    def query(self, dataset: str, query_id: str) -> dict[str, Any]:
        """One query: what is annotated, and what each method answered, turn by turn. LookupError: there is none."""
        moments = self.view(dataset).rows("moments").filter(pl.col("query_id") == query_id)
        if moments.is_empty():
            raise LookupError(f"dataset {dataset!r} has no query {query_id!r}")
        where = f"WHERE dataset = {quoted_text(dataset)} AND query_id = {quoted_text(query_id)}"
        with warehouse.queries(self.home) as ask:
            outcomes = dict(ask(f"SELECT method, outcome FROM outcomes {where}").iter_rows())
            turns = ask(f"SELECT * FROM turns {where} ORDER BY turn").to_dicts()
            answers = []
            for row in ask(f"SELECT * FROM predictions {where}").to_dicts():
                of_method = [_of_video(turn) for turn in turns if turn["method"] == row["method"]]
                answers.append({**row, "outcome": outcomes.get(row["method"]), "turns": of_method})
            earlier = _earlier(ask, dataset, query_id)
        names = list(ALL)
        answers.sort(key=lambda row: names.index(row["method"]) if row["method"] in ALL else len(names))
        return {"moment": moments.row(0, named=True), "answers": answers, "earlier": earlier}


def _earlier(ask: Callable[[str], pl.DataFrame], dataset: str, query_id: str) -> list[dict[str, Any]]:
    """What each method answered to the query after earlier builds, turn by turn, newest first. States that a version
    before this one kept have no turns."""
    asked = f"dataset = {quoted_text(dataset)} AND query_id = {quoted_text(query_id)} AND states_ago > 0"
    answers = ask(
        f"SELECT * EXCLUDE (dataset, is_gone) REPLACE (strftime(built_at, '{BUILT_AT}') AS built_at) "
        f"FROM prediction_history WHERE {asked} AND NOT is_gone "
        f"ORDER BY built_at DESC, method LIMIT {MAX_EARLIER}"
    ).to_dicts()
    turns = ask(f"SELECT * EXCLUDE (dataset, built_at, run_id) FROM turn_history WHERE {asked} ORDER BY turn")
    of_state: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for turn in turns.to_dicts():
        of_state.setdefault((turn["method"], turn["states_ago"]), []).append(_of_video(turn))
    return [{**one, "turns": of_state.get((one["method"], one["states_ago"]), [])} for one in answers]


def _of_video(turn: dict[str, Any]) -> dict[str, Any]:
    """A turn with the video whose window was shown, the window apart, and each video of the ranking once. Turns of
    earlier builds have no scores."""
    start_s, end_s = window_of(turn["video_id"]) or (None, None)
    top, scores = turn["top_video_ids"] or [], turn.get("top_scores") or []
    places = list(best_of_each(top))
    return {
        **turn,
        "video_id": video_of(turn["video_id"]),
        "window_start_s": start_s,
        "window_end_s": end_s,
        "top_video_ids": [video_of(top[place]) for place in places],
        "top_scores": [scores[place] for place in places if scores],
    }
