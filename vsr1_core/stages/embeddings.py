"""Unit vectors of queries and videos by the frozen embedder. Searching them is `stages.retrieval`'s."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import polars as pl

from vsr1_core.rows.versions import fingerprint
from vsr1_core.stages.base import Execution, Row, Stage, View


class QueryEmbeddings(Stage):
    """One vector a query. Reads the text and the embedder, nothing else: a changed span embeds nothing anew."""

    name: ClassVar[str] = "query_embeddings"
    key: ClassVar[str] = "query_id"
    group: ClassVar[str] = "embeddings"
    upstream: ClassVar[tuple[str, ...]] = ("moments", "base_models")
    columns: ClassVar[Mapping[str, Any]] = {
        "split": pl.String,
        "video_id": pl.String,
        "vector": pl.List(pl.Float32),
    }

    def wanted(self, view: View) -> dict[str, Row]:
        embedder = view.versions("base_models").get("embedder", "")
        rows = view.rows("moments", ["query_id", "split", "query", "video_id"]).iter_rows()
        return {
            query_id: Row(
                {"query": query_version(query, split, video_id), "embedder": embedder},
                {"split": split, "video_id": video_id},
            )
            for query_id, split, query, video_id in rows
        }

    def process(self, view: View, ids: Sequence[str], execution: Execution) -> Iterator[dict[str, Any]]:
        import torch

        from vsr1_core.stages.loading import embedder_of

        embedder = embedder_of(view, execution)
        rows = {r["query_id"]: r for r in view.rows("moments", ["query_id", "split", "query", "video_id"]).to_dicts()}
        ordered = sorted(ids, key=lambda i: len(rows[i]["query"]))
        for start in range(0, len(ordered), execution.batch_size):
            some = [rows[i] for i in ordered[start : start + execution.batch_size]]
            with torch.no_grad():
                vectors = embedder.embed_queries([r["query"] for r in some]).cpu().numpy()
            for row, vector in zip(some, vectors, strict=True):
                yield {k: row[k] for k in ("query_id", "split", "video_id")} | {"vector": vector.tolist()}


def query_version(query: str, split: str, video_id: str) -> str:
    """What of a moment its embedding's row depends on."""
    return fingerprint([query, split, video_id])


class VideoEmbeddings(Stage):
    """One vector a video. Reads the sampled frames and the embedder."""

    name: ClassVar[str] = "video_embeddings"
    key: ClassVar[str] = "video_id"
    group: ClassVar[str] = "embeddings"
    upstream: ClassVar[tuple[str, ...]] = ("frame_tensors", "base_models")
    kept_inputs: ClassVar[tuple[str, ...]] = ("splits",)
    columns: ClassVar[Mapping[str, Any]] = {"splits": pl.List(pl.String), "vector": pl.List(pl.Float32)}

    def wanted(self, view: View) -> dict[str, Row]:
        embedder = view.versions("base_models").get("embedder", "")
        rows = view.rows("frame_tensors", ["video_id", "content", "splits"]).iter_rows()
        return {
            video_id: Row({"frames": content, "splits": " ".join(splits), "embedder": embedder}, {"splits": splits})
            for video_id, content, splits in rows
        }

    def process(self, view: View, ids: Sequence[str], execution: Execution) -> Iterator[dict[str, Any]]:
        import torch

        from vsr1_core.models.vision import encode_videos
        from vsr1_core.stages.loading import embedder_of, patches_of

        embedder = embedder_of(view, execution)
        frames = {r["video_id"]: r for r in view.rows("frame_tensors").to_dicts()}
        for start in range(0, len(ids), execution.batch_size):
            some = [frames[i] for i in ids[start : start + execution.batch_size]]
            with torch.no_grad():
                patches = [patches_of(row, embedder.model.config) for row in some]
                vectors = embedder.embed_videos(encode_videos(embedder.model, patches)).cpu().numpy()
            for row, vector in zip(some, vectors, strict=True):
                yield {"video_id": row["video_id"], "splits": row["splits"], "vector": vector.tolist()}


STAGES = (QueryEmbeddings, VideoEmbeddings)
