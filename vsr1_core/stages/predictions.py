"""Predictions: every evaluated query is searched for, by one stage per method. `stages.reporting` scores them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import polars as pl

from vsr1_core.evaluation.row_types import MomentRow, PredictionRow, RankedTurnRow
from vsr1_core.recipes import Configuration
from vsr1_core.rows.columnar import Computed
from vsr1_core.rows.versions import fingerprint
from vsr1_core.segments import video_of
from vsr1_core.stages import columns as c
from vsr1_core.stages.base import Row, Stage, View
from vsr1_core.stages.columns import Column
from vsr1_core.stages.loading import asked_with, vectors_of
from vsr1_core.stages.methods import ALL, Method, methods_of, num_turns_of
from vsr1_core.stages.model_folders import is_absent
from vsr1_core.stages.model_rows import ModelRows
from vsr1_core.stages.moments import as_moment, moment_rows, moments_by
from vsr1_core.stages.opened import OpenedModels
from vsr1_core.stages.reads import EMBEDDER, of_split, one, same
from vsr1_core.stages.turns import KEPT_OF_TURNS, RANKED_TURN

if TYPE_CHECKING:
    import torch

    from vsr1_core.search.episodes import Searcher
    from vsr1_core.search.turns import BestAnswer, Episode


KEPT_OF_PREDICTIONS = (
    *("split", "query", "gt_video_id", "gt_start_s", "gt_end_s", "video_id", "rank", "first_rank", "decision"),
    *("start_s", "end_s", "iou", "num_turns", "num_text_tokens", "num_latent_tokens", "matched_probability"),
    *("checkpoint", "prefix_ranks", "top_video_ids"),
)
"""The columns that are kept of each prediction as each build left it."""


class Predictions(ModelRows):
    """One row per query of the evaluated splits; no rows where the configuration does not report the method, or where
    the dataset has nothing to train its checkpoint on.

    video_id, start_s, end_s, iou: the strict answer, a miss where nothing was matched. best_*: the answer of the answer
    policy `best` (`search.turns.BestAnswer`). num_best_tokens were decoded for its span alone and are no part of
    num_text_tokens. Answers and ranks are about videos; what was ranked and shown, in `top_video_ids` and `turns`, may
    be windows of them.
    """

    key = "query_id"
    group = "evaluation"
    version = 8
    keeps_rows = True
    is_planned_from_tables = True
    planned_by_row = ("moments", "query_embeddings")
    uses = ("frame_tensors", "video_embeddings")
    columns = {
        "split": c.SPLIT,
        "query": c.QUERY,
        "gt_video_id": c.GT_VIDEO_ID,
        "gt_start_s": c.GT_START_S,
        "gt_end_s": c.GT_END_S,
        "video_id": c.text("Id of the answered video: the matched video, else the first video of the last ranking."),
        "rank": c.integer("Rank of the right video in the last ranking; null where the video is not indexed."),
        "first_rank": c.FIRST_RANK,
        "decision": c.text("Decision of the last turn: `matched`, `not_matched` or `unknown`."),
        "start_s": c.number("Start of the answered span in seconds; null where nothing was matched."),
        "end_s": c.number("End of the answered span in seconds; null where nothing was matched."),
        "iou": c.IOU,
        "num_turns": c.integer("Number of turns: videos that the policy was shown."),
        "num_text_tokens": c.NUM_TEXT_TOKENS,
        "num_latent_tokens": c.NUM_LATENT_TOKENS,
        "num_query_tokens": c.NUM_QUERY_TOKENS,
        "matched_probability": c.MATCHED_PROBABILITY,
        "checkpoint": c.text("Digest of the weights of the policy that answered."),
        "best_video_id": c.text(
            "Video of the answer policy `best`: the matched one, else the shown one that most probably matches."
        ),
        "best_turn": c.integer("Turn, counted from 1, in which `best_video_id` was shown."),
        "best_start_s": c.number("Start of the span of the answer policy `best`, in seconds."),
        "best_end_s": c.number("End of the span of the answer policy `best`, in seconds."),
        "best_iou": c.number("Temporal IoU of the `best` span and the right span; 0 for a wrong video."),
        "num_best_tokens": c.integer("Text tokens decoded for the `best` span alone; `num_text_tokens` excludes them."),
        "prefix_ranks": Column(
            pl.List(pl.Int64),
            "Last rank of the right video if each turn had added only its first 0, 1, 2, ... soft tokens to the query.",
        ),
        **c.TOP,
        "turns": Column(
            pl.List(RANKED_TURN), "Turns of the episode, one struct per turn; the view `turns` has them as rows."
        ),
    }

    def __init__(self, method: Method) -> None:
        self.method = method
        self.name = f"predictions.{method.name}"
        self.says = f"One row per evaluated query: the answer of {method.label}. {method.says}"
        self.models = ((method.model, method.row_id), ("base_models", "embedder"))
        self.reads = {
            "query": same("moments"),
            "query_embedding": same("query_embeddings"),
            "moment": same("moments"),
            "video_index": of_split("video_index"),
            "checkpoint": one(method.model, method.row_id),
            "embedder": EMBEDDER,
        }

    def kept_rows(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows with what the page shows of their turns. `shown_video_ids` is what earlier versions kept of turns."""
        shown = pl.col("turns").list.eval(pl.element().struct.field("video_id")).alias("shown_video_ids")
        turns = pl.col("turns").list.eval(pl.struct(pl.element().struct.field(name) for name in KEPT_OF_TURNS))
        return rows.select(self.key, *KEPT_OF_PREDICTIONS, "error", shown, turns)

    def recipe(self, config: Configuration) -> Any:
        recipe = config.evaluation
        turns = num_turns_of(self.method, recipe)
        return [self.method.name, turns, recipe.max_new_tokens, *asked_with(config)]

    def concerns(self, view: View) -> bool:
        return self.method.name in methods_of(view.config)

    def plan(self, view: View) -> Mapping[str, Row]:
        model = (self.method.model, self.method.row_id)
        if not self.concerns(view) or is_absent(view, *model):
            return {}
        splits = view.config.evaluation.splits
        indexes, vectors = dict(view.versions("video_index")), view.versions("query_embeddings", splits)
        checkpoint = view.version(*model)
        embedder = view.version("base_models", "embedder")

        def row(moment: MomentRow) -> Row:
            inputs = {
                "query": fingerprint(moment["query"]),
                "query_embedding": vectors.get(moment["query_id"], ""),
                "moment": fingerprint([moment["video_id"], moment["start_s"], moment["end_s"], moment["split"]]),
                "video_index": indexes.get(moment["split"], ""),
                "checkpoint": checkpoint,
                "embedder": embedder,
            }
            return Row(inputs, facts=moment)

        return Computed(moments_by(moment_rows(view, splits), "query_id", as_moment), row)

    def open(self, opened: OpenedModels, rows: Mapping[str, Row]) -> None:
        for split in {row.facts["split"] for row in rows.values()} & set(opened.view.versions("video_index")):
            opened.searcher(split, self.method)

    def make_with(self, opened: OpenedModels, rows: Mapping[str, Row]) -> Iterator[dict[str, Any]]:
        view = opened.view
        indexes, embedded = view.versions("video_index"), view.versions("query_embeddings")
        of_splits: dict[str, list[MomentRow]] = {}
        for query_id, row in rows.items():
            moment: MomentRow = row.facts
            if query_id not in embedded:
                yield {"query_id": query_id, "error": "its query has no embedding; see its row of query_embeddings"}
                continue
            of_splits.setdefault(moment["split"], []).append(moment)
        for split, moments in of_splits.items():
            if split not in indexes:
                error = f"no video of split {split!r} could be indexed"
                yield from ({"query_id": moment["query_id"], "error": error} for moment in moments)
                continue
            searcher, digest = opened.searcher(split, self.method), opened.checkpoint(self.method)
            # A killed run keeps the chunks that it has searched; a chunk is a few batches of decoding.
            size = opened.execution.batch_size * 8
            for start in range(0, len(moments), size):
                some = moments[start : start + size]
                vectors = vectors_of(view, "query_embeddings", [moment["query_id"] for moment in some])
                yield from _search(searcher, some, vectors, digest)


