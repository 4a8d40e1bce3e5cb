"""Read and check the splits of a prepared folder: every file exists, is complete, and fits the others.

All problems are collected and named in one error, and nothing is written. `training_files` reads the training files
(hard negatives, SFT, GRPO), and `importing` turns everything into rows.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsr1_core.datasets.verified import Moment, fig_moment, seconds, video_id_of
from vsr1_core.home.prepared.arrays import ArrayError, open_array, open_flat_index
from vsr1_core.rows.files import digest_file, read_jsonl
from vsr1_core.rows.texts import check_text
from vsr1_core.rows.workers import map_rows

SPLITS = ("train", "val", "test")
MAX_NAMED = 20
SAME_VECTOR = 1e-3
"""Largest difference of a number in an index and in the embeddings it was made of; both have length 1."""


class PreparedError(ValueError):
    """The folder cannot be imported. The message names each file and what is wrong with it."""


@dataclass
class Problems:
    """The problems that were found in files below `root`, one line per problem."""

    root: Path
    lines: list[str] = field(default_factory=list)

    def add(self, path: Path, what: str) -> None:
        """Add a problem of the file `path`, which is below `root`."""
        self.lines.append(f"{path.relative_to(self.root)}: {what}")

    def raise_if_any(self) -> None:
        """Raise PreparedError with the first 20 problems, if there are any."""
        if not self.lines:
            return
        named = self.lines[:MAX_NAMED]
        named += [f"and {len(self.lines) - MAX_NAMED:,} more"] if len(self.lines) > MAX_NAMED else []
        raise PreparedError("\n".join([f"{self.root} was not imported, and nothing was changed:", *named]))


@dataclass(frozen=True)
class Line:
    """One line of an imported document: the id of its row, and its JSON text. is_held: whether a row is made of it."""

    row_id: str
    record: str
    is_held: bool = True


@dataclass(frozen=True)
class Annotated:
    """One annotated query as the file spells it. moment: None where the line is not a valid moment (a bad span)."""

    query_id: str
    query: str
    video_id: str
    time: Any
    moment: Moment | None


@dataclass(frozen=True)
class ImportedFrames:
    """The array of one video, and its line in meta.jsonl.

    shape: [T, H, W, 3]. times_s: true source time of each frame, in seconds.
    """

    video_id: str
    path: Path
    shape: tuple[int, ...]
    digest: str
    times_s: tuple[float, ...]
    duration_s: float
    fps: float
    num_source_frames: int | None


@dataclass(frozen=True)
class PreparedSplit:
    """One split that passed all checks.

    query_vectors: [Q, D] in the order of `queries`. video_vectors: [V, D] in the order of `video_ids`.
    """

    split: str
    annotations: Path
    annotated: Mapping[str, Annotated]
    queries: Sequence[Line]
    query_vectors: NDArray[np.float32]
    video_ids: Sequence[str]
    video_vectors: NDArray[np.float32]
    index: Path
    frames: Mapping[str, ImportedFrames]
    frame_lines: Sequence[Line]


def splits_of(root: Path) -> list[str]:
    """The splits that have a subfolder in `root`. PreparedError where there are none."""
    found = [split for split in SPLITS if (root / split).is_dir()]
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
    video_folder = folder / "video_embedding_1fps"
    video_vectors = _vectors(video_folder / "segment_embeds.npy", problems)
    video_ids = _video_ids(video_folder / "docid2row.json", annotated, video_vectors, problems)
    if query_vectors is not None and video_vectors is not None and query_vectors.shape[1] != video_vectors.shape[1]:
        problems.add(
            query_path, f"has vectors of {query_vectors.shape[1]} numbers, the videos' have {video_vectors.shape[1]}"
        )
    if video_vectors is not None and video_ids:
        _check_index(folder / "index", video_ids, video_vectors, problems)
    frames, frame_lines = _frames(folder / "video_npy_with_meta", video_ids, problems, workers)
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
        index=folder / "index",
        frames=frames,
        frame_lines=frame_lines,
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


def _video_ids(
    path: Path, annotated: Mapping[str, Annotated], vectors: NDArray[Any] | None, problems: Problems
) -> list[str]:
    """The video ids in the order of their rows; empty where the map is wrong."""
    rows = read_document(path, problems, dict)
    if rows is None:
        return []
    count, known = len(problems.lines), {row.video_id for row in annotated.values()}
    if any(type(row) is not int for row in rows.values()) or set(rows.values()) != set(range(len(rows))):
        problems.add(
            path, f"does not number its {len(rows):,} videos from 0 to {len(rows) - 1}, using each number once"
        )
    if vectors is not None and len(vectors) != len(rows):
        problems.add(path, f"maps {len(rows):,} videos, segment_embeds.npy has {len(vectors):,} rows")
    strange = sorted(v for v in rows if v not in known)
    if strange:
        problems.add(path, f"{len(strange):,} of its videos are not annotated in this split: {_some(strange)}")
    unsafe = sorted(v for v in rows if not is_file_name(v))
    if unsafe:
        problems.add(path, f"{len(unsafe):,} of its ids cannot be file names: {_some(unsafe)}")
    return [] if len(problems.lines) > count else sorted(rows, key=rows.__getitem__)


def is_file_name(video_id: str) -> bool:
    """Whether `<id>.npy` is the name of a plain file in a folder; ids come from untrusted files."""
    return bool(video_id) and not video_id.startswith(".") and not set(video_id) & set("/\\\0") and len(video_id) < 200


def _check_index(folder: Path, video_ids: Sequence[str], vectors: NDArray[Any], problems: Problems) -> None:
    path, ids = folder / "index.faiss", read_document(folder / "id_map.json", problems, list)
    try:
        stored = open_flat_index(path)
    except ArrayError as error:
        problems.add(path, str(error))
        return
    if ids is None:
        return
    ids = [str(video_id) for video_id in ids]
    if len(ids) != len(set(ids)) or set(ids) != set(video_ids):
        odd = sorted(set(ids) ^ set(video_ids)) or sorted({i for i in ids if ids.count(i) > 1})
        problems.add(folder / "id_map.json", f"does not name each video of docid2row.json exactly once: {_some(odd)}")
        return
    if stored.shape != vectors.shape:
        problems.add(path, f"holds vectors of shape {list(stored.shape)}, segment_embeds.npy has {list(vectors.shape)}")
        return
    row_of = {video_id: row for row, video_id in enumerate(video_ids)}
    differ = np.abs(stored - of_length_1(vectors[[row_of[i] for i in ids]])).max(axis=1)
    wrong = np.flatnonzero(~(differ <= SAME_VECTOR))
    if wrong.size:
        problems.add(
            path, f"{wrong.size:,} vectors differ from those in segment_embeds.npy: {_some([ids[i] for i in wrong])}"
        )


def of_length_1(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """`vectors` [N, D] scaled to length 1: lengths of the authors' bf16 vectors are off by up to 0.2 %."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / lengths, np.float32)


