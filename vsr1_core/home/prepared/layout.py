"""Read and check the splits of a prepared folder: every file exists, is complete, and fits the others.

All problems are collected and named in one error, and nothing is written. `training_files` reads the training files
(hard negatives, SFT, GRPO), and `importing` turns everything into rows.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsr1_core.datasets.verified import Moment, fig_moment, video_id_of
from vsr1_core.home.prepared.arrays import ArrayError, OtherIndex, open_array, open_flat_index
from vsr1_core.home.prepared.documents import (
    Line,
    PreparedError,
    Problems,
    is_file_name,
    json_lines,
    read_document,
    some,
)
from vsr1_core.home.prepared.frame_files import FrameFiles, read_frames_of

SPLITS = ("train", "val", "test")
VIDEO_VECTORS = "video_embedding_1fps"
SAME_VECTOR = 1e-3
"""Largest difference of a number in an index and in the embeddings it was made of; both have length 1."""


@dataclass(frozen=True)
class Annotated:
    """One annotated query as the file spells it. moment: None where the line is not a valid moment (a bad span)."""

    query_id: str
    query: str
    video_id: str
    time: Any
    moment: Moment | None


@dataclass(frozen=True)
class PreparedSplit:
    """One split that passed all checks.

    query_vectors: [Q, D] in the order of `queries`. video_vectors: [V, D] in the order of `video_ids`. unannotated:
    videos of its corpus that no line of its annotations names. index: None where it has to be built anew. embedder:
    name of the model that made the vectors; empty where the folder does not say it.
    """

    split: str
    annotations: Path
    annotated: Mapping[str, Annotated]
    queries: Sequence[Line]
    query_vectors: NDArray[np.float32]
    video_ids: Sequence[str]
    video_vectors: NDArray[np.float32]
    unannotated: Collection[str]
    index: Path | None
    frames: FrameFiles
    embedder: str


def splits_of(root: Path) -> list[str]:
    """The splits whose queries or videos were embedded. PreparedError where there are none.

    The authors' scripts make a folder of the queries of `val`, of which they then embed nothing.
    """
    found = [s for s in SPLITS if (root / s / "query_embedding").is_dir() or (root / s / VIDEO_VECTORS).is_dir()]
    if not found:
        raise PreparedError(
            f"{root} holds no prepared data: give the folder of one dataset, with raw_annotation/, train/, test/"
        )
    return found


def read_split(root: Path, split: str, problems: Problems, workers: int = 1) -> PreparedSplit | None:
    """Read one split. All problems are added to `problems`; returns None where there are any."""
    known = len(problems.lines)
    folder, annotations = root / split, root / "raw_annotation" / f"{split}.jsonl"
    annotated = _annotated(annotations, split, problems)
    queries = _query_lines(folder / "query_embedding" / f"query_meta.{split}.jsonl", annotated, problems)
    query_path = folder / "query_embedding" / f"query_embeddings.{split}.npy"
    query_vectors = _vectors(query_path, problems)
    if query_vectors is not None and len(query_vectors) != len(queries):
        problems.add(query_path, f"has {len(query_vectors):,} rows, query_meta.{split}.jsonl has {len(queries):,}")
    video_folder = folder / VIDEO_VECTORS
    video_vectors = _vectors(video_folder / "segment_embeds.npy", problems)
    video_ids = _video_ids(video_folder / "docid2row.json", video_vectors, problems)
    if query_vectors is not None and video_vectors is not None and query_vectors.shape[1] != video_vectors.shape[1]:
        problems.add(
            query_path, f"has vectors of {query_vectors.shape[1]} numbers, the videos' have {video_vectors.shape[1]}"
        )
    index = _index(folder / "index", video_ids, video_vectors, problems) if video_vectors is not None else None
    named = {row.video_id for row in annotated.values()}
    frames = read_frames_of(folder / "video_npy_with_meta", video_ids, named, problems, workers)
    if len(problems.lines) > known or query_vectors is None or video_vectors is None:
        return None
    return PreparedSplit(
        split=split,
        annotations=annotations,
        annotated=annotated,
        queries=queries,
        query_vectors=query_vectors,
        video_ids=video_ids,
        video_vectors=video_vectors,
        unannotated=set(video_ids) - named,
        index=None if frames.missing else index,
        frames=frames,
        embedder=_embedder_of(video_folder / "config.json", problems),
    )


def _annotated(path: Path, split: str, problems: Problems) -> dict[str, Annotated]:
    found: dict[str, Annotated] = {}
    for number, fields in json_lines(path, problems, strict=False):
        desc_id = fields.get("desc_id")
        if isinstance(desc_id, bool) or not isinstance(desc_id, int | str):
            continue  # the stage `moments` makes a failed row of such a line
        query_id = f"{desc_id}_fig"
        if query_id in found:
            problems.add(path, f"line {number} repeats the id {desc_id}")
        try:
            moment = fig_moment(fields, split)
        except ValueError:
            moment = None
        query, video = str(fields.get("fig_desc") or "").strip(), str(fields.get("video") or "")
        found[query_id] = Annotated(query_id, query, video_id_of(video), fields.get("time"), moment)
    return found


def _query_lines(path: Path, annotated: Mapping[str, Annotated], problems: Problems) -> list[Line]:
    lines, seen = [], set()
    for number, fields in json_lines(path, problems):
        query_id = str(fields.get("qid"))
        row = annotated.get(query_id)
        if query_id in seen:
            problems.add(path, f"line {number} repeats the query {query_id}")
        elif row is None:
            problems.add(path, f"line {number} names the query {query_id}, which is not annotated")
        elif (str(fields.get("query")).strip(), video_id_of(str(fields.get("pos_doc_id")))) != (
            row.query,
            row.video_id,
        ):
            problems.add(path, f"line {number}: text or video of {query_id} are not those of its annotation")
        seen.add(query_id)
        lines.append(Line(query_id, json.dumps(fields, ensure_ascii=False), row is not None and row.moment is not None))
    return lines


def _vectors(path: Path, problems: Problems) -> NDArray[np.float32] | None:
    try:
        vectors = open_array(path, np.float32, 2)
    except ArrayError as error:
        problems.add(path, str(error))
        return None
    lengths = np.linalg.norm(vectors, axis=1)
    bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if bad.size:
        problems.add(path, f"{bad.size:,} rows have no direction (zero or not finite), e.g. row {bad[0]}")
    return vectors


def _embedder_of(path: Path, problems: Problems) -> str:
    """The name of the embedder, which the authors' scripts write beside the vectors."""
    said = read_document(path, problems, dict) if path.is_file() else None
    return str((said or {}).get("embed_model") or "")


