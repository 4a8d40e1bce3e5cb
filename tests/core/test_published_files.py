"""The training files in the authors' form that are written beside the tables."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tests.core.fake_corpus import FakeCorpus, shape_corpus
from tests.core.test_training_data import ALL, with_pool
from vsr1_core.configurations import NANO
from vsr1_core.reasoning.conversation import SYSTEM_PROMPT


@pytest.fixture
def corpus(tmp_path) -> FakeCorpus:
    return shape_corpus(tmp_path, config=dataclasses.replace(NANO, pool=ALL))


def test_the_sft_file_has_the_published_form(corpus):
    corpus.build()
    data = json.loads((corpus.view.files("sft_examples") / "train_oneturn.json").read_text())
    table = corpus.rows("sft_examples")
    assert [row["qid"] for row in data] == sorted(table)
    for row in data:
        source = table[row["qid"]]
        assert set(row) == {"qid", "query", "messages", "videos", "meta"}
        assert row["messages"] == [
            {"role": "system", "content": SYSTEM_PROMPT},
            {"role": "user", "content": f'Query: "{row["query"]}"\nRetrieved video: <video>'},
            {"role": "assistant", "content": source["answer"]},
        ]
        assert row["videos"] == [f"{source['shown_video_id']}.npy"]
        assert row["meta"] == {
            "gold_label": "pos" if source["label"] == "matched" else "neg",
            "video_id": source["shown_video_id"],
            "top1_video_id": source["shown_video_id"],
            "query_pos_video_id": source["gt_video_id"],
            "pair_id": f"{row['qid']}::{source['shown_video_id']}",
            "num_negs": int(source["label"] != "matched"),
        }


def test_the_grpo_file_has_the_published_form(corpus):
    corpus.build()
    lines = (corpus.view.files("grpo_prompts") / "train.minimal_top1.jsonl").read_text().splitlines()
    rankings, negatives = corpus.rows("first_ranking"), corpus.rows("hard_negatives")
    assert len(lines) == 48
    for row in map(json.loads, lines):
        moment = next(m for m in corpus.moments if m["query_id"] == row["qid"])
        assert row == {
            "qid": moment["query_id"],
            "query": moment["query"],
            "gt_video": moment["video_id"],
            "gt_time": [moment["start_s"], moment["end_s"]],
            "gt_duration": 10.0,
            "retrieved_video": rankings[row["qid"]]["top_video_ids"][0],
            "path": f"{rankings[row['qid']]['top_video_ids'][0]}.npy",
            "is_augmented": False,
            "label": "matched" if row["retrieved_video"] == moment["video_id"] else "not_matched",
            "hard_negative_ids": negatives[row["qid"]]["video_ids"],
            "hard_negative_scores": pytest.approx(negatives[row["qid"]]["scores"]),
        }


def test_published_files_follow_the_table_and_are_not_written_twice(corpus):
    with_pool(corpus, 5, 5)
    corpus.build()
    path = corpus.view.files("sft_examples") / "train_oneturn.json"
    written = path.stat().st_mtime_ns
    corpus.build()
    assert path.stat().st_mtime_ns == written
    with_pool(corpus, 8, 5)
    corpus.build()
    assert len(json.loads(path.read_text())) == 13


def test_a_lost_published_file_is_written_again_although_no_row_is_due(corpus):
    corpus.build()
    path = corpus.view.files("grpo_prompts") / "train.minimal_top1.jsonl"
    before = path.read_bytes()
    path.unlink()
    assert corpus.build("grpo_prompts")["grpo_prompts"].num_processed == 0
    assert path.read_bytes() == before