def _frames(
    folder: Path, video_ids: Sequence[str], problems: Problems, workers: int
) -> tuple[dict[str, ImportedFrames], list[Line]]:
    lines, metas = [], {}
    path = folder / "meta.jsonl"
    for number, fields in json_lines(path, problems):
        video_id = str(fields.get("video_id"))
        is_skip = str(fields.get("status", "")).startswith("skip")  # the line of a second run that changed nothing
        if not is_skip and video_id in metas:
            problems.add(path, f"line {number} repeats the video {video_id}")
        if not is_skip:
            metas[video_id] = fields
        lines.append(Line(video_id, json.dumps(fields, ensure_ascii=False), not is_skip))
    arrays = {p.stem for p in folder.glob("*.npy")} if folder.is_dir() else set()
    for video_id in sorted((set(metas) | arrays) - set(video_ids) if video_ids else ()):
        problems.add(folder / f"{video_id}.npy" if is_file_name(video_id) else path, "docid2row.json has no such video")
    for video_id in sorted(set(video_ids) - set(metas)):
        problems.add(path, f"has no line for {video_id}")
    tasks = [folder / f"{video_id}.npy" for video_id in video_ids if video_id in metas]
    found = {}
    for result in map_rows(examine_frames, tasks, workers):
        try:
            if result.value is None:
                raise ArrayError(str(result.error))
            found[result.item.stem] = _with_meta(result.item, *result.value, metas[result.item.stem])
        except ValueError as error:
            problems.add(result.item, str(error))
    return found, lines


