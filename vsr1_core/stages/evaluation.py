"""What each method answers: predictions, every evaluated query searched; and verification probes, every evaluated query
shown one right and one wrong video. A stage a method; scores are `stages.reporting`'s."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl

from vsr1_core.recipes import Configuration, Refine, fingerprint
from vsr1_core.stages.base import Execution, Row, Stage, View
from vsr1_core.stages.retrieval import same_text_videos

if TYPE_CHECKING:
    from vsr1_core.search.episodes import BestAnswer, Episode, EpisodeSettings, Searcher, Verification

TURN = pl.Struct(
    {
        "turn": pl.Int64,
        "video_id": pl.String,
        "score": pl.Float64,
        "rank": pl.Int64,
        "decision": pl.String,
        "matched_probability": pl.Float64,
        "reasoning": pl.String,
        "start_s": pl.Float64,
        "end_s": pl.Float64,
        "num_text_tokens": pl.Int64,
        "num_latent_tokens": pl.Int64,
        "num_query_tokens": pl.Int64,
        "new_query": pl.String,
        "text": pl.String,
    }
)
"""What `search.episodes.turn_row` gives."""


EXCLUDE = "+exclude_rejected"


@dataclass(frozen=True)
class Method:
    """A row of the report (METHOD 9): which checkpoint searches, how it refines, whether a rejected video may be shown
    again, and whether a query carries the soft tokens of its last turn only."""

    asset: str
    row_id: str
    refine: Refine
    exclude_rejected: bool = False
    last_latents: bool = False


BASIC_METHODS: dict[str, Method] = {
    "zero_shot": Method("base_models", "policy", "none"),
    "fine_tuned": Method("fine_tuned_checkpoint", "fine_tuned_checkpoint", "none"),
    "hard_refine": Method("hard_refine_checkpoint", "hard_refine_checkpoint", "text"),
    "sqr_sft": Method("sft_checkpoint", "sft_checkpoint", "soft"),
    "videosearch_r1": Method("grpo_checkpoint", "grpo_checkpoint", "soft"),
}
METHODS: dict[str, Method] = {
    **BASIC_METHODS,
    **{name + EXCLUDE: replace(method, exclude_rejected=True) for name, method in BASIC_METHODS.items()},
    **{
        f"{name}+last_latents": replace(BASIC_METHODS[name], last_latents=True)
        for name in ("sqr_sft", "videosearch_r1")
    },
    "sqr_sft+drop_above_positive": Method("drop_above_positive_checkpoint", "drop_above_positive_checkpoint", "soft"),
}
"""Behind a `+` the one thing that differs: with the name before it, an ablation."""


def methods_of(config: Configuration) -> tuple[str, ...]:
    """The methods that `config` reports. ValueError names one that does not exist, and those that do."""
    unknown = sorted(set(config.evaluation.methods) - set(METHODS))
    if unknown:
        raise ValueError(f"configuration {config.name!r}: no method {unknown[0]!r}; there are: {', '.join(METHODS)}")
    return config.evaluation.methods


def is_used(config: Configuration, asset: str) -> bool:
    """Whether a reported method searches with this asset's checkpoint."""
    return any(METHODS[name].asset == asset for name in methods_of(config))


