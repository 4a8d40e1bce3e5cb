"""The index of each split, the first ranking of each query, and the hard negatives of train queries.

Only plain queries are searched here; refined ones are `search.episodes`' matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl

from vsr1_core.recipes import Configuration
from vsr1_core.rows.files import check_name
from vsr1_core.rows.versions import fingerprint
from vsr1_core.stages.base import Execution, NotYetKnown, Row, Stage, View
from vsr1_core.stages.corpus import failed
from vsr1_core.stages.moments import IS_TRAIN, asked_versions, same_text_videos

if TYPE_CHECKING:
    from vsr1_core.search.index import VideoIndex

QUERIES_A_SEARCH = 4096
"""At 2048 dimensions, 32 MB of query vectors."""


class VideoIndexes(Stage):
    """One FAISS index a split, of all its videos. Adding a video writes its split's index anew, from stored vectors."""

    name: ClassVar[str] = "video_index"
    key: ClassVar[str] = "split"
    group: ClassVar[str] = "retrieval"
    upstream: ClassVar[tuple[str, ...]] = ("video_embeddings",)
    columns: ClassVar[Mapping[str, Any]] = {"path": pl.String, "num_videos": pl.Int64, "dim": pl.Int64}

    def recipe(self, config: Configuration) -> Any:
        return {"index": config.retrieval.index}

    def wanted(self, view: View) -> dict[str, Row]:
        videos = view.rows("video_embeddings", ["video_id", "row_version", "splits"])
        if videos["splits"].null_count():
            raise NotYetKnown("video_embeddings")
        members = videos.explode("splits").drop_nulls("splits").partition_by("splits", as_dict=True)
        return {
            str(split): Row({"video_embeddings": members_version(rows.select("video_id", "row_version").rows())})
            for (split,), rows in sorted(members.items())
        }

    def process(self, view: View, ids: Sequence[str], execution: Execution) -> Iterator[dict[str, Any]]:
        from vsr1_core.search.index import as_matrix, build_index, write_index

        videos = view.rows("video_embeddings", ["video_id", "splits", "vector"]).sort("video_id")
        for split in ids:
            members = videos.filter(pl.col("splits").list.contains(split))
            folder = view.files(self.name).absolute() / check_name(split, "split")
            try:
                vectors = as_matrix(members["vector"])
                index = build_index(members["video_id"].to_list(), vectors, view.config.retrieval.index)
            except ValueError as error:
                yield {"split": split, "error": f"the videos of split {split!r} cannot be indexed: {error}"}
                continue
            write_index(folder, index)
            yield {"split": split, "path": str(folder), "num_videos": len(index.ids), "dim": vectors.shape[1]}


def members_version(members: Iterable[tuple[str, str]]) -> str:
    """Of an index of these (video_id, version of its embedding)."""
    return fingerprint(sorted(members))


class FirstRanking(Stage):
    """All videos of the split ranked by the plain query.

    rank: of the right video, exact whatever the index is; null when it is not in the index (it could not be decoded or
    embedded). score: cosine of query and right video, null likewise. top_*: the first `top_k`, best first.
    """

    name: ClassVar[str] = "first_ranking"
    key: ClassVar[str] = "query_id"
    group: ClassVar[str] = "retrieval"
    upstream: ClassVar[tuple[str, ...]] = ("query_embeddings", "video_index")
    columns: ClassVar[Mapping[str, Any]] = {
        "split": pl.String,
        "video_id": pl.String,
        "rank": pl.Int64,
        "score": pl.Float32,
        "top_video_ids": pl.List(pl.String),
        "top_scores": pl.List(pl.Float32),
    }

    def recipe(self, config: Configuration) -> Any:
        return {"top_k": config.retrieval.top_k}

    def wanted(self, view: View) -> dict[str, Row]:
        """A new video re-ranks all queries of its split, as its index has a new version."""
        indexes = view.versions("video_index")
        queries = view.rows("query_embeddings", ["query_id", "row_version", "split", "video_id"])
        return {
            query_id: Row(
                {"query_embeddings": version, "video_index": indexes.get(split, "none")},
                {"split": split, "video_id": video_id} | ({} if split in indexes else failed(_no_index(split))),
            )
            for query_id, version, split, video_id in queries.iter_rows()
        }

    def process(self, view: View, ids: Sequence[str], execution: Execution) -> Iterator[dict[str, Any]]:
        from vsr1_core.search.index import read_index

        paths = dict(view.rows("video_index", ["split", "path"]).iter_rows())
        queries = view.rows("query_embeddings", ["query_id", "split", "video_id", "vector"])
        queries = queries.filter(pl.col("query_id").is_in(list(ids)))
        for (split,), rows in queries.partition_by("split", as_dict=True).items():
            if split not in paths:
                yield from ({"query_id": i, "error": _no_index(str(split))} for i in rows["query_id"])
                continue
            index = read_index(Path(paths[split]))
            for start in range(0, rows.height, QUERIES_A_SEARCH):
                yield from _ranked(index, rows[start : start + QUERIES_A_SEARCH], view.config.retrieval.top_k)


