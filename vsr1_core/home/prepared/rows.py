"""Turn a checked prepared folder into rows of this project's tables, each with a digest and a basis.

The basis of a row names the facts that the imported row is valid for (the text of a query, the frames of a vector). It
never names versions of stages, which did not make the row: an upgrade of this project leaves imported rows as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vsr1_core.datasets.sources import corpus_splits
from vsr1_core.home.prepared.folder import Prepared, vector_digest
from vsr1_core.home.prepared.layout import of_length_1
from vsr1_core.home.prepared.training_files import ImportedPrompt, ImportedTrace
from vsr1_core.media.sampling import output_size
from vsr1_core.rows.files import digest_file, file_stem
from vsr1_core.rows.imported import with_imported
from vsr1_core.rows.versions import fingerprint, row_version
from vsr1_core.stages.base import View
from vsr1_core.stages.embeddings import query_version
from vsr1_core.stages.moments import MOMENT_COLUMNS, asked_version, moment_version
from vsr1_core.stages.retrieval import members_version

INDEX_FILES = ("index.faiss", "id_map.json")
TYPES: dict[str, Any] = {
    "error": pl.String,
    "num_frames": pl.Int64,
    "timestamps_s": pl.List(pl.Float64),
    **dict.fromkeys(("video_ids", "negative_ids"), pl.List(pl.String)),
    **dict.fromkeys(("scores", "negative_scores"), pl.List(pl.Float32)),
}
"""Types of columns whose values may be null or empty in every row, so that polars cannot infer the type."""


def imported_tables(view: View, prepared: Prepared, with_vectors: bool = True) -> list[ImportedTable]:
    """The imported rows of every asset that the folder has rows of. with_vectors: whether embeddings and indexes are
    among them."""
    return _Rows(view, prepared, with_vectors).tables()


@dataclass(frozen=True)
class ImportedTable:
    """Imported rows of one asset.

    rows: the key first, then columns of the asset's table; paths are relative to the folder of the import. digests,
    bases: the digest and the basis of each row.
    """

    asset: str
    rows: pl.DataFrame
    digests: Sequence[str]
    bases: Sequence[Mapping[str, str]]

    @property
    def ids(self) -> list[str]:
        return self.rows.to_series(0).to_list()


class _Rows:
    """Makes the rows of all assets from one prepared folder."""

    def __init__(self, view: View, prepared: Prepared, with_vectors: bool) -> None:
        self.with_vectors = with_vectors
        self.prepared, self.moments, self.training = prepared, prepared.moments, prepared.training
        self.splits = with_imported(corpus_splits(view.entry, view.config), prepared.corpus)
        self.num_negatives = view.config.retrieval.num_hard_negatives
        self.frames = {v: f for split in prepared.splits.values() for v, f in split.frames.found.items()}
        missing = {v: why for split in prepared.splits.values() for v, why in split.frames.missing.items()}
        self.missing = {v: why for v, why in missing.items() if v not in self.frames}
        self.shown = {v: output_size(f.shape[2], f.shape[1], view.config.frames) for v, f in self.frames.items()}
        self.contents = {
            v: fingerprint([f.digest, f.times_s, f.duration_s, f.fps, self.shown[v]]) for v, f in self.frames.items()
        }
        self.vectors: dict[str, NDArray[np.float32]] = {}
        for split in prepared.splits.values():
            self.vectors |= dict(zip(split.video_ids, of_length_1(split.video_vectors), strict=True))

    def tables(self) -> list[ImportedTable]:
        """The imported rows of every asset that has some."""
        tables = [self._videos(), self._frames()]
        if self.with_vectors:
            tables += [self._queries(), self._video_vectors(), self._indexes()]
        if "train" in self.prepared.splits:
            tables += [self._hard_negatives(), self._pool(), self._traces(), self._examples(), self._prompts()]
        return [table for table in tables if table.rows.height]

    def _videos(self) -> ImportedTable:
        rows = [
            {
                "video_id": video_id,
                "content": self.contents[video_id],
                "duration_s": frames.duration_s,
                "start_s": 0.0,
                "fps": frames.fps,
                "num_frames": frames.num_source_frames,
            }
            for video_id, frames in self.frames.items()
        ]
        rows += [{"video_id": video_id, "error": reason} for video_id, reason in self.missing.items()]
        digests = [*(self.contents[v] for v in self.frames), *map(fingerprint, self.missing.values())]
        return _table("videos", rows, digests, [{"raw_videos": "missing"}] * len(rows))

    def _frames(self) -> ImportedTable:
        rows = [
            {
                "video_id": video_id,
                "path": f"frames/{file_stem(video_id)}.npy",
                "content": self.contents[video_id],
                "num_frames": frames.shape[0],
                "height": self.shown[video_id][1],
                "width": self.shown[video_id][0],
                "timestamps_s": frames.times_s,
                "duration_s": frames.duration_s,
                "start_s": 0.0,
                "bytes": frames.path.stat().st_size,
            }
            for video_id, frames in self.frames.items()
        ]
        return _table("frame_tensors", rows, [self.contents[v] for v in self.frames], [{}] * len(rows))

    def _queries(self) -> ImportedTable:
        parts: list[pl.DataFrame] = []
        digests: list[str] = []
        bases: list[Mapping[str, str]] = []
        for split in self.prepared.splits.values():
            held = [n for n, line in enumerate(split.queries) if line.is_held]
            moments = [self.moments[split.queries[n].row_id] for n in held]
            vectors = np.asarray(split.query_vectors[held])
            parts.append(
                pl.DataFrame(
                    {
                        "query_id": [m.query_id for m in moments],
                        "split": [m.split for m in moments],
                        "gt_video_id": [m.video_id for m in moments],
                        "vector": _vector_column(vectors),
                    }
                )
            )
            digests += map(vector_digest, vectors)
            bases += [{"query": query_version(m.query, m.split, m.video_id)} for m in moments]
        return ImportedTable("query_embeddings", pl.concat(parts), digests, bases)

    def _video_vectors(self) -> ImportedTable:
        rows = pl.DataFrame(
            {"video_id": list(self.usable), "vector": _vector_column(np.stack(list(self.usable.values())))}
        )
        bases = [{"frames": self.contents[video_id]} for video_id in self.usable]
        return ImportedTable("video_embeddings", rows, list(map(vector_digest, self.usable.values())), bases)

    @cached_property
    def usable(self) -> dict[str, NDArray[np.float32]]:
        """Video id -> vector, of the videos that have frames."""
        return {video_id: vector for video_id, vector in self.vectors.items() if video_id in self.frames}

    def _indexes(self) -> ImportedTable:
        digests = {video_id: vector_digest(vector) for video_id, vector in self.usable.items()}
        rows, marks, bases = [], [], []
        for split in self.prepared.splits.values():
            if split.index is None:
                continue
            count, dim = split.video_vectors.shape
            rows.append({"split": split.split, "path": f"index/{split.split}", "num_videos": count, "dim": dim})
            marks.append(fingerprint([digest_file(split.index / name) for name in INDEX_FILES]))
            members = [(v, self._embedding_version(v, digests[v])) for v in split.video_ids]
            bases.append({"video_embeddings": members_version(members)})
        return ImportedTable("video_index", pl.DataFrame(rows), marks, bases)

    def _embedding_version(self, video_id: str, digest: str) -> str:
        """The version of the row of an imported embedding, computed as `stages.base` does."""
        return row_version({"imported": digest, "splits": " ".join(self.splits.get(video_id, []))})

    def _asked(self, query_id: str) -> dict[str, str]:
        moment = self.moments[query_id]
        return {"query": asked_version(moment.query, moment.video_id)}

    def _facts(self, query_id: str) -> dict[str, Any]:
        """What a training row copies from its moment, under the column names of the training tables."""
        return {column: getattr(self.moments[query_id], name) for name, column in MOMENT_COLUMNS.items()}

    def _negatives(self, query_id: str) -> dict[str, Any]:
        """Ids and scores of the negatives. The published file has no scores: they are cosines of imported vectors. A
        query that no file has negatives for gets the wrong videos that rank highest."""
        query = self.query_vectors.get(query_id)
        ids = self.training.hard_negatives.get(query_id)
        if ids is None:
            ids = [] if query is None else self._ranked_wrong(query_id, query)
        ids = self._with_frames(ids)
        scores = [] if query is None or not ids else (np.stack([self.vectors[i] for i in ids]) @ query).tolist()
        return {"ids": list(ids), "scores": scores or None}

    def _with_frames(self, video_ids: Sequence[str]) -> list[str]:
        """Those of the videos that have frames: the others are in no index, and have no embedding."""
        return [video_id for video_id in video_ids if video_id in self.frames]

    def _ranked_wrong(self, query_id: str, query: NDArray[np.float32]) -> list[str]:
        """The first wrong videos of the train corpus by cosine; one that has a moment with this text is not wrong."""
        corpus = [v for v in self.prepared.splits["train"].video_ids if v in self.usable]
        ranked = np.argsort(-(np.stack([self.usable[v] for v in corpus]) @ query), kind="stable")
        right = self.same_text[_compared(self.moments[query_id].query)]
        return [corpus[i] for i in ranked if corpus[i] not in right][: self.num_negatives]

    @cached_property
    def same_text(self) -> dict[str, set[str]]:
        """Query text -> the videos of the train moments with this text."""
        found: dict[str, set[str]] = {}
        for moment in self.moments.values():
            if moment.split == "train":
                found.setdefault(_compared(moment.query), set()).add(moment.video_id)
        return found

    @cached_property
    def query_vectors(self) -> dict[str, NDArray[np.float32]]:
        """Query id -> vector of length 1, of the train queries; empty where no vectors are imported."""
        if not self.with_vectors:
            return {}
        train = self.prepared.splits["train"]
        return dict(zip((line.row_id for line in train.queries), of_length_1(train.query_vectors), strict=True))

    def _hard_negatives(self) -> ImportedTable:
        ids = [query_id for query_id in self.training.hard_negatives if query_id in self.moments]
        negatives = {query_id: self._negatives(query_id) for query_id in ids}
        rows = [
            {"query_id": q, "split": "train", "video_ids": n["ids"], "scores": n["scores"]}
            for q, n in negatives.items()
        ]
        digests = [fingerprint(n["ids"]) for n in negatives.values()]
        return _table("hard_negatives", rows, digests, [self._asked(q) for q in negatives])

    @cached_property
    def _imported_traces(self) -> list[ImportedTrace]:
        return [self._usable(trace) for query_id, trace in self.training.traces.items() if query_id in self.moments]

    def _usable(self, trace: ImportedTrace) -> ImportedTrace:
        """The trace; with an error where its video, or the one that it shows, has no frames."""
        needed = (trace.shown_video_id, self.moments[trace.query_id].video_id)
        lacking = next((video_id for video_id in needed if video_id not in self.frames), None)
        return trace if lacking is None else replace(trace, error=f"there are no frames of its video {lacking}")

    def _pool(self) -> ImportedTable:
        rows = [
            {
                "query_id": t.query_id,
                "label": t.label,
                "shown_video_id": t.shown_video_id,
                "gt_video_id": self.moments[t.query_id].video_id,
            }
            for t in self._imported_traces
        ]
        return _table("top1_pool", rows, [fingerprint(row) for row in rows], [self._asked(r["query_id"]) for r in rows])

    def _traces(self) -> ImportedTable:
        rows: list[dict[str, Any]] = [
            {
                "query_id": t.query_id,
                "label": t.label,
                "shown_video_id": t.shown_video_id,
                "trace": t.trace,
                "error": t.error,
            }
            for t in self._imported_traces
        ]
        bases = [{"moment": moment_version(self._facts(row["query_id"]))} for row in rows]
        return _table("reasoning_traces", rows, [fingerprint(row) for row in rows], bases)

    def _examples(self) -> ImportedTable:
        rows = []
        for trace in self._imported_traces:
            if trace.error is None:
                negatives = self._negatives(trace.query_id)
                rows.append(
                    {
                        "query_id": trace.query_id,
                        **self._facts(trace.query_id),
                        "shown_video_id": trace.shown_video_id,
                        "label": trace.label,
                        "answer": trace.answer,
                        "negative_ids": negatives["ids"],
                        "negative_scores": negatives["scores"],
                    }
                )
        bases = [{"moments": moment_version(self._facts(row["query_id"]))} for row in rows]
        digests = [fingerprint({k: v for k, v in row.items() if k != "negative_scores"}) for row in rows]
        return _table("sft_examples", rows, digests, bases)

    def _scored_negatives(self, prompt: ImportedPrompt) -> dict[str, Any]:
        pairs = zip(prompt.negative_ids, prompt.negative_scores, strict=True)
        kept = [(video_id, score) for video_id, score in pairs if video_id in self.frames]
        return {"negative_ids": [video_id for video_id, _ in kept], "negative_scores": [score for _, score in kept]}

    def _prompts(self) -> ImportedTable:
        rows = [
            {
                "query_id": prompt.query_id,
                **self._facts(prompt.query_id),
                "retrieved_video_id": prompt.retrieved_video_id,
                "label": prompt.label,
                **self._scored_negatives(prompt),
            }
            for prompt in self.training.prompts.values()
            if prompt.query_id in self.moments
            and prompt.retrieved_video_id in self.frames
            and self.moments[prompt.query_id].video_id in self.frames
        ]
        bases = [{"moments": moment_version(self._facts(row["query_id"]))} for row in rows]
        return _table("grpo_prompts", rows, [fingerprint(row) for row in rows], bases)


def _compared(query: str) -> str:
    """A query as it is compared with others (`moments.COMPARED_TEXT`)."""
    return query.strip().lower()


def _vector_column(vectors: NDArray[np.float32]) -> pl.Series:
    return pl.Series("vector", of_length_1(vectors), pl.Array(pl.Float32, vectors.shape[1])).arr.to_list()


def _table(
    asset: str, rows: list[dict[str, Any]], digests: Sequence[str], bases: Sequence[Mapping[str, str]]
) -> ImportedTable:
    frame = pl.DataFrame(rows, schema_overrides=TYPES, infer_schema_length=None)
    return ImportedTable(asset, frame, digests, bases)