def examine_frames(path: Path) -> tuple[tuple[int, ...], str]:
    """(shape, digest) of one array of frames. ArrayError where the file is no such array."""
    shape = open_array(path, np.uint8, 4).shape
    if shape[-1] != 3:
        raise ArrayError(f"must have shape [T, H, W, 3], has {list(shape)}")
    return shape, digest_file(path)


def _with_meta(path: Path, shape: tuple[int, ...], digest: str, meta: Mapping[str, Any]) -> ImportedFrames:
    """The array with its line of meta.jsonl. ValueError where the two disagree, or a value is unusable."""
    said = tuple(meta.get(f"output_{name}") for name in ("num_frames", "height", "width"))
    if said != shape[:3]:
        raise ValueError(f"has shape {list(shape)}, meta.jsonl says {list(said)} for frames, height and width")
    times = meta.get("sampled_timestamps_sec")
    if not isinstance(times, list) or len(times) != shape[0]:
        raise ValueError(f"has {shape[0]} frames, meta.jsonl gives {_count(times)} times (sampled_timestamps_sec)")
    times_s = tuple(seconds(t, "sampled_timestamps_sec") for t in times)
    if times_s[0] < 0 or any(a > b for a, b in itertools.pairwise(times_s)):
        raise ValueError("its times in meta.jsonl (sampled_timestamps_sec) are negative or not in order")
    duration_s, fps = (
        seconds(meta.get("source_duration_sec"), "source_duration_sec"),
        seconds(meta.get("raw_fps"), "raw_fps"),
    )
    if duration_s <= 0 or fps <= 0:
        raise ValueError(f"meta.jsonl says {duration_s:g} s at {fps:g} frames per second; both must be above 0")
    total = meta.get("source_total_frames")
    return ImportedFrames(
        path.stem, path, shape, digest, times_s, duration_s, fps, total if isinstance(total, int) else None
    )


def _count(value: Any) -> str:
    return str(len(value)) if isinstance(value, list) else "no"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def json_lines(path: Path, problems: Problems, strict: bool = True) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line of a JSONL file. With `strict`, a line that is no JSON object is a problem."""
    if not path.is_file():
        problems.add(path, "is not there")
        return
    for number, text in read_jsonl(path):
        try:
            fields = json.loads(check_text(text), object_pairs_hook=_without_repeats)
        except ValueError as error:
            fields = error
        if isinstance(fields, dict):
            yield number, fields
        elif strict:
            problems.add(path, f"line {number} is not a JSON object" + (f" ({fields})" if fields is not None else ""))


def read_document(path: Path, problems: Problems, kind: type[Any]) -> Any:
    """The JSON document at `path`; None, with a problem added, where it is missing, broken, or not a `kind`."""
    if not path.is_file():
        problems.add(path, "is not there")
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
    except ValueError as error:
        problems.add(path, f"is not valid JSON, or is cut off ({error})")
        return None
    if not isinstance(value, kind):
        problems.add(path, f"must be a JSON {'object' if kind is dict else 'list'}")
        return None
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of these pairs. ValueError where a key repeats: the json module would silently keep the last value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} is there more than once")
    return found
