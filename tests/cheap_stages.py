"""The whole graph with the work of models replaced by hashes of what the models would read.

Only `make` (or `make_own`, for models) is replaced: what rows are wanted, their versions, and all stages without a
model are the real ones. A hash covers the upstream rows' content and never their versions, so a row that should have
been made again and was not differs from one made from scratch.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from vsr1_core.rows.files import digest_file, write_json
from vsr1_core.rows.versions import fingerprint
from vsr1_core.segments import video_of
from vsr1_core.stages.base import Row, Stage, View
from vsr1_core.stages.base_models import BaseModels
from vsr1_core.stages.embeddings import QueryEmbeddings, VideoEmbeddings
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import all_stages, in_order
from vsr1_core.stages.loading import one_row
from vsr1_core.stages.model_folders import IN_TRAIN, ModelStage
from vsr1_core.stages.moments import IS_TRAIN, same_text_videos
from vsr1_core.stages.predictions import Predictions
from vsr1_core.stages.probes import VerificationProbe, probe_row
from vsr1_core.stages.reporting import Report
from vsr1_core.stages.trained import TrainedStage

DIM = 8


def digest(*values: Any) -> str:
    """Of any nested values; of floats 4 digits, as scores differ in their last bits with the size of a batch."""
    return fingerprint(json.loads(json.dumps(values, default=str), parse_float=lambda text: round(float(text), 4)))


def unit_vector(text: str) -> np.ndarray:
    """A vector of length 1 that `text` decides."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    vector = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return vector / np.linalg.norm(vector)


def frames_digests(view: View, video_ids: Sequence[str]) -> dict[str, str]:
    """What a vision tower would see: the pixels on disk, and their times."""
    rows = view.rows("frame_tensors", ["video_id", "path", "timestamps_s"])
    rows = rows.filter(pl.col("video_id").is_in(list(video_ids)))
    return {video_id: digest(digest_file(Path(path)), times) for video_id, path, times in rows.iter_rows()}


def model_digest(view: View, asset: str, row_id: str) -> str:
    return str(one_row(view, asset, row_id)["digest"])


class CheapQueries(QueryEmbeddings):
    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        embedder = model_digest(view, "base_models", "embedder")
        queries = dict(view.rows("moments", ["query_id", "query"]).iter_rows())
        for query_id, row in rows.items():
            vector = unit_vector(f"{embedder} {queries[query_id]}").tolist()
            yield {"query_id": query_id, **row.known, "vector": vector}


class CheapVideos(VideoEmbeddings):
    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        embedder = model_digest(view, "base_models", "embedder")
        splits = dict(view.rows("frame_tensors", ["video_id", "splits"]).iter_rows())
        for video_id, frames in frames_digests(view, list(rows)).items():
            vector = unit_vector(f"{embedder} {frames}").tolist()
            yield {"video_id": video_id, "splits": splits[video_id], "vector": vector}


class CheapModels(ModelStage):
    """A model is the digest of all that it was trained on."""

    def model_row(
        self, view: View, row_id: str, content: str, options: Mapping[str, Any] | None, parent: str | None = None
    ) -> dict[str, Any]:
        folder = self.folder(view, row_id)
        write_json(folder / "model.json", {"content": content})
        row = {"path": str(folder), "digest": content, "record": "{}", "curve": [], "parent": parent}
        return {self.key: row_id, **row, "options": options}


