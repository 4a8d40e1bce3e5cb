"""Export a dataset from the lake in the prepared layout: imported rows unchanged, and the rows that were made here.

Documents and arrays keep the order in which they were imported; rows that were made here follow, sorted by id.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from vsr1_core.datasets.benchmarks import BENCHMARKS
from vsr1_core.datasets.verified import fig_fields
from vsr1_core.home.prepared.documents import is_file_name
from vsr1_core.home.prepared.importing import bring
from vsr1_core.home.prepared.layout import SPLITS
from vsr1_core.home.prepared.rows import INDEX_FILES
from vsr1_core.home.prepared.training_files import GRPO, HARD_NEGATIVES, SFT, STATS
from vsr1_core.home.staleness import require_current
from vsr1_core.media.frame_store import EXACT, frames_shape, read_frames, write_frames
from vsr1_core.rows.files import atomic_folder, write_json, write_jsonl
from vsr1_core.segments import window_of
from vsr1_core.stages.base import View
from vsr1_core.stages.examples import published_grpo_row, published_prompt, published_sft_row

NEEDED = ("moments", "frame_tensors", "query_embeddings", "video_embeddings", "video_index")
TRAINING = {"hard_negatives": HARD_NEGATIVES, "sft_examples": SFT, "grpo_prompts": GRPO}


@dataclass(frozen=True)
class Entry:
    """One line to write.

    position: its place in the imported document; None where it was not imported or has changed. record: the imported
    JSON text; None where it was not imported or has changed.
    """

    row_id: str
    position: int | None
    record: str | None


def export_prepared(view: View, target: Path, copy: bool = False, stale: bool = False) -> list[str]:
    """Write the dataset to the folder `target`; on an error nothing is written.

    Args:
        view: The dataset.
        target: The folder to make; it may exist if it is empty.
        copy: Whether frames are copied; otherwise they are hard links where `target` is on the lake's file system.
        stale: Whether tables that are out of date are written as they are.

    Returns:
        The training files that were left out because their assets are not built.

    Raises:
        FileExistsError: `target` is not an empty folder.
        FileNotFoundError: A required table is not built; the message has the command that builds it.
        ValueError: A video id cannot be a file name, or tables are out of date; the message names them.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is not an empty folder; name a new one")
    for asset in NEEDED:
        view.table(asset).manifest()  # raises where the table is not built
    unsafe = [v for v in view.rows("video_embeddings", ["video_id"])["video_id"] if not is_file_name(v)]
    if any(window_of(v) is not None for v in unsafe):
        raise ValueError(
            f"the prepared layout knows whole videos only, and long ones of {view.entry.name} are searched in windows: "
            f"add it under another name with --window 0"
        )
    if unsafe:
        raise ValueError(
            f"the prepared layout names a file after each video, and {len(unsafe):,} ids cannot be file names, e.g. "
            f"{unsafe[0]!r}; put the videos into one folder without subfolders"
        )
    splits = [s for s in SPLITS if s in set(view.rows("moments", ["split"])["split"])]
    built = {asset for asset in TRAINING if "train" in splits and view.table(asset).exists()}
    if not stale:
        require_current(view, [*NEEDED, *built])
    with atomic_folder(target) as folder:
        for split in splits:
            _write_split(view, split, folder, copy)
        if "hard_negatives" in built:
            _write_hard_negatives(view, folder / HARD_NEGATIVES)
        if "sft_examples" in built:
            publish = partial(published_sft_row, system_prompt=published_prompt(view))
            write_json(folder / SFT, list(_values(view, "sft", "sft_examples", publish)))
        if "grpo_prompts" in built:
            prompts = list(_values(view, "grpo", "grpo_prompts", published_grpo_row))
            write_jsonl(folder / GRPO, prompts)
            write_json(folder / STATS, _imported_stats(view, prompts) or prompt_stats(view, prompts))
    return [str(path) for asset, path in TRAINING.items() if "train" in splits and asset not in built]


def _as_imported(view: View, asset: str) -> set[str]:
    """Ids of the rows that are still as the current import brought them."""
    table, imported = view.table(asset), view.imported_rows(asset)
    rows = table.ok_rows([table.key, "row_inputs"]).iter_rows() if imported else ()
    return {i for i, inputs in rows if i in imported and json.loads(inputs).get("imported") == imported[i].digest}


