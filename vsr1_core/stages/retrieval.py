"""The index of each split, the first ranking of each query, and the hard negatives of train queries.

Only queries as they were annotated are searched here; `search.episodes` searches with refined queries.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from vsr1_core.recipes import Configuration
from vsr1_core.rows.boundary import parts
from vsr1_core.rows.columnar import Ids, LazyRows, ids_of
from vsr1_core.rows.files import check_name
from vsr1_core.rows.frames import joined
from vsr1_core.rows.packed import packed
from vsr1_core.rows.versions import fingerprint
from vsr1_core.stages import checks
from vsr1_core.stages import columns as c
from vsr1_core.stages.base import Row, RowIds, Stage, View
from vsr1_core.stages.columns import Column, failed
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.moments import COMPARED_TEXT, IS_TRAIN, TRAIN, asked_versions, same_text_videos
from vsr1_core.stages.plan_reads import packed_rows
from vsr1_core.stages.readings import NotYetKnown, Reading
from vsr1_core.stages.reads import found_by, known, row_ids, same
from vsr1_core.stages.work_reads import rows_with

if TYPE_CHECKING:
    from vsr1_core.search.index import Vectors, VideoIndex
    from vsr1_core.search.index_updates import Training, Updated

RECALL_COLUMNS = {
    f"recall_at_{k}": f"Share of a video's {k} nearest others that the index finds; null for flat, which is exact."
    for k in (10, 100)
}
"""Columns of `video_index`: the mean over some of its own videos, when it was written (`search.recall`)."""
HALF_MADE = {"row_version": "", "row_inputs": "{}", "status": "failed", "error": "a build was stopped at this index"}
"""The row of an index while its folder is exchanged: after a kill it is due, also where the videos, or the kind of
index, are those of the committed row again."""
QUERIES_PER_SEARCH = 4096
"""Queries that are searched together; at 2048 dimensions their vectors take 32 MB."""


def _indexed_videos(view: View, row_id: str, row: Row) -> RowIds:
    return [("video_embeddings", row_ids(view, "video_embeddings", pl.col("splits").list.contains(row_id)))]


class VideoIndexes(Stage):
    """One FAISS index per split, of all its segments. A new one rewrites the index of its split from stored vectors.

    An approximate index is made from the one before where that is sound (`search.index_updates`), so what it finds may
    depend on the order in which its videos came. The version of its row does not: it stands for the vectors that are
    searched, as that of a flat index does, and no more could be known before the work. Ranks are exact in any case.
    """

    name = "video_index"
    key = "split"
    group = "retrieval"
    says = "One FAISS search index per split, with the ids of its videos."
    reads = {"video_embeddings": found_by(_indexed_videos, "video_embeddings")}
    imports = "whole"
    is_planned_from_tables = True
    columns = {
        "path": c.PATH,
        "num_videos": c.integer("Number of videos in the index."),
        "dim": c.integer("Number of dimensions of each vector."),
        **{name: c.number(says) for name, says in RECALL_COLUMNS.items()},
        "num_trained": c.integer("Number of vectors on which the lists of an IVF index were trained; null for others."),
        "num_moved": c.integer("Number of vectors of an IVF index that were added, changed or removed since then."),
    }
    checks = (checks.INDEX_FINDS,)

    def recipe(self, config: Configuration) -> Any:
        return {"index": config.retrieval.index}

    def plan(self, view: View) -> dict[str, Row]:
        videos = view.rows("video_embeddings", ["video_id", "row_version", "splits"])
        if videos["splits"].null_count():
            raise NotYetKnown("video_embeddings")
        members = videos.explode("splits").drop_nulls("splits").partition_by("splits", as_dict=True)
        return {
            str(split): Row({"video_embeddings": members_version(rows.select("video_id", "row_version").rows())})
            for (split,), rows in sorted(members.items())
        }

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        from vsr1_core.search.index import write_index
        from vsr1_core.search.index_updates import updated_index

        kind, before = view.config.retrieval.index, self._alike(view, rows)
        videos = view.rows("video_embeddings", ["video_id", "splits", "vector"]).sort("video_id")
        for split in rows:
            members = videos.filter(pl.col("splits").list.contains(split))
            folder = view.files(self.name).absolute() / check_name(split, "split")
            try:
                vectors, own = as_matrix(members["vector"]), folder if split in before else None
                made = updated_index(own, members["video_id"].to_list(), vectors, kind, before.get(split))
            except ValueError as error:
                yield {"split": split, "error": f"the videos of split {split!r} cannot be indexed: {error}"}
                continue
            view.table(self.name).add_pending([{"split": split, **HALF_MADE}])
            write_index(folder, made.index)
            facts = {} if kind == "flat" else _facts_of_approximate(made, kind)
            found = "".join(f", {name.replace('_', ' ')} {facts[name]:.3f}" for name in RECALL_COLUMNS if name in facts)
            run.log(f"{self.name}: {split}: {made.says}{found}")
            num_videos, dim = len(made.index.rows_of), vectors.shape[1]
            yield {"split": split, "path": str(folder), "num_videos": num_videos, "dim": dim, **facts}

    def _alike(self, view: View, rows: Mapping[str, Row]) -> dict[str, Training | None]:
        """Split -> the training of its committed index, for each index that this version of the stage made with this
        recipe, so that it may be updated. None where the training was not noted."""
        from vsr1_core.search.index_updates import Training

        found: dict[str, Training | None] = {}
        inputs = self.inputs_of(view, rows)
        columns = ["split", "row_inputs", "num_trained", "num_moved"]
        for split, spelled, num_trained, num_moved in view.table(self.name).ok_rows(columns).iter_rows():
            made_of = json.loads(spelled)
            if split in rows and all(made_of.get(name) == inputs[split].get(name) for name in ("stage", "recipe")):
                found[split] = None if num_trained is None else Training(num_trained, num_moved)
        return found


def _facts_of_approximate(made: Updated, kind: str) -> dict[str, Any]:
    """The columns of an index that may miss videos."""
    from vsr1_core.search.recall import recall_at

    found = dict(zip(RECALL_COLUMNS, recall_at(made.index, (10, 100)), strict=True))
    training = {"num_trained": made.training.num_vectors, "num_moved": made.training.num_moved}
    return {**found, **(training if kind == "ivf" else {})}


def members_version(members: Iterable[tuple[str, str]]) -> str:
    """The version of an index with these members: (video_id, row version of its embedding) pairs."""
    return fingerprint(sorted(members))


class FirstRanking(Stage):
    """All videos of the split, ranked by the query's own text.

    rank: the exact rank of the right video, whatever kind the index is; null when the video is not in the index because
    it could not be decoded or embedded. A video that is searched in windows counts with its best one. top_*: the first
    `top_k` segments.
    """

    name = "first_ranking"
    key = "query_id"
    group = "retrieval"
    says = "One ranking per query by its own text: the rank of the right video, and the best videos with their scores."
    reads = {
        "query_embeddings": same("query_embeddings"),
        "video_index": known("video_index", "split"),
    }
    imports = "whole"
    is_planned_from_tables = True
    planned_by_row = ("query_embeddings",)
    checks = (checks.QUERIES_KNOWN,)
    columns = {
        "split": c.SPLIT,
        "gt_video_id": c.GT_VIDEO_ID,
        "rank": c.RANK,
        "score": Column(pl.Float32, "Cosine of the query and the right video; null where the video is not indexed."),
        "top_video_ids": c.texts("Ids of the highest-ranking videos or windows, best first."),
        "top_scores": c.scores("Cosine of the query and each of `top_video_ids`, in the same order."),
    }

    def recipe(self, config: Configuration) -> Any:
        return {"top_k": config.retrieval.top_k}

    def plan(self, view: View) -> Mapping[str, Row]:
        """A new video ranks all queries of its split again, because the index gets a new version."""
        indexes = dict(view.versions("video_index"))
        return LazyRows(
            packed_rows(view, "query_embeddings", ["query_id", "row_version", "split", "gt_video_id"]),
            lambda _, version, split, video_id: Row(
                {"query_embeddings": version, "video_index": indexes.get(split, "none")},
                {"split": split, "gt_video_id": video_id} | ({} if split in indexes else failed(_no_index(split))),
            ),
        )

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        from vsr1_core.search.index import read_index

        paths, by_split = dict(view.rows("video_index", ["split", "path"]).iter_rows()), defaultdict[str, Ids](Ids)
        for part in parts(rows):
            for query_id, row in part.items():
                by_split[row.known["split"]].append(query_id)
        for split, ids in by_split.items():
            if split not in paths:
                yield from ({"query_id": query_id, "error": _no_index(split)} for query_id in ids)
                continue
            index = read_index(Path(paths[split]))
            for start in range(0, len(ids), QUERIES_PER_SEARCH):
                columns, some = ["query_id", "split", "gt_video_id", "vector"], ids[start : start + QUERIES_PER_SEARCH]
                queries = rows_with(view, "query_embeddings", columns, some)
                yield from _ranked(index, queries, view.config.retrieval.top_k)


def _no_index(split: str) -> str:
    return (
        f"split {split!r} has no search index, for none of its videos was decoded and embedded; see the failed rows "
        "of videos, frame_tensors and video_embeddings"
    )


def _ranked(index: VideoIndex, queries: pl.DataFrame, top_k: int) -> Iterator[dict[str, Any]]:
    vectors, right = as_matrix(queries["vector"]), queries["gt_video_id"].to_list()
    top_ids, top_scores, ranks = index.search_and_rank(vectors, top_k, right)
    for row, (query_id, split) in enumerate(queries.select("query_id", "split").iter_rows()):
        own = index.vectors[index.rows_of.get(right[row], [])]
        yield {
            "query_id": query_id,
            "split": split,
            "gt_video_id": right[row],
            "rank": ranks[row],
            "score": max((float(vectors[row] @ vector) for vector in own), default=None),
            "top_video_ids": top_ids[row],
            "top_scores": top_scores[row],
        }


def as_matrix(vectors: pl.Series) -> Vectors:
    """A column of lists as float32 [rows, D]. Raises ValueError if the lists differ in length, or if there are none."""
    lengths = vectors.list.len().unique().to_list()
    if len(lengths) != 1 or not lengths[0]:
        raise ValueError(f"all vectors must have the same length, found {sorted(map(str, lengths)) or 'no vectors'}")
    return vectors.explode().to_numpy().astype("float32").reshape(len(vectors), lengths[0])


def _with_the_same_text(view: View, row_id: str, row: Row) -> RowIds:
    """The query itself, and the queries with the same text: their videos are never its negatives."""
    moments = view.rows("moments", ["query_id", "query"])
    own = moments.filter(pl.col("query_id") == row_id).select(COMPARED_TEXT).item()
    return [("moments", row_ids(view, "moments", IS_TRAIN & COMPARED_TEXT.eq(own)))]


class HardNegatives(Stage):
    """For each train query, the wrong videos that rank highest, best first.

    The right video is never among them, nor is a video that has a moment with the same query text: it would be right
    as well. Of a video that is searched in windows, those that show nothing of such a moment are wrong.
    """

    name = "hard_negatives"
    key = "query_id"
    group = "retrieval"
    says = "One row per train query: the wrong videos that rank highest for it."
    reads = {
        "first_ranking": same("first_ranking"),
        "moments": found_by(_with_the_same_text, "moments"),
    }
    uses = ("frame_tensors",)
    imports = "rows"
    is_planned_from_tables = True
    checks = (checks.QUERIES_KNOWN,)
    columns = {
        "split": c.SPLIT,
        "video_ids": c.texts("Ids of the wrong videos or windows that rank highest, best first."),
        "scores": c.scores("Cosine of the query and each of `video_ids`, in the same order."),
    }

    def recipe(self, config: Configuration) -> Any:
        return {"num_hard_negatives": config.retrieval.num_hard_negatives}

    def plan(self, view: View) -> Mapping[str, Row]:
        never = same_text_videos(view)
        version_of = functools.lru_cache(maxsize=1024)(lambda videos: fingerprint(sorted(videos)))
        asked = asked_versions(view) if view.imported is not None else None  # only imported rows have this basis
        rankings = view.read_batches(Reading.of("first_ranking", "ok", ["query_id", "row_version", "split"], TRAIN))
        wanted = joined(rankings, [ids_of(never).alias(self.key).to_frame()], self.key, "inner")

        def row(query_id: str, version: str, split: str) -> Row:
            videos = never[query_id]
            basis = {"query": asked[query_id]} if asked else {}
            inputs = {"first_ranking": version, "moments": version_of(videos)}
            return Row(inputs, {"split": split}, basis, facts=videos)

        return LazyRows(packed(wanted), row)

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        for some in parts(rows):
            yield from self._made_of(view, some)

    @staticmethod
    def _made_of(view: View, rows: Mapping[str, Row]) -> Iterator[dict[str, Any]]:
        columns, wanted = ["query_id", "split", "top_video_ids", "top_scores"], view.config.retrieval.num_hard_negatives
        for query_id, split, video_ids, scores in rows_with(view, "first_ranking", columns, rows).iter_rows():
            never = rows[query_id].facts
            pairs = [(v, s) for v, s in zip(video_ids, scores, strict=True) if v not in never][:wanted]
            yield {
                "query_id": query_id,
                "split": split,
                "video_ids": [video_id for video_id, _ in pairs],
                "scores": [score for _, score in pairs],
            }


STAGES: tuple[type[Stage], ...] = (VideoIndexes, FirstRanking, HardNegatives)
