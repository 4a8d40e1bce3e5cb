"""A prepared folder as the authors' scripts write one, with the traps of the published data, at the smallest size.

Traps: rows that share a text (and so an id in the stage 2 file), an end beyond the duration, an annotated line that is
no moment but has an embedding, vectors of length 0.998, lines in random order, a repeated (augmented) prompt, frames
whose sides are no multiple of 32, a meta line of a second run, and a trace that contradicts its label.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import faiss
import numpy as np

SIZE = 8
VIDEOS = {"train": [f"TRN{n:02d}" for n in range(5)], "test": [f"TST{n:02d}" for n in range(3)]}
SYSTEM = "You are a video retrieval assistant. End with <REFINE>."


def write_prepared(root: Path, seed: int = 0) -> Path:
    """Write the folder and return it."""
    rng, order = np.random.default_rng(seed), random.Random(seed)
    for number, split in enumerate(VIDEOS):
        rows = annotations(split, 100 * number)
        write_lines(root / f"raw_annotation/{split}.jsonl", rows)
        videos = order.sample(VIDEOS[split], len(VIDEOS[split]))
        vectors = unit(rng, len(videos))
        _write_videos(root / split, videos, vectors, rng)
        metas = order.sample([_query(row) for row in rows], len(rows))
        queries = unit(rng, len(metas))
        folder = root / split / "query_embedding"
        write_lines(folder / f"query_meta.{split}.jsonl", metas)
        np.save(folder / f"query_embeddings.{split}.npy", queries)
        if split == "train":
            ranked = {
                meta["qid"]: [videos[i] for i in np.argsort(-(vectors @ query))]
                for meta, query in zip(metas, queries, strict=True)
            }
            _write_training(root, rows, metas, ranked)
    return root


def unit(rng: np.random.Generator, count: int) -> np.ndarray:
    vectors = rng.standard_normal((count, SIZE)).astype(np.float32)
    return np.asarray(0.998 * vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def annotations(split: str, first_id: int) -> list[dict[str, Any]]:
    rows = []
    for number, video in enumerate(VIDEOS[split]):
        for event in range(2):
            text = "A person sits down." if event == 0 and number < 2 else f"Person {number} opens door {event}."
            end = 200.0 if event else 90.0  # the video is 180 s long
            rows.append(
                {"video": video, "time": [20.0 * event, end], "desc_id": first_id + len(rows), "duration": 180.0,
                 "cog_desc": "person.", "fig_desc": text, "fig_desc_score": 0.5}
            )  # fmt: skip
    rows.append(rows[-1] | {"desc_id": first_id + 50, "time": [190.0, 195.0], "fig_desc": "After the end."})
    return rows


def _query(row: dict[str, Any]) -> dict[str, Any]:
    meta = {"qid": f"{row['desc_id']}_fig", "query": row["fig_desc"], "pos_doc_id": row["video"], "weight": 1.0}
    return meta | {"fig_score": row["fig_desc_score"]}


def _write_videos(folder: Path, videos: list[str], vectors: np.ndarray, rng: np.random.Generator) -> None:
    (folder / "video_embedding_1fps").mkdir(parents=True)
    np.save(folder / "video_embedding_1fps/segment_embeds.npy", vectors)
    write_json(folder / "video_embedding_1fps/docid2row.json", {video: row for row, video in enumerate(videos)})
    (folder / "index").mkdir()
    index, copy = faiss.IndexFlatIP(SIZE), vectors.copy()
    faiss.normalize_L2(copy)
    index.add(copy)
    faiss.write_index(index, str(folder / "index/index.faiss"))
    write_json(folder / "index/id_map.json", videos)
    frames, metas = folder / "video_npy_with_meta", []
    frames.mkdir()
    for number, video in enumerate(videos):
        count = 4 + 2 * (number % 3)
        np.save(frames / f"{video}.npy", rng.integers(0, 256, (count, 45, 80, 3), np.uint8))
        metas.append(frames_meta(video, count))
    metas.append({"video_id": videos[0], "status": "skip_exists", "source_video_path": f"/data/{videos[0]}.mp4"})
    write_lines(frames / "meta.jsonl", metas)


def frames_meta(video: str, count: int) -> dict[str, Any]:
    """180 s at 30 frames a second: frames are far more than a second apart."""
    indices = np.linspace(0, 5399, count).astype(int).tolist()
    return {
        "source_video_path": f"/data/{video}.mp4", "source_total_frames": 5400, "source_duration_sec": 180.0,
        "raw_fps": 30.0, "target_sample_fps": 1.0, "sampled_indices_src": indices,
        "sampled_timestamps_sec": [i / 30.0 for i in indices], "output_num_frames": count, "output_height": 45,
        "output_width": 80, "video_id": video, "output_npy_path": f"/data/npy/{video}.npy",
    }  # fmt: skip


def _write_training(root: Path, rows: list[dict[str, Any]], metas: list[dict[str, Any]], ranked: Any) -> None:
    right = {meta["qid"]: meta["pos_doc_id"] for meta in metas}
    write_json(root / "train/hard_negatives.json", {q: [v for v in ids if v != right[q]] for q, ids in ranked.items()})
    write_json(
        root / "sft_data/train_oneturn.json", [_conversation(meta, ranked, n) for n, meta in enumerate(metas[:6])]
    )
    first_with_text: dict[str, str] = {}
    for meta in metas:
        first_with_text.setdefault(meta["query"], meta["qid"])
    prompts = [_prompt(row, first_with_text, ranked) for row in rows]
    augmented = next(p for p in prompts if p["label"] == "not_matched")
    augmented = augmented | {"retrieved_video": augmented["gt_video"], "label": "matched", "is_augmented": True}
    write_lines(root / "grpo_data/train.minimal_top1.jsonl", [*prompts, augmented])
    write_json(root / "grpo_data/stats.minimal_top1.json", {"dataset_name": "Charades", "rows_total": len(rows)})


def _conversation(meta: dict[str, Any], ranked: Any, number: int) -> dict[str, Any]:
    """The second one is answered against its label."""
    shown = meta["pos_doc_id"] if number % 2 else next(v for v in ranked[meta["qid"]] if v != meta["pos_doc_id"])
    label = "pos" if shown == meta["pos_doc_id"] else "neg"
    span = "<answer>matched</answer> <start>2.5</start> <end>4.0</end>"
    said = span if (label == "pos") != (number == 1) else "<answer>not_matched</answer>"
    answer = f"<think> The person is seen. </think> {said} <REFINE>"
    return {
        "qid": meta["qid"], "query": meta["query"],
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f'Query: "{meta["query"]}"\nRetrieved video: <video>'},
            {"role": "assistant", "content": answer},
        ],
        "videos": [f"{shown}.npy"],
        "meta": {"source": "pairs", "gold_label": label, "video_id": shown, "query_pos_video_id": meta["pos_doc_id"],
                 "pair_id": f"{meta['qid']}::{shown}", "episode_type": "T1", "num_negs": int(label == "neg"),
                 "top1_video_id": shown, "top1_gold_label": label},
    }  # fmt: skip


def _prompt(row: dict[str, Any], first_with_text: dict[str, str], ranked: Any) -> dict[str, Any]:
    qid = first_with_text[row["fig_desc"]]
    videos = ranked[f"{row['desc_id']}_fig"]
    negatives = [v for v in videos if v != row["video"]]
    return {
        "problem_id": row["desc_id"], "qid": qid, "problem": f"{SYSTEM}\n\nQuery:\n{row['fig_desc']}",
        "query": row["fig_desc"], "gt_video": row["video"], "gt_time": row["time"], "gt_duration": row["duration"],
        "retrieved_video": videos[0], "label": "matched" if videos[0] == row["video"] else "not_matched",
        "hard_negative_ids": negatives, "hard_negative_scores": [0.5 - 0.01 * n for n in range(len(negatives))],
        "hard_negative_ranks": list(range(1, len(negatives) + 1)), "is_augmented": False,
    }  # fmt: skip


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def content(root: Path) -> dict[str, Any]:
    """Every file of a folder: arrays and indexes as bytes, JSON as values."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        name = path.relative_to(root).as_posix()
        if path.suffix == ".json":
            found[name] = json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            found[name] = read_lines(path)
        else:
            found[name] = path.read_bytes()
    return found
