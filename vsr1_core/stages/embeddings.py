"""Unit vectors of queries and videos, made by the frozen embedder. `stages.retrieval` searches with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vsr1_core.recipes import Configuration
from vsr1_core.rows.blocks import blocks
from vsr1_core.rows.columnar import LazyRows
from vsr1_core.rows.packed import PACKED_ROWS, SPELLED
from vsr1_core.rows.versions import fingerprint
from vsr1_core.stages import checks
from vsr1_core.stages import columns as c
from vsr1_core.stages.base import Row, Stage, View
from vsr1_core.stages.loading import asked_with
from vsr1_core.stages.model_rows import ModelRows
from vsr1_core.stages.opened import OpenedModels
from vsr1_core.stages.plan_reads import packed_rows
from vsr1_core.stages.reads import EMBEDDER, same

EMBEDDED_IN_ORDER = 65_536
"""So many queries are embedded in the order of their lengths: few tokens of a batch are padding, and few texts are in
memory."""
SPELLED_AT_ONCE = EMBEDDED_IN_ORDER // PACKED_ROWS + SPELLED


class QueryEmbeddings(ModelRows):
    """One vector per query. It depends on the query's text and the embedder: a changed span embeds nothing again."""

    name = "query_embeddings"
    version = 2
    key = "query_id"
    group = "embeddings"
    says = "One embedding per query text: a float32 vector of length 1."
    reads = {"query": same("moments"), "embedder": EMBEDDER}
    imports = "rows"
    checks = (checks.UNIT_VECTORS, checks.QUERIES_KNOWN)
    is_planned_from_tables = True
    planned_by_row = ("moments",)
    columns = {"split": c.SPLIT, "gt_video_id": c.GT_VIDEO_ID, "vector": c.VECTOR}

    def recipe(self, config: Configuration) -> Any:
        return asked_with(config) or None

    def plan(self, view: View) -> Mapping[str, Row]:
        embedder = view.version("base_models", "embedder")
        return LazyRows(
            packed_rows(view, "moments", ["query_id", "split", "query", "video_id"], spelled=SPELLED_AT_ONCE),
            lambda _, split, query, video_id: Row(
                {"query": query_version(query, split, video_id), "embedder": embedder},
                {"split": split, "gt_video_id": video_id},
                facts=query,
            ),
        )

    def open(self, opened: OpenedModels, rows: Mapping[str, Row]) -> None:
        _ = opened.embedder

    def make_with(self, opened: OpenedModels, rows: Mapping[str, Row]) -> Iterator[dict[str, Any]]:
        from vsr1_core.models.query_vectors import embedded_queries
        from vsr1_core.stages.loading import budget_of

        run = opened.execution
        for some in blocks(((query_id, row.facts) for query_id, row in rows.items()), EMBEDDED_IN_ORDER):
            ordered = sorted(some, key=lambda pair: len(pair[1]))
            texts = [text for _, text in ordered]
            made = embedded_queries(opened.embedder, texts, budget_of(run), run.batch_size)
            for (query_id, _), vector in zip(ordered, made, strict=True):
                yield {"query_id": query_id, **rows[query_id].known, "vector": vector.tolist()}


def query_version(query: str, split: str, video_id: str) -> str:
    """The version of what the row of a query's embedding takes from its moment."""
    return fingerprint([query, split, video_id])


class VideoEmbeddings(ModelRows):
    """One vector per segment. It depends on the sampled frames and the embedder.

    The embedder reads a window as if it were a video: the times that it is told count from the window's start, so that
    the same scene has the same vector wherever it is in a film.
    """

    name = "video_embeddings"
    key = "video_id"
    key_says = c.SEGMENT_SAYS
    group = "embeddings"
    says = "One embedding per video, or per window of a long one, of its sampled frames: a float32 vector of length 1."
    reads = {
        "frames": same("frame_tensors"),
        "splits": same("frame_tensors"),
        "embedder": EMBEDDER,
    }
    imports = "rows"
    kept_inputs = ("splits",)
    checks = (checks.UNIT_VECTORS,)
    is_planned_from_tables = True
    planned_by_row = ("frame_tensors",)
    columns = {"splits": c.SPLITS, "vector": c.VECTOR}

    def plan(self, view: View) -> Mapping[str, Row]:
        embedder = view.version("base_models", "embedder")
        return LazyRows(
            view.rows("frame_tensors", ["video_id", "content", "splits"]),
            lambda _, content, splits: Row(
                {"frames": content, "splits": " ".join(splits), "embedder": embedder}, {"splits": splits}
            ),
        )

    def open(self, opened: OpenedModels, rows: Mapping[str, Row]) -> None:
        _ = opened.embedder

    def make_with(self, opened: OpenedModels, rows: Mapping[str, Row]) -> Iterator[dict[str, Any]]:
        from vsr1_core.models.video_vectors import embedded_videos
        from vsr1_core.stages.loading import budget_of, videos_to_embed

        run, embedder = opened.execution, opened.embedder
        frames = {r["video_id"]: r for r in opened.view.rows("frame_tensors").to_dicts()}
        videos = videos_to_embed(frames, list(rows), budget_of(run), embedder.device)
        for video_id, vector in embedded_videos(embedder, videos, budget_of(run), run.batch_size):
            yield {"video_id": video_id, **rows[video_id].known, "vector": vector.tolist()}


STAGES: tuple[type[Stage], ...] = (QueryEmbeddings, VideoEmbeddings)