class CheapBaseModels(CheapModels, BaseModels):
    def make_own(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        read = ("video_id", "start_s", "end_s", "plain_query", "query")
        captions = sorted(view.rows("moments").filter(IS_TRAIN).select(read).rows())
        videos = view.rows("frame_tensors").filter(IN_TRAIN)["video_id"].to_list()
        models = view.config.models
        content = [captions, sorted(frames_digests(view, videos).items()), str(models.tiny)]
        options = {"embedder": None, "policy": asdict(models.options)}
        yield from (self.model_row(view, i, digest(*content, i, options[i]), options[i]) for i in rows)


class CheapTraining(CheapModels, TrainedStage):
    def make_own(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        data = self.trained.examples
        columns = ["query_id", *view.stages[data].columns]
        examples = view.rows(data, columns).sort("query_id").rows()
        never = same_text_videos(view)
        corpus = view.rows("video_embeddings", ["video_id", "splits", "vector"]).filter(IN_TRAIN).sort("video_id")
        videos = corpus["video_id"].to_list()
        parent = model_digest(view, *self.trained.parent)
        content = digest(
            parent,
            model_digest(view, "base_models", "embedder"),
            examples,
            [sorted(never[example[0]]) for example in examples],
            corpus.drop("splits").rows(),
            sorted(frames_digests(view, videos).items()),
            str(self.recipe(view.config)),
        )
        options = self.made_with(one_row(view, *self.trained.parent)["options"])
        yield from (self.model_row(view, row_id, digest(content, options), options, parent) for row_id in rows)


class CheapPredictions(Predictions):
    """Answers with the video nearest to a vector that query and models decide; every second one is matched."""

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        from vsr1_core.search.index import read_index

        checkpoint = model_digest(view, self.method.model, self.method.row_id)
        embedder = model_digest(view, "base_models", "embedder")
        indexes = {s: read_index(Path(p)) for s, p in view.rows("video_index", ["split", "path"]).iter_rows()}
        moments = {r["query_id"]: r for r in view.rows("moments").to_dicts()}
        for moment in (moments[i] for i in rows):
            index = indexes.get(moment["split"])
            if index is None:
                yield {"query_id": moment["query_id"], "error": "no index"}
                continue
            vector = unit_vector(f"{embedder} {moment['query']}")[None]
            first_rank = index.ranks(vector, [moment["video_id"]])[0]
            (best,) = index.search(vector, 1)[0][0]
            seen = frames_digests(view, [best])[best]
            verdict = digest(checkpoint, moment["query"], seen)
            yield self._row(moment, first_rank, best, verdict) | {"checkpoint": checkpoint}

    @staticmethod
    def _row(moment: dict[str, Any], first_rank: int | None, best: str, verdict: str) -> dict[str, Any]:
        is_matched = int(verdict, 16) % 2 == 0
        decision = "matched" if is_matched else "not_matched"
        span = {"start_s": 0.0 if is_matched else None, "end_s": 2.5 if is_matched else None}
        turn = {"turn": 1, "video_id": best, "score": 0.5, "decision": decision, "reasoning": verdict, **span}
        return {
            "query_id": moment["query_id"],
            "split": moment["split"],
            "query": moment["query"],
            "gt_video_id": moment["video_id"],
            "gt_start_s": moment["start_s"],
            "gt_end_s": moment["end_s"],
            "video_id": video_of(best),
            "rank": first_rank,
            "first_rank": first_rank,
            "decision": decision,
            **span,
            "iou": 0.0,
            "num_turns": 1,
            "num_text_tokens": int(verdict[:2], 16),
            "num_latent_tokens": 0,
            "turns": [turn],
        }


class CheapProbes(VerificationProbe):
    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        checkpoint = model_digest(view, self.method.model, self.method.row_id)
        frames = frames_digests(view, [row.facts["shown_video_id"] for row in rows.values()])
        for probe in (row.facts for row in rows.values()):
            verdict = digest(checkpoint, probe["query"], frames[probe["shown_video_id"]])
            yield dict(probe_row(probe, _Asked(verdict)))  # type: ignore[arg-type]


class _Asked:
    """The part of a verification that a row is made of."""

    def __init__(self, verdict: str) -> None:
        self.answer = self.decoded = self
        self.decision = "matched" if int(verdict, 16) % 2 else "not_matched"
        self.start_s, self.end_s = (0.5, 3.5) if self.decision == "matched" else (None, None)
        self.matched_probability, self.num_text_tokens = int(verdict[:4], 16) / 65536, 7


class CheapReport(Report):
    """One text file with the metrics, without plots."""

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        for split in rows:
            metrics = view.rows("metrics", ["metric_id", "value"]).sort("metric_id").rows()
            path = view.files("report").absolute() / split / "report.md"
            write_json(path, {"metrics": digest(metrics)})
            yield {"split": split, "path": str(path)}


_CHEAP: dict[type[Stage], type[Stage]] = {
    QueryEmbeddings: CheapQueries,
    VideoEmbeddings: CheapVideos,
    BaseModels: CheapBaseModels,
    TrainedStage: CheapTraining,
    Predictions: CheapPredictions,
    VerificationProbe: CheapProbes,
    Report: CheapReport,
}


def cheap(stage: Stage) -> Stage:
    """The same stage with cheap work; itself where it asks no model."""
    for base, replacement in _CHEAP.items():
        if isinstance(stage, base):
            bases = (replacement,) if type(stage) is base else (replacement, type(stage))
            made = copy.copy(stage)
            made.__class__ = type(f"Cheap{type(stage).__name__}", bases, {})
            return made
    return stage


def cheap_stages() -> dict[str, Stage]:
    return in_order([cheap(stage) for stage in all_stages().values()])


def cheap_main_stages() -> dict[str, Stage]:
    """Without what differs from others in nothing but the checkpoint it names: ablations and hard refinement."""
    listed = {name: stage for name, stage in cheap_stages().items() if not _LEFT_OUT.search(name)}
    for stage in listed.values():
        kept = tuple(name for name in stage.upstream if name in listed)
        stage.__class__ = type(type(stage).__name__, (type(stage),), {"upstream": kept})
    return listed


_LEFT_OUT = re.compile(r"\+|hard_refine|drop_above")
