"""What each method answers: predictions, every evaluated query searched; and verification probes, every evaluated query
shown one right and one wrong video. A stage a method; scores are `stages.reporting`'s."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl

from vsr1_core.recipes import Configuration
from vsr1_core.rows.versions import fingerprint
from vsr1_core.stages.base import Execution, Row, Stage, View
from vsr1_core.stages.methods import METHODS, methods_of, num_turns_of, settings_of
from vsr1_core.stages.turns import TURN

if TYPE_CHECKING:
    from vsr1_core.search.episodes import BestAnswer, Episode, Searcher


class Predictions(Stage):
    """One row a query of the evaluated splits; none where the configuration does not report the method, which
    subclasses name.

    video_id, start_s, end_s, iou: the strict answer. best_*: that of the policy `best` (`search.episodes.BestAnswer`);
    num_best_tokens were decoded for its span alone and are not part of num_text_tokens. num_query_tokens: of the text
    tokens, those of new queries' words. prefix_ranks: of a softly refined query, the right video's last rank had every
    turn brought its first 0, 1, .. N soft tokens only.
    """

    method: ClassVar[str]
    key: ClassVar[str] = "query_id"
    group: ClassVar[str] = "evaluation"
    columns: ClassVar[Mapping[str, Any]] = {
        "split": pl.String,
        "query": pl.String,
        "gt_video_id": pl.String,
        "gt_start_s": pl.Float64,
        "gt_end_s": pl.Float64,
        "video_id": pl.String,
        "rank": pl.Int64,
        "first_rank": pl.Int64,
        "decision": pl.String,
        "start_s": pl.Float64,
        "end_s": pl.Float64,
        "iou": pl.Float64,
        "num_turns": pl.Int64,
        "num_text_tokens": pl.Int64,
        "num_latent_tokens": pl.Int64,
        "num_query_tokens": pl.Int64,
        "matched_probability": pl.Float64,
        "checkpoint": pl.String,
        "best_video_id": pl.String,
        "best_turn": pl.Int64,
        "best_start_s": pl.Float64,
        "best_end_s": pl.Float64,
        "best_iou": pl.Float64,
        "num_best_tokens": pl.Int64,
        "prefix_ranks": pl.List(pl.Int64),
        "turns": pl.List(TURN),
    }

    def recipe(self, config: Configuration) -> Any:
        recipe = config.evaluation
        return [self.method, num_turns_of(self.method, recipe), recipe.max_new_tokens]

    def wanted(self, view: View) -> dict[str, Row]:
        if self.method not in methods_of(view.config):
            return {}
        method = METHODS[self.method]
        indexes = view.versions("video_index")
        checkpoint = view.versions(method.asset).get(method.row_id, "")
        embedder = view.versions("base_models").get("embedder", "")
        moments = view.rows("moments").filter(pl.col("split").is_in(list(view.config.evaluation.splits)))
        return {
            row["query_id"]: Row(
                {
                    "query": fingerprint(row["query"]),
                    "moment": fingerprint([row["video_id"], row["start_s"], row["end_s"], row["split"]]),
                    "video_index": indexes.get(row["split"], ""),
                    "checkpoint": checkpoint,
                    "embedder": embedder,
                }
            )
            for row in moments.to_dicts()
        }

    def process(self, view: View, ids: Sequence[str], execution: Execution) -> Iterator[dict[str, Any]]:
        moments = view.rows("moments").filter(pl.col("query_id").is_in(list(ids)))
        indexes = view.versions("video_index")
        for (split,), rows in moments.partition_by("split", as_dict=True).items():
            if split not in indexes:
                for row in rows.to_dicts():
                    yield {"query_id": row["query_id"], "error": f"no video of split {split!r} could be indexed"}
                continue
            searcher, digest = searcher_of(view, str(split), self.method, execution)
            # Chunks so that a killed run keeps what it has searched; a chunk is a few batches of decoding.
            size = execution.batch_size * 8
            for start in range(0, rows.height, size):
                yield from _search(searcher, rows[start : start + size].to_dicts(), digest)


def searcher_of(view: View, split: str, method: str, execution: Execution) -> tuple[Searcher, str]:
    """A searcher over one split's corpus by `method`, and its checkpoint's digest."""
    from vsr1_core.search.episodes import Searcher
    from vsr1_core.search.index import read_index
    from vsr1_core.stages.loading import durations_of, embedder_of, frame_store, one_row, policy_of, query_vectors

    how = METHODS[method]
    policy, embedder = policy_of(view, execution, how.asset, how.row_id), embedder_of(view, execution)
    num_tokens = policy.model.soft_query.num_soft_tokens
    searcher = Searcher(
        policy=policy,
        embedder=embedder,
        index=read_index(Path(one_row(view, "video_index", split)["path"])),
        features=frame_store(view, policy.model.model, execution),
        durations_s=durations_of(view),
        settings=settings_of(method, view.config.evaluation, num_tokens, execution.batch_size * 2),
        plain=query_vectors(view, embedder, execution),
    )
    return searcher, str(one_row(view, how.asset, how.row_id)["digest"])


def _search(searcher: Searcher, moments: Sequence[Mapping[str, Any]], digest: str) -> Iterator[dict[str, Any]]:
    from vsr1_core.search.episodes import EpisodeQuery

    queries = [EpisodeQuery(m["query_id"], m["query"], m["video_id"]) for m in moments]
    episodes = searcher.run(queries)
    best, prefix_ranks = searcher.best_answers(episodes), searcher.prefix_ranks(episodes)
    for moment, episode, answer, ranks in zip(moments, episodes, best, prefix_ranks, strict=True):
        yield prediction_row(moment, episode, answer) | {"prefix_ranks": ranks, "checkpoint": digest}


def prediction_row(moment: Mapping[str, Any], episode: Episode, best: BestAnswer | None) -> dict[str, Any]:
    """An episode as a predictions row: the strict answer (METHOD 2), which is a miss where nothing was matched, and
    beside it the best one."""
    from vsr1_core.search.episodes import turn_row

    last = episode.turns[-1]
    matched = episode.is_matched
    start_s, end_s = (last.answer.start_s, last.answer.end_s) if matched else (None, None)
    return {
        "query_id": moment["query_id"],
        "split": moment["split"],
        "query": moment["query"],
        "gt_video_id": moment["video_id"],
        "gt_start_s": moment["start_s"],
        "gt_end_s": moment["end_s"],
        "video_id": last.video_id if matched else episode.final_video_id,
        "rank": episode.final_rank,
        "first_rank": episode.first_rank,
        "decision": last.answer.decision,
        "start_s": start_s,
        "end_s": end_s,
        "iou": _iou(moment, last.video_id, start_s, end_s),
        "best_video_id": best.video_id if best else None,
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
        "turns": [turn_row(number, turn) for number, turn in enumerate(episode.turns, 1)],
    }


def _iou(moment: Mapping[str, Any], video_id: str, start_s: float | None, end_s: float | None) -> float:
    """0 in a wrong video and without a span."""
    from vsr1_core.evaluation.metrics import temporal_iou

    if video_id != moment["video_id"] or start_s is None or end_s is None:
        return 0.0
    return float(temporal_iou(start_s, end_s, moment["start_s"], moment["end_s"]))


def _stage_of(method: str) -> type[Predictions]:
    asset = METHODS[method].asset
    upstream = ("moments", "base_models", "frame_tensors", "video_embeddings", "video_index")
    attributes = {
        "name": f"predictions.{method}",
        "method": method,
        "upstream": (*upstream, *(() if asset in upstream else (asset,))),
        "__doc__": f"Every evaluated query searched by {method}.",
    }
    return type(f"Predictions_{method}", (Predictions,), attributes)


PREDICTIONS = tuple(_stage_of(method) for method in METHODS)
STAGES: tuple[type[Stage], ...] = PREDICTIONS
