"""The top-1 pool, the traces and both stages' rows on a made-up corpus, and the template's sentences."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from tests.core.fake_corpus import FakeCorpus, Given, shape_corpus
from vsr1_core.configurations import NANO
from vsr1_core.reasoning.conversation import HARD_REFINE_PROMPT, is_well_formed, parse_answer
from vsr1_core.reasoning.tasks import ConfigurationError, TeacherReply
from vsr1_core.reasoning.teacher import make_teacher
from vsr1_core.recipes import EndpointRecipe, PoolRecipe, TeacherRecipe
from vsr1_core.rows.increments import Future
from vsr1_core.stages import traces
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.readings import NotYetKnown

TRAIN_DATA = ("top1_pool", "reasoning_traces", "sft_examples", "grpo_prompts")
ALL = PoolRecipe(num_matched=1000, num_not_matched=1000)


@pytest.fixture
def corpus(tmp_path):
    return shape_corpus(tmp_path, config=dataclasses.replace(NANO, pool=ALL))


def with_pool(corpus: FakeCorpus, matched: int, not_matched: int, seed: int = 42) -> None:
    corpus.config = dataclasses.replace(
        corpus.config, pool=PoolRecipe(num_matched=matched, num_not_matched=not_matched, seed=seed)
    )


def pool_of(corpus: FakeCorpus) -> dict[str, str]:
    return {i: row["label"] for i, row in corpus.rows("top1_pool").items()}


def test_the_pool_holds_train_queries_with_the_video_shown_first(corpus):
    corpus.build()
    rankings = corpus.rows("first_ranking")
    rows = corpus.rows("top1_pool")
    assert len(rows) == 48
    for query_id, row in rows.items():
        assert query_id.startswith("train")
        assert row["shown_video_id"] == rankings[query_id]["top_video_ids"][0]
        assert row["label"] == ("matched" if row["shown_video_id"] == row["gt_video_id"] else "not_matched")
    assert set(Counter(pool_of(corpus).values())) == {"matched", "not_matched"}


def test_the_pool_is_balanced_and_takes_what_there_is(corpus):
    with_pool(corpus, 5, 5)
    corpus.build()
    assert Counter(pool_of(corpus).values()) == {"matched": 5, "not_matched": 5}
    with_pool(corpus, 5, 1000)
    corpus.build()
    counts = Counter(pool_of(corpus).values())
    assert counts["matched"] == 5
    assert 5 < counts["not_matched"] < 1000


def test_asking_for_more_keeps_the_old_rows_and_makes_only_the_new(corpus):
    with_pool(corpus, 5, 5)
    corpus.build()
    before = pool_of(corpus)
    with_pool(corpus, 8, 5)
    assert corpus.plan(*TRAIN_DATA)["top1_pool"] == 3
    corpus.build()
    assert before.items() < pool_of(corpus).items()


def test_another_seed_draws_another_pool(corpus):
    pools = []
    for seed in (1, 2):
        with_pool(corpus, 5, 5, seed)
        corpus.build()
        pools.append(set(pool_of(corpus)))
    assert pools[0] != pools[1]


def test_too_few_matches_are_filled_with_right_videos_when_asked(corpus):
    with_pool(corpus, 30, 10)
    corpus.build()
    plain = pool_of(corpus)
    assert Counter(plain.values())["matched"] < 30
    corpus.config = dataclasses.replace(corpus.config, pool=dataclasses.replace(corpus.config.pool, fill_matched=True))
    corpus.build()
    rows = corpus.rows("top1_pool")
    assert Counter(pool_of(corpus).values()) == {"matched": 30, "not_matched": 10}
    assert plain.items() < pool_of(corpus).items()
    assert all((r["shown_video_id"] == r["gt_video_id"]) == (r["label"] == "matched") for r in rows.values())
    assert all(r["status"] == "ok" for r in corpus.rows("sft_examples").values())


def test_a_share_of_the_mismatches_is_shown_any_wrong_video(corpus):
    with_pool(corpus, 10, 1000)
    corpus.build()
    first = {q: r["shown_video_id"] for q, r in corpus.rows("top1_pool").items()}
    corpus.config = dataclasses.replace(corpus.config, pool=dataclasses.replace(corpus.config.pool, random_share=0.5))
    corpus.build()
    rows = corpus.rows("top1_pool")
    assert Counter(r["label"] for r in rows.values()) == Counter(pool_of(corpus).values())
    assert all((r["shown_video_id"] == r["gt_video_id"]) == (r["label"] == "matched") for r in rows.values())
    changed = [q for q, r in rows.items() if r["shown_video_id"] != first[q]]
    assert all(rows[q]["label"] == "not_matched" for q in changed)
    mismatches = sum(r["label"] == "not_matched" for r in rows.values())
    assert 0.2 * mismatches < len(changed) < 0.8 * mismatches
    assert len({rows[q]["shown_video_id"] for q in changed}) > 3


def test_a_changed_row_does_not_reshuffle_the_pool(corpus):
    with_pool(corpus, 8, 8)
    corpus.build()
    before = pool_of(corpus)
    changed = sorted(before)[0]
    moment = next(m for m in corpus.moments if m["query_id"] == changed)
    moment["vector"] = corpus.vectors["train_20" if before[changed] == "matched" else moment["video_id"]]
    corpus.write()
    corpus.build()
    after = pool_of(corpus)
    assert len({*before.items()} ^ {*after.items()}) <= 4
    assert Counter(after.values()) == {"matched": 8, "not_matched": 8}


def test_a_query_that_is_true_of_the_shown_wrong_video_is_left_out(corpus):
    corpus.build()
    wrong = next(r for r in corpus.rows("top1_pool").values() if r["label"] == "not_matched")
    query = next(m for m in corpus.moments if m["query_id"] == wrong["query_id"])["query"]
    next(m for m in corpus.moments if m["video_id"] == wrong["shown_video_id"])["query"] = query.upper()
    corpus.write()
    corpus.build()
    assert wrong["query_id"] not in corpus.rows("top1_pool")
    assert wrong["shown_video_id"] not in corpus.rows("grpo_prompts")[wrong["query_id"]]["negative_ids"]


@pytest.mark.parametrize("random_share", [0.0, 1.0])
def test_the_pool_shows_no_video_that_the_template_teacher_cannot_describe(corpus, random_share):
    for number in range(6):  # they rank first for some queries, and may be drawn for the others
        moment = corpus.moments[2 * number]
        corpus.add_video(f"silent_{number}", moment["vector"])
    corpus.config = dataclasses.replace(
        corpus.config, pool=dataclasses.replace(corpus.config.pool, random_share=random_share)
    )
    corpus.write()
    corpus.build()
    rankings = corpus.rows("first_ranking")
    silent_first = {q for q, r in rankings.items() if (r["top_video_ids"] or [""])[0].startswith("silent_")}
    pool = corpus.rows("top1_pool")
    assert len(silent_first) == 6
    assert not silent_first & set(pool)
    assert len(pool) == len([q for q in rankings if q.startswith("train")]) - 6
    assert not any(r["shown_video_id"].startswith("silent_") for r in pool.values())
    assert all(r["status"] == "ok" for r in corpus.rows("reasoning_traces").values())


def test_a_model_describes_videos_without_moments_but_none_without_frames(corpus):
    corpus.add_video("silent", corpus.moments[0]["vector"])
    corpus.add_video("unseen", corpus.moments[2]["vector"])
    corpus.config = dataclasses.replace(corpus.config, teacher=EndpointRecipe(model="m"))
    corpus.write()
    frames = [row for row in corpus.rows("frame_tensors").values() if row["video_id"] != "unseen"]
    Given(corpus.view.stages["frame_tensors"], frames).build(corpus.view, Execution())
    corpus.build("video_index", "first_ranking", "hard_negatives", "top1_pool")
    pool = corpus.rows("top1_pool")
    assert pool[corpus.moments[0]["query_id"]]["shown_video_id"] == "silent"
    assert corpus.moments[2]["query_id"] not in pool


def test_a_query_whose_right_video_is_missing_trains_nothing(corpus):
    del corpus.vectors["train_03"]
    corpus.write()
    corpus.build()
    assert "train_03_0_fig" not in corpus.rows("top1_pool")
    row = corpus.rows("grpo_prompts")["train_03_0_fig"]
    assert row["status"] == "failed"
    assert "train_03 is not in the index" in row["error"]


def test_a_dataset_without_a_train_split_gives_empty_tables(corpus):
    corpus.moments = [m for m in corpus.moments if m["split"] == "test"]
    corpus.vectors = {v: x for v, x in corpus.vectors.items() if v.startswith("test")}
    corpus.write()
    outcomes = corpus.build()
    assert [outcomes[name].manifest["num_rows"] for name in TRAIN_DATA] == [0, 0, 0, 0]
    assert outcomes["first_ranking"].manifest["num_ok"] == 12


def test_traces_describe_the_shown_video_and_end_as_the_label_says(corpus):
    corpus.build()
    captions = {}
    for moment in corpus.moments:
        captions.setdefault(moment["video_id"], []).append(moment["plain_query"])
    traces = corpus.rows("reasoning_traces")
    assert len(traces) == 48
    for row in traces.values():
        assert row["status"] == "ok", row["error"]
        for number, caption in enumerate(captions[row["shown_video_id"]]):
            assert f"{5 * number}.0-{5 * number + 5}.0: {caption}." in row["trace"]
        assert (" no" in row["trace"]) == (row["label"] == "not_matched")
        assert row["num_tokens"] == len(row["trace"].split())


def test_a_caption_that_fits_the_wrong_video_contradicts_its_label(corpus):
    corpus.build()
    wrong = next(r for r in corpus.rows("top1_pool").values() if r["label"] == "not_matched")
    shown = next(m for m in corpus.moments if m["video_id"] == wrong["shown_video_id"])
    next(m for m in corpus.moments if m["query_id"] == wrong["query_id"])["plain_query"] = shown["plain_query"]
    corpus.write()
    corpus.build()
    row = corpus.rows("reasoning_traces")[wrong["query_id"]]
    assert row["status"] == "failed"
    assert "contradicts the label" in row["error"]
    assert wrong["query_id"] not in corpus.rows("sft_examples")
    assert wrong["query_id"] in corpus.rows("grpo_prompts")


def test_sft_answers_are_well_formed_and_carry_the_querys_span(corpus):
    corpus.build()
    moments = {m["query_id"]: m for m in corpus.moments}
    negatives = corpus.rows("hard_negatives")
    rows = corpus.rows("sft_examples")
    assert len(rows) == 48
    for query_id, row in rows.items():
        answer = parse_answer(row["answer"], row["duration_s"])
        assert is_well_formed(row["answer"])
        assert answer.decision == row["label"]
        if answer.decision == "matched":
            assert (answer.start_s, answer.end_s) == (moments[query_id]["start_s"], moments[query_id]["end_s"])
        assert row["negative_ids"] == negatives[query_id]["video_ids"]
        assert row["query"] == moments[query_id]["query"]


def test_hard_refinement_trains_on_the_same_pairs_with_a_new_query_in_plain_words(corpus):
    corpus.build()
    rows, soft = corpus.rows("hard_refine_examples"), corpus.rows("sft_examples")
    plain = {m["query_id"]: m["plain_query"] for m in corpus.moments}
    assert rows.keys() == soft.keys()
    for query_id, row in rows.items():
        answer = parse_answer(row["answer"], row["duration_s"])
        assert answer.reasoning == parse_answer(soft[query_id]["answer"], row["duration_s"]).reasoning
        assert answer.new_query == (None if row["label"] == "matched" else plain[query_id])
        assert is_well_formed(row["answer"], HARD_REFINE_PROMPT)
    assert {row["label"] for row in rows.values()} == {"matched", "not_matched"}


def test_hard_refinement_is_made_only_where_it_is_reported(corpus):
    methods = tuple(name for name in NANO.evaluation.methods if name != "hard_refine")
    corpus.config = dataclasses.replace(
        corpus.config, evaluation=dataclasses.replace(corpus.config.evaluation, methods=methods)
    )
    corpus.build()
    assert corpus.rows("hard_refine_examples") == {}
    assert corpus.rows("sft_examples")


def test_a_query_without_a_plain_caption_cannot_be_rewritten_and_says_so(corpus):
    corpus.build()
    rejected = next(i for i, row in corpus.rows("sft_examples").items() if row["label"] == "not_matched")
    for moment in corpus.moments:
        if moment["query_id"] == rejected:
            moment["plain_query"] = moment["query"].upper()
    corpus.write()
    corpus.build("reasoning_traces", "sft_examples", "hard_refine_examples")
    row = corpus.rows("hard_refine_examples")[rejected]
    assert row["status"] == "failed"
    assert "no plain caption that the query" in row["error"]
    assert corpus.rows("sft_examples")[rejected]["status"] == "ok"


def test_doing_it_again_does_nothing_and_the_plan_says_so(corpus):
    corpus.build()
    assert corpus.plan(*TRAIN_DATA) == dict.fromkeys(TRAIN_DATA, 0)
    assert {o.num_processed for o in corpus.build().values()} == {0}


def test_a_test_row_that_changes_touches_no_training_data(corpus):
    corpus.build()
    corpus.add_video("test_99", np.ones(16), "test")
    corpus.moments[-1]["query"] = "something else"
    corpus.write()
    assert corpus.plan(*TRAIN_DATA) == dict.fromkeys(TRAIN_DATA, 0)
    assert corpus.plan("first_ranking") == {"first_ranking": 12}
    outcomes = corpus.build()
    assert [outcomes[name].num_processed for name in TRAIN_DATA] == [0, 0, 0, 0]


def test_a_changed_span_redoes_the_rows_that_show_it(corpus):
    corpus.build()
    moment = next(m for m in corpus.moments if pool_of(corpus).get(m["query_id"]) == "matched")
    moment["end_s"] -= 0.5
    corpus.write()
    showing = [r for r in corpus.rows("top1_pool").values() if r["shown_video_id"] == moment["video_id"]]
    expected = {"top1_pool": 0, "reasoning_traces": len(showing), "sft_examples": len(showing), "grpo_prompts": 1}
    assert corpus.plan(*TRAIN_DATA) == expected
    done = corpus.build()
    assert {name: done[name].num_processed for name in TRAIN_DATA} == expected


def test_a_new_train_video_waits_for_the_ranking_before_the_pool_is_planned(corpus):
    corpus.build()
    corpus.add_video("train_99", np.ones(16))
    corpus.write()
    plans = corpus.plan(*TRAIN_DATA)
    assert plans["top1_pool"] == "first_ranking"
    assert plans["reasoning_traces"] == plans["sft_examples"] == "top1_pool"
    assert plans["grpo_prompts"] == 48
    done = corpus.build()
    assert done["top1_pool"].num_processed < 10, "the pool re-reads only what the new video changed"


def test_the_pool_cannot_be_planned_before_the_first_ranking(corpus):
    with pytest.raises(NotYetKnown, match="first_ranking"):
        view = corpus.view
        table = view.table("first_ranking")
        due = [{"query_id": "q", "status": "ok", "split": "train", "gt_video_id": "v"}]
        view.planned["first_ranking"] = Future(table, table.frame(due))
        view.stages["top1_pool"].plan(view)


def test_an_endpoint_teacher_that_is_not_set_up_stops_with_what_to_configure(corpus):
    corpus.config = dataclasses.replace(corpus.config, teacher=EndpointRecipe(model="Qwen/Teacher"))
    with pytest.raises(ConfigurationError, match=r"Qwen/Teacher.*VSR1_TEACHER_URL.*teacher\.kind=template"):
        corpus.build()
    with pytest.raises(ConfigurationError, match="not one of"):
        make_teacher(TeacherRecipe(kind="oracle"))


def test_a_teacher_of_another_kind_drops_in(corpus, monkeypatch):
    class Curt:
        def write(self, tasks):
            replies = {0: {"text": "seen"}, 1: {"text": "  "}, 2: {"text": "so lo", "finish_reason": "length"}}
            for number, task in enumerate(tasks):
                yield TeacherReply(task.query_id, **replies[number % 3])

    monkeypatch.setattr(traces, "make_teacher", lambda recipe, endpoint: Curt())
    corpus.build()
    errors = Counter(row["error"] for row in corpus.rows("reasoning_traces").values())
    assert errors[None] == errors["the teacher wrote nothing"] == len(corpus.rows("sft_examples")) == 16
    assert sum("cut off" in str(error) for error in errors) == 1