def _search(
    searcher: Searcher, moments: Sequence[MomentRow], vectors: torch.Tensor, digest: str
) -> Iterator[dict[str, Any]]:
    """vectors: the stored vectors [Q, D] of the plain queries, by which `first_ranking` ranks, so that the first turn
    has the same ranking. A query head would have to be applied to them, so a policy that has one embeds them anew."""
    from vsr1_core.search.turns import EpisodeQuery

    queries = [EpisodeQuery(m["query_id"], m["query"], m["video_id"]) for m in moments]
    device = searcher.embedder.device
    episodes = searcher.run(queries, vectors.to(device) if searcher.embedder.head is None else None)
    best, prefix_ranks = searcher.best_answers(episodes), searcher.prefix_ranks(episodes)
    for moment, episode, answer, ranks in zip(moments, episodes, best, prefix_ranks, strict=True):
        yield dict(prediction_row(moment, episode, answer, ranks, digest))


def prediction_row(
    moment: MomentRow, episode: Episode, best: BestAnswer | None, prefix_ranks: list[int] | None, digest: str
) -> PredictionRow:
    """An episode as a row of predictions. digest: that of the checkpoint.

    The row has the strict answer, which is a miss where nothing was matched, and the answer `best` in columns of its
    own.
    """
    from vsr1_core.search.turn_rows import ranked_turn_row

    last = episode.turns[-1]
    turns = [ranked_turn_row(number, turn) for number, turn in enumerate(episode.turns, 1)]
    matched = episode.is_matched
    start_s, end_s = (last.answer.start_s, last.answer.end_s) if matched else (None, None)
    return {
        "query_id": moment["query_id"],
        "split": moment["split"],
        "query": moment["query"],
        "gt_video_id": moment["video_id"],
        "gt_start_s": moment["start_s"],
        "gt_end_s": moment["end_s"],
        "video_id": video_of(last.video_id if matched else episode.final_video_id),
        "rank": episode.final_rank,
        "first_rank": episode.first_rank,
        "decision": last.answer.decision,
        "start_s": start_s,
        "end_s": end_s,
        "iou": _iou(moment, last.video_id, start_s, end_s),
        "best_video_id": video_of(best.video_id) if best else None,
        "best_turn": best.turn if best else None,
        "best_start_s": best.start_s if best else None,
        "best_end_s": best.end_s if best else None,
        "best_iou": _iou(moment, best.video_id, best.start_s, best.end_s) if best else 0.0,
        "num_best_tokens": best.num_text_tokens if best else 0,
        "num_turns": len(episode.turns),
        "num_text_tokens": sum(t.decoded.num_text_tokens for t in episode.turns),
        "num_latent_tokens": sum(t.decoded.num_latent_tokens for t in episode.turns),
        "num_query_tokens": sum(t.num_query_tokens for t in episode.turns),
        "matched_probability": last.decoded.matched_probability,
        "checkpoint": digest,
        "prefix_ranks": prefix_ranks,
        "top_video_ids": [video_id for video_id, _ in episode.ranked],
        "top_scores": [score for _, score in episode.ranked],
        "turns": cast("list[RankedTurnRow]", turns),
    }


def _iou(moment: MomentRow, segment_id: str, start_s: float | None, end_s: float | None) -> float:
    """Temporal IoU of a span of a segment's video and the moment; 0 in a wrong video and without a span."""
    from vsr1_core.evaluation.spans import temporal_iou

    if video_of(segment_id) != moment["video_id"] or start_s is None or end_s is None:
        return 0.0
    return float(temporal_iou(start_s, end_s, moment["start_s"], moment["end_s"]))


STAGES: tuple[Callable[[], Stage], ...] = tuple(partial(Predictions, method) for method in ALL.values())