def _no_index(split: str) -> str:
    return (
        f"split {split!r} has no search index, for none of its videos was decoded and embedded; see the failed rows "
        "of videos, frame_tensors and video_embeddings"
    )


def _ranked(index: VideoIndex, queries: pl.DataFrame, top_k: int) -> Iterator[dict[str, Any]]:
    from vsr1_core.search.index import as_matrix

    vectors, right = as_matrix(queries["vector"]), queries["video_id"].to_list()
    ranks = index.ranks(vectors, right)
    top_ids, top_scores = index.search(vectors, top_k)
    for row, (query_id, split) in enumerate(queries.select("query_id", "split").iter_rows()):
        at = index.row_of.get(right[row])
        yield {
            "query_id": query_id,
            "split": split,
            "video_id": right[row],
            "rank": ranks[row],
            "score": None if at is None else float(vectors[row] @ index.vectors[at]),
            "top_video_ids": top_ids[row],
            "top_scores": top_scores[row],
        }


class HardNegatives(Stage):
    """For each train query the wrong videos that rank highest, best first.

    Never the right video, and never one whose own moments have the same query text: it would be right as well.
    """

    name: ClassVar[str] = "hard_negatives"
    key: ClassVar[str] = "query_id"
    group: ClassVar[str] = "retrieval"
    upstream: ClassVar[tuple[str, ...]] = ("first_ranking", "moments")
    columns: ClassVar[Mapping[str, Any]] = {
        "split": pl.String,
        "video_ids": pl.List(pl.String),
        "scores": pl.List(pl.Float32),
    }

    def recipe(self, config: Configuration) -> Any:
        return {"num_hard_negatives": config.retrieval.num_hard_negatives}

    def wanted(self, view: View) -> dict[str, Row]:
        never = same_text_videos(view)
        of_videos = {videos: fingerprint(sorted(videos)) for videos in set(never.values())}
        asked = asked_versions(view) if view.given_rows(self.name) else None  # only imported rows stand on it
        rankings = view.rows("first_ranking", ["query_id", "row_version", "split"]).filter(IS_TRAIN)
        return {
            query_id: Row(
                {"first_ranking": version, "moments": of_videos[never[query_id]]},
                {"split": split},
                {"query": asked[query_id]} if asked else {},
            )
            for query_id, version, split in rankings.iter_rows()
            if query_id in never
        }

    def process(self, view: View, ids: Sequence[str], execution: Execution) -> Iterator[dict[str, Any]]:
        never = same_text_videos(view)
        wanted = view.config.retrieval.num_hard_negatives
        rankings = view.rows("first_ranking", ["query_id", "split", "top_video_ids", "top_scores"])
        for query_id, split, video_ids, scores in rankings.filter(pl.col("query_id").is_in(list(ids))).iter_rows():
            pairs = [(v, s) for v, s in zip(video_ids, scores, strict=True) if v not in never[query_id]][:wanted]
            yield {
                "query_id": query_id,
                "split": split,
                "video_ids": [video_id for video_id, _ in pairs],
                "scores": [score for _, score in pairs],
            }


STAGES = (VideoIndexes, FirstRanking, HardNegatives)