def _video_ids(path: Path, vectors: NDArray[Any] | None, problems: Problems) -> list[str]:
    """The video ids in the order of their rows; empty where the map is wrong."""
    rows = read_document(path, problems, dict)
    if rows is None:
        return []
    count = len(problems.lines)
    if any(type(row) is not int for row in rows.values()) or set(rows.values()) != set(range(len(rows))):
        problems.add(
            path, f"does not number its {len(rows):,} videos from 0 to {len(rows) - 1}, using each number once"
        )
    if vectors is not None and len(vectors) != len(rows):
        problems.add(path, f"maps {len(rows):,} videos, segment_embeds.npy has {len(vectors):,} rows")
    unsafe = sorted(v for v in rows if not is_file_name(v))
    if unsafe:
        problems.add(path, f"{len(unsafe):,} of its ids cannot be file names: {some(unsafe)}")
    return [] if len(problems.lines) > count else sorted(rows, key=rows.__getitem__)


def _index(folder: Path, video_ids: Sequence[str], vectors: NDArray[Any], problems: Problems) -> Path | None:
    """The folder of the index, if it can be imported; without one, or with one of another kind, it is built anew."""
    path, known = folder / "index.faiss", len(problems.lines)
    if not path.is_file() and not (folder / "id_map.json").is_file():
        problems.note(path, "is not there; the index is built from the vectors")
        return None
    try:
        _check_index(folder, video_ids, vectors, problems)
    except OtherIndex as error:
        problems.note(path, f"{error}; the index is built anew from the vectors")
        return None
    return folder if len(problems.lines) == known else None


def _check_index(folder: Path, video_ids: Sequence[str], vectors: NDArray[Any], problems: Problems) -> None:
    path, ids = folder / "index.faiss", read_document(folder / "id_map.json", problems, list)
    try:
        stored = open_flat_index(path)
    except OtherIndex:
        raise
    except ArrayError as error:
        problems.add(path, str(error))
        return
    if ids is None or not video_ids:
        return
    ids = [str(video_id) for video_id in ids]
    if len(ids) != len(set(ids)) or set(ids) != set(video_ids):
        odd = sorted(set(ids) ^ set(video_ids)) or sorted({i for i in ids if ids.count(i) > 1})
        problems.add(folder / "id_map.json", f"does not name each video of docid2row.json exactly once: {some(odd)}")
        return
    if stored.shape != vectors.shape:
        problems.add(path, f"holds vectors of shape {list(stored.shape)}, segment_embeds.npy has {list(vectors.shape)}")
        return
    row_of = {video_id: row for row, video_id in enumerate(video_ids)}
    differ = np.abs(stored - of_length_1(vectors[[row_of[i] for i in ids]])).max(axis=1)
    wrong = np.flatnonzero(~(differ <= SAME_VECTOR))
    if wrong.size:
        problems.add(
            path, f"{wrong.size:,} vectors differ from those in segment_embeds.npy: {some([ids[i] for i in wrong])}"
        )


def of_length_1(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """`vectors` [N, D] scaled to length 1: lengths of the authors' bf16 vectors are off by up to 0.2 %."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / lengths, np.float32)