def _entries(view: View, document: str, asset: str, ids: Iterable[str]) -> list[Entry]:
    """What to write for the rows `ids`: imported lines in their order, then the other rows sorted by id.

    An imported line that no row was made from is kept, unless the lake has a changed row with its id.
    """
    current, as_imported = set(ids), _as_imported(view, asset)
    entries, written = [], set()
    if view.imported is not None:
        for position, (row_id, is_held, record) in enumerate(view.imported.document(document).iter_rows()):
            is_unchanged = row_id in as_imported and row_id in current
            if is_unchanged or (not is_held and row_id not in current):
                entries.append(Entry(row_id, position, record))
            elif is_held and row_id in current:
                entries.append(Entry(row_id, None, None))
            written.add(row_id)
    return [*entries, *(Entry(row_id, None, None) for row_id in sorted(current - written))]


def _values(
    view: View, document: str, asset: str, publish: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """One JSON object per line: as it was imported, or as `publish` writes the row."""
    rows = {row["query_id"]: row for row in view.rows(asset).iter_rows(named=True)}
    for entry in _entries(view, document, asset, rows):
        yield publish(rows[entry.row_id]) if entry.record is None else json.loads(entry.record)


def _imported_stats(view: View, prompts: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The imported statistics, if they are still those of the prompts."""
    if view.imported is None:
        return None
    stats, imported = (view.imported.document(name)["record"].to_list() for name in ("grpo_stats", "grpo"))
    return json.loads(stats[0]) if stats and [json.loads(record) for record in imported] == prompts else None


def prompt_stats(view: View, prompts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What stands in `stats.minimal_top1.json`: numbers of prompts, in all and (`_raw`) without the augmented ones."""
    benchmark = BENCHMARKS.get(view.entry.corpus)
    raw = [prompt for prompt in prompts if not prompt.get("is_augmented")]
    stats: dict[str, Any] = {"dataset_name": benchmark.title if benchmark else view.entry.corpus}
    for ending, some in (("", prompts), ("_raw", raw)):
        matched = sum(prompt["label"] == "matched" for prompt in some)
        stats |= {f"rows_written{ending}": len(some), f"rows_matched{ending}": matched}
        stats[f"rows_not_matched{ending}"] = len(some) - matched
    negatives = [len(prompt["hard_negative_ids"]) for prompt in prompts]
    return {
        **stats,
        "rows_augmented_match_added": len(prompts) - len(raw),
        "hard_negative_topk": max(negatives, default=0),
        "hard_negative_avg_count": sum(negatives) / max(1, len(negatives)),
    }


def _write_hard_negatives(view: View, path: Path) -> None:
    rows = dict(view.rows("hard_negatives", ["query_id", "video_ids"]).iter_rows())
    entries = _entries(view, "hard_negatives", "hard_negatives", rows)
    write_json(path, {e.row_id: rows[e.row_id] if e.record is None else json.loads(e.record) for e in entries})


def _write_split(view: View, split: str, folder: Path, copy: bool) -> None:
    _write_annotations(view, split, folder / "raw_annotation" / f"{split}.jsonl")
    _write_queries(view, split, folder / split / "query_embedding")
    _write_videos(view, split, folder / split / "video_embedding_1fps")
    _write_frames(view, split, folder / split / "video_npy_with_meta", copy)
    indexes = dict(view.rows("video_index", ["split", "path"]).iter_rows())
    for name in INDEX_FILES if split in indexes else ():
        bring(Path(indexes[split]) / name, folder / split / "index" / name, copy=True)


def _write_annotations(view: View, split: str, target: Path) -> None:
    """Copy the annotation file of the split where there is one, else write the moments in the FIG schema."""
    files = view.rows("annotation_files", ["split", "path"]).filter(pl.col("split") == split)["path"].to_list()
    target.parent.mkdir(parents=True, exist_ok=True)
    if files:
        shutil.copyfile(files[0], target)
        return
    write_jsonl(target, map(fig_fields, view.rows("moments").filter(pl.col("split") == split).iter_rows(named=True)))


def _write_queries(view: View, split: str, folder: Path) -> None:
    vectors = view.rows("query_embeddings", ["query_id", "split", "vector"]).filter(pl.col("split") == split)
    entries = _entries(view, f"{split}.queries", "query_embeddings", vectors["query_id"])
    _write_vectors(view, f"{split}.queries", entries, vectors, folder / f"query_embeddings.{split}.npy")
    moments = {m["query_id"]: m for m in view.rows("moments", ["query_id", "query", "video_id"]).iter_rows(named=True)}
    fresh = lambda m: {"qid": m["query_id"], "query": m["query"], "pos_doc_id": m["video_id"], "weight": 1.0}  # noqa: E731
    lines = (json.loads(e.record) if e.record is not None else fresh(moments[e.row_id]) for e in entries)
    write_jsonl(folder / f"query_meta.{split}.jsonl", lines)


def _videos_of(view: View, split: str) -> pl.DataFrame:
    """The rows of `video_embeddings` whose videos are in the corpus of the split."""
    return view.rows("video_embeddings").filter(pl.col("splits").list.contains(split))


def _write_videos(view: View, split: str, folder: Path) -> None:
    vectors = _videos_of(view, split).select("video_id", "splits", "vector")
    entries = _entries(view, f"{split}.videos", "video_embeddings", vectors["video_id"])
    _write_vectors(view, f"{split}.videos", entries, vectors, folder / "segment_embeds.npy")
    write_json(folder / "docid2row.json", {entry.row_id: row for row, entry in enumerate(entries)})


def _write_vectors(view: View, document: str, entries: Sequence[Entry], own: pl.DataFrame, path: Path) -> None:
    """Write float32 [N, D] in the order of `entries`. own: rows of the lake, with the id first and a `vector`."""
    imported = None
    if view.imported is not None and any(entry.position is not None for entry in entries):
        imported = np.load(view.imported.array(document), mmap_mode="r", allow_pickle=False)
    if imported is None and own.is_empty():
        raise ValueError(
            f"there is no vector to write into {path.name}, because no row of the split is embedded; see: "
            f"vsr1 status --dataset {view.entry.name}"
        )
    row_of = {row_id: row for row, row_id in enumerate(own.to_series(0))}
    size = len(own["vector"][0]) if imported is None else imported.shape[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(len(entries), size))
    for row, entry in enumerate(entries):
        if imported is None or entry.position is None:
            out[row] = own["vector"][row_of[entry.row_id]]
        else:
            out[row] = imported[entry.position]
    out.flush()


def _write_frames(view: View, split: str, folder: Path, copy: bool) -> None:
    ids = set(_videos_of(view, split)["video_id"])
    frames = {r["video_id"]: r for r in view.rows("frame_tensors").iter_rows(named=True) if r["video_id"] in ids}
    sources = {r["video_id"]: r for r in view.rows("videos", ["video_id", "fps", "num_frames"]).to_dicts()}
    for video_id, row in frames.items():
        _bring_frames(Path(row["path"]), folder / f"{video_id}.npy", copy)
    entries = _entries(view, f"{split}.frames", "frame_tensors", frames)
    lines = (
        json.loads(e.record)
        if e.record is not None
        else _frames_meta(frames[e.row_id], sources[e.row_id], split, view.config.frames.fps)
        for e in entries
    )
    write_jsonl(folder / "meta.jsonl", lines)


def _bring_frames(source: Path, target: Path, copy: bool) -> None:
    """Put stored frames at `target`, which is always an array: JPEGs are decoded."""
    if source.suffix == EXACT:
        bring(source, target, copy)
    else:
        write_frames(target, read_frames(source))


def _frames_meta(row: Mapping[str, Any], source: Mapping[str, Any], split: str, sample_fps: float) -> dict[str, Any]:
    """A line of meta.jsonl. The times are the true ones; frame numbers assume a source with a constant frame rate.

    source: the video's row of `videos`. sample_fps: the rate at which frames were sampled.
    """
    num_frames, height, width = frames_shape(row["path"])
    return {
        "source_duration_sec": row["duration_s"],
        "raw_fps": source["fps"],
        "source_total_frames": source["num_frames"],
        "target_sample_fps": sample_fps,
        "sampled_indices_src": [round(time_s * source["fps"]) for time_s in row["timestamps_s"]],
        "sampled_timestamps_sec": row["timestamps_s"],
        "output_num_frames": num_frames,
        "output_height": height,
        "output_width": width,
        "video_id": row["video_id"],
        "output_npy_path": f"{split}/video_npy_with_meta/{row['video_id']}.npy",
    }