def settings_of(method: str, config: Configuration, batch_size: int) -> EpisodeSettings:
    """How `method` searches. Without refinement and exclusion a second turn would repeat the first."""
    from vsr1_core.models.decoding import DecodeSettings
    from vsr1_core.search.episodes import EpisodeSettings

    recipe, how = config.evaluation, METHODS[method]
    return EpisodeSettings(
        num_turns=recipe.num_turns if how.refine != "none" or how.exclude_rejected else 1,
        refine=how.refine,
        exclude_rejected=how.exclude_rejected,
        last_latents=how.last_latents,
        decode=DecodeSettings(recipe.max_new_tokens, 0.0, config.models.num_soft_tokens),
        batch_size=batch_size,
    )


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
        return [self.method, recipe.num_turns, recipe.max_new_tokens, config.models.num_soft_tokens]

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
    searcher = Searcher(
        policy=policy,
        embedder=embedder,
        index=read_index(Path(one_row(view, "video_index", split)["path"])),
        features=frame_store(view, policy.model.model, execution),
        durations_s=durations_of(view),
        settings=settings_of(method, view.config, execution.batch_size * 2),
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


class VerificationProbe(Stage):
    """Every evaluated query shown its right video and the wrong one that ranks first, a greedy verification each.

    Nothing is searched, so both labels are equally frequent; the search's own verdicts are mostly about wrong videos.
    A query whose right video has no frames is left out, and one without a wrong video has a right probe only.
    Subclasses name the method.
    """

    method: ClassVar[str]
    key: ClassVar[str] = "probe_id"
    group: ClassVar[str] = "evaluation"
    columns: ClassVar[Mapping[str, Any]] = {
        "query_id": pl.String,
        "split": pl.String,
        "label": pl.String,
        "shown_video_id": pl.String,
        "decision": pl.String,
        "matched_probability": pl.Float64,
        "start_s": pl.Float64,
        "end_s": pl.Float64,
        "iou": pl.Float64,
        "num_text_tokens": pl.Int64,
    }

    def recipe(self, config: Configuration) -> Any:
        return [config.evaluation.max_new_tokens]

    def wanted(self, view: View) -> dict[str, Row]:
        """A new index makes no row stale whose wrong video still ranks first."""
        if self.method not in methods_of(view.config):
            return {}
        how = METHODS[self.method]
        checkpoint = view.versions(how.asset).get(how.row_id, "")
        frames = dict(view.rows("frame_tensors", ["video_id", "content"]).iter_rows())
        rows = {}
        for probe_id, probe in probes_of(view).items():
            inputs = {
                "query": fingerprint(probe["query"]),
                "shown": fingerprint([probe["shown_video_id"], probe["split"]]),
                "frames": frames[probe["shown_video_id"]],
                "checkpoint": checkpoint,
            }
            if probe["label"] == "matched":
                inputs["moment"] = fingerprint([probe["gt_start_s"], probe["gt_end_s"]])
            rows[probe_id] = Row(inputs, {name: probe[name] for name in PROBE_KNOWN})
        return rows

    def process(self, view: View, ids: Sequence[str], execution: Execution) -> Iterator[dict[str, Any]]:
        from vsr1_core.models.decoding import DecodeSettings
        from vsr1_core.search.episodes import verify
        from vsr1_core.stages.loading import durations_of, frame_store, policy_of

        how, probes = METHODS[self.method], probes_of(view)
        policy = policy_of(view, execution, how.asset, how.row_id)
        features, durations_s = frame_store(view, policy.model.model, execution), durations_of(view)
        settings = DecodeSettings(view.config.evaluation.max_new_tokens, 0.0, num_soft_tokens=0)
        size = execution.batch_size * 8
        for start in range(0, len(ids), size):
            some = [probes[i] for i in ids[start : start + size]]
            pairs = [(probe["query"], probe["shown_video_id"]) for probe in some]
            asked = verify(policy, features, durations_s, pairs, settings, execution.batch_size * 2)
            for probe, verification in zip(some, asked, strict=True):
                yield probe_row(probe, verification)


PROBE_KNOWN = ("query_id", "split", "label", "shown_video_id")


def probes_of(view: View) -> dict[str, dict[str, Any]]:
    """probe_id -> what is shown: label, shown_video_id, query_id, query, split, gt_start_s, gt_end_s.

    The wrong video is the first of the first ranking that is not right and shares no query text with it.
    Raises NotYetKnown while that ranking is still to be made.
    """
    probes = {}
    with_frames = set(view.rows("frame_tensors", ["video_id"])["video_id"])
    for split in view.config.evaluation.splits:
        of_split = pl.col("split") == split
        ranked = dict(view.results("first_ranking", ["query_id", "top_video_ids"], of_split).iter_rows())
        never = same_text_videos(view, split)
        for row in view.rows("moments").filter(of_split & pl.col("video_id").is_in(list(with_frames))).to_dicts():
            query_id = row["query_id"]
            shared = {"query_id": query_id, "query": row["query"], "split": split}
            shared |= {"gt_start_s": row["start_s"], "gt_end_s": row["end_s"]}
            shown = {"right": ("matched", row["video_id"])}
            candidates = (v for v in ranked.get(query_id, ()) if v not in never[query_id] and v in with_frames)
            if (wrong := next(candidates, None)) is not None:
                shown["wrong"] = ("not_matched", wrong)
            for side, (label, video_id) in shown.items():
                probes[f"{query_id}/{side}"] = {
                    **shared, "probe_id": f"{query_id}/{side}", "label": label, "shown_video_id": video_id
                }  # fmt: skip
    return probes


def probe_row(probe: Mapping[str, Any], asked: Verification) -> dict[str, Any]:
    """A verification as a row. `iou` is 0 unless the right video was matched."""
    from vsr1_core.evaluation.metrics import temporal_iou

    start_s, end_s = asked.answer.start_s, asked.answer.end_s
    iou = 0.0
    if probe["label"] == "matched" and start_s is not None and end_s is not None:
        iou = float(temporal_iou(start_s, end_s, probe["gt_start_s"], probe["gt_end_s"]))
    return {
        "probe_id": probe["probe_id"],
        **{name: probe[name] for name in PROBE_KNOWN},
        "decision": asked.answer.decision,
        "matched_probability": asked.decoded.matched_probability,
        "start_s": start_s,
        "end_s": end_s,
        "iou": iou,
        "num_text_tokens": asked.decoded.num_text_tokens,
    }


def _probe_of(method: str) -> type[VerificationProbe]:
    attributes = {
        "name": f"verification_probe.{method}",
        "method": method,
        "upstream": ("moments", "base_models", "frame_tensors", "first_ranking", METHODS[method].asset),
        "__doc__": f"Every evaluated query shown one right and one wrong video by {method}.",
    }
    return type(f"VerificationProbe_{method}", (VerificationProbe,), attributes)


PREDICTIONS = tuple(_stage_of(method) for method in METHODS)
PROBES = tuple(_probe_of(method) for method, how in BASIC_METHODS.items() if how.asset != "base_models")
STAGES: tuple[type[Stage], ...] = (*PREDICTIONS, *PROBES)
