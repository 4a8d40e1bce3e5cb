"""Prepared folders with one thing wrong: it is named with its file, and the home stays as it was."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from tests.core.datasets.prepared_folder import read_lines, write_json, write_lines, write_prepared
from tests.core.datasets.prepared_home import Home
from vsr1_core.home.prepared.importing import import_prepared
from vsr1_core.home.prepared.layout import PreparedError
from vsr1_core.stages.execution import Execution

Break = Callable[[Path], Any]


def cut(name: str, keep: float = 0.7) -> Break:
    def apply(root: Path) -> None:
        data = (root / name).read_bytes()
        (root / name).write_bytes(data[: int(len(data) * keep)])

    return apply


def change_json(name: str, edit: Callable[[Any], Any]) -> Break:
    def apply(root: Path) -> None:
        value = json.loads((root / name).read_text())
        changed = edit(value)
        write_json(root / name, value if changed is None else changed)

    return apply


def change_lines(name: str, edit: Callable[[list[Any]], Any]) -> Break:
    def apply(root: Path) -> None:
        rows = read_lines(root / name)
        edit(rows)
        write_lines(root / name, rows)

    return apply


def save(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Break:
    def apply(root: Path) -> None:
        np.save(root / name, make(np.load(root / name)), allow_pickle=True)

    return apply


def remove(name: str) -> Break:
    return lambda root: (root / name).unlink()


def other_index(root: Path) -> None:
    index = faiss.IndexHNSWFlat(8, 4, faiss.METRIC_INNER_PRODUCT)
    index.add(np.eye(5, 8, dtype=np.float32))
    faiss.write_index(index, str(root / "train/index/index.faiss"))


def raw_duplicate_key(root: Path) -> None:
    path = root / "test/video_embedding_1fps/docid2row.json"
    path.write_text('{"TST00": 0, "TST01": 1, "TST02": 2, "TST00": 2}')


QUERIES = "train/query_embedding/query_meta.train.jsonl"
VECTORS = "train/query_embedding/query_embeddings.train.npy"
VIDEOS = "test/video_embedding_1fps/segment_embeds.npy"
ROWS = "test/video_embedding_1fps/docid2row.json"
FRAMES = "test/video_npy_with_meta/TST01.npy"
META = "test/video_npy_with_meta/meta.jsonl"
TIMES, DURATION = "sampled_timestamps_sec", "source_duration_sec"
NEGATIVES = "train/hard_negatives.json"
SFT = "sft_data/train_oneturn.json"
GRPO = "grpo_data/train.minimal_top1.jsonl"

CASES: dict[str, tuple[Break, str, str]] = {
    "frames are truncated": (cut(FRAMES), FRAMES, "is truncated: its header says"),
    "frames are cut in the header": (cut(FRAMES, 0.001), FRAMES, "cut off in its header"),
    "frames are a pickle": (lambda r: (r / FRAMES).write_bytes(pickle.dumps([1])), FRAMES, "is not a .npy file"),
    "frames are objects": (save(FRAMES, lambda a: np.array([None, {}])), FRAMES, "Python objects"),
    "frames are floats": (save(FRAMES, lambda a: a.astype(np.float32)), FRAMES, "must be uint8 with 4 axes"),
    "frames are not RGB": (save(FRAMES, lambda a: a[..., :1]), FRAMES, "must have shape [T, H, W, 3]"),
    "frames are fewer than said": (save(FRAMES, lambda a: a[:2]), FRAMES, "meta.jsonl says"),
    "frames have no times": (change_lines(META, lambda m: m[0].pop(TIMES)), ".npy", "gives no times"),
    "times are not in order": (change_lines(META, lambda m: m[0][TIMES].reverse()), ".npy", "order"),
    "a duration is no number": (change_lines(META, lambda m: m[0].update({DURATION: None})), ".npy", DURATION),
    "the meta file is missing": (remove(META), META, "is not there"),
    "query vectors are missing": (remove(VECTORS), VECTORS, "is not there"),
    "query vectors are truncated": (cut(VECTORS), VECTORS, "is truncated"),
    "query vectors are too few": (save(VECTORS, lambda a: a[1:]), VECTORS, "has 10 rows, query_meta.train"),
    "a query vector is not finite": (save(VECTORS, lambda a: a * np.float32(np.nan)), VECTORS, "no direction"),
    "query and video vectors differ in size": (save(VECTORS, lambda a: a[:, :4]), VECTORS, "vectors of 4 numbers"),
    "two lines name one query": (change_lines(QUERIES, lambda q: q.__setitem__(0, q[1])), QUERIES, "repeats the query"),
    "a query is not annotated": (change_lines(QUERIES, lambda q: q[0].update(qid="9_x")), QUERIES, "not annotated"),
    "a query has another text": (change_lines(QUERIES, lambda q: q[0].update(query="?")), QUERIES, "text or video"),
    "a query line is broken": (lambda r: (r / QUERIES).open("a").write("{"), QUERIES, "line 12 is not a JSON object"),
    "video vectors are too few": (save(VIDEOS, lambda a: a[1:]), ROWS, "maps 3 videos, segment_embeds.npy has 2 rows"),
    "two videos have one row": (change_json(ROWS, lambda d: d.update(TST00=1, TST01=1)), ROWS, "each number once"),
    "a row is no number": (change_json(ROWS, lambda d: d.update(TST00="0")), ROWS, "each number once"),
    "one video is mapped twice": (raw_duplicate_key, ROWS, "the key 'TST00' is there more than once"),
    "an id would leave the folder": (
        change_json(ROWS, lambda d: {"../../x": d.pop("TST00"), **d}), ROWS, "cannot be file names",
    ),
    "the map is cut off": (cut(ROWS), ROWS, "is not valid JSON, or is cut off"),
    "the id map names other videos": (
        change_json("test/index/id_map.json", lambda i: [*i[1:], "x"]), "test/index/id_map.json", "does not name",
    ),
    "the id map names one twice": (
        change_json("test/index/id_map.json", lambda i: [*i[1:], i[1]]), "test/index/id_map.json", "does not name",
    ),
    "the id map is in another order": (
        change_json("test/index/id_map.json", lambda i: i[::-1]), "test/index/index.faiss", "differ from those in",
    ),
    "the index is truncated": (cut("test/index/index.faiss"), "test/index/index.faiss", "truncated or not sound"),
    "the index is missing": (remove("test/index/index.faiss"), "test/index/index.faiss", "is not there"),
    "an annotation id repeats": (
        change_lines("raw_annotation/train.jsonl", lambda a: a[1].update(desc_id=0)), "raw_annotation/train.jsonl",
        "line 2 repeats the id 0",
    ),
    "two splits share an annotation id": (
        lambda r: [
            change_lines("raw_annotation/test.jsonl", lambda a: a[-1].update(desc_id=0))(r),
            change_lines("test/query_embedding/query_meta.test.jsonl",
                         lambda q: next(m for m in q if m["qid"] == "150_fig").update(qid="0_fig"))(r),
        ],
        "raw_annotation/t", "the id of 0_fig is also used",
    ),
    "the annotations are missing": (remove("raw_annotation/test.jsonl"), "raw_annotation/test.jsonl", "is not there"),
    "hard negatives name an unknown video": (
        change_json(NEGATIVES, lambda n: n.update({"0_fig": ["nope"]})), NEGATIVES, "docid2row.json does not have",
    ),
    "hard negatives hold the right video": (
        change_json(NEGATIVES, lambda n: n.update({"0_fig": ["TRN00"]})), NEGATIVES, "contain its own video",
    ),
    "a conversation is there twice": (change_json(SFT, lambda s: s.append(s[0])), SFT, "entry 7 repeats the query"),
    "a conversation shows an unknown video": (
        change_json(SFT, lambda s: s[2].update(videos=["x.npy"])), SFT, "entry 3: shows",
    ),
    "a conversation lacks a field": (change_json(SFT, lambda s: s[2].update(meta=None)), SFT, "entry 3: lacks a field"),
    "a conversation is labelled wrongly": (
        change_json(SFT, lambda s: s[0]["meta"].update(gold_label="pos")), SFT, "entry 1: is labelled pos",
    ),
    "the training file is cut off": (cut(SFT), SFT, "is not valid JSON, or is cut off"),
    "a prompt is there twice": (change_lines(GRPO, lambda g: g.append(g[5])), GRPO, "line 13: repeats the query"),
    "a prompt is about nothing annotated": (
        change_lines(GRPO, lambda g: g[4].update(gt_time=[1, 2])), GRPO, "line 5: text, video and span",
    ),
    "a prompt has fewer scores than negatives": (
        change_lines(GRPO, lambda g: g[4]["hard_negative_scores"].pop()), GRPO, "not one score for each",
    ),
    "a prompt shows an unknown video": (
        change_lines(GRPO, lambda g: g[4].update(retrieved_video="x")), GRPO, "line 5: shows x",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prepared(tmp_path_factory.mktemp("whole") / "charades-sta")


def copied(whole: Path, target: Path) -> Path:
    for path in whole.rglob("*"):
        if path.is_file():
            (target / path.relative_to(whole)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(whole)).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize("case", list(CASES))
def test_what_is_wrong_is_named_and_nothing_is_changed(whole: Path, tmp_path: Path, case: str) -> None:
    damage, file, reason = CASES[case]
    folder = copied(whole, tmp_path / "charades-sta")
    damage(folder)
    home = Home(tmp_path / "home")
    with pytest.raises(PreparedError) as caught:
        import_prepared(home.view(), folder, Execution(workers=1))
    lines = str(caught.value).splitlines()[1:]
    assert any(file in line.split(": ")[0] and reason in line for line in lines), str(caught.value)
    left = {p.relative_to(home.root).as_posix() for p in home.root.rglob("*") if p.is_file()}
    assert left <= {"lake/leases/charades/lease.json", "lake/leases/charades/lock"}, "its number of writers goes on"


@pytest.mark.slow
def test_all_that_is_wrong_is_named_at_once(whole: Path, tmp_path: Path) -> None:
    folder = copied(whole, tmp_path / "charades-sta")
    for damage in (cut(FRAMES), remove(VECTORS), remove("test/index/id_map.json")):
        damage(folder)
    with pytest.raises(PreparedError) as caught:
        import_prepared(Home(tmp_path / "home").view(), folder, Execution(workers=2))
    assert {line.split(": ")[0] for line in str(caught.value).splitlines()[1:]} == {
        FRAMES, VECTORS, "test/index/id_map.json",
    }  # fmt: skip


def test_a_refused_import_leaves_the_one_before_in_force(whole: Path, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.take(whole)
    before = home.rows("query_embeddings")
    folder = copied(whole, tmp_path / "charades-sta")
    cut(FRAMES)(folder)
    with pytest.raises(PreparedError):
        home.take(folder)
    assert home.due() == {}
    assert home.rows("query_embeddings") == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PreparedError, match="holds no prepared data"):
        Home(tmp_path / "home").take(tmp_path)
