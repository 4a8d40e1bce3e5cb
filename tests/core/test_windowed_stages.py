"""The whole graph over videos that are divided into windows: what is right, wrong, shown, learned and scored."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import polars as pl
import pytest

from tests.cheap_stages import cheap_main_stages
from tests.small_world import DURATION_S, SmallWorld, build, fill
from vsr1_core.configurations import NANO
from vsr1_core.evaluation.episodes import load_episodes, outcomes
from vsr1_core.home import warehouse
from vsr1_core.reasoning.conversation import parse_answer
from vsr1_core.segments import SegmentRecipe, clipped, is_right, touches, video_of, window_of
from vsr1_core.stages.base import View
from vsr1_core.stages.moments import right_segments, same_text_videos, windows_by_video
from vsr1_core.stages.reporting import annotated_queries

CONFIG = dataclasses.replace(
    NANO,
    segments=SegmentRecipe(window_s=3.0),
    retrieval=dataclasses.replace(NANO.retrieval, num_hard_negatives=100),
    pool=dataclasses.replace(NANO.pool, num_matched=100, num_not_matched=10, fill_matched=True, random_share=0.3),
    evaluation=dataclasses.replace(NANO.evaluation, methods=("zero_shot", "sqr_sft"), num_resamples=2),
)


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> View:
    """Nine videos, each in two windows; two of them have a query of the same text. The files last 5.001 s, a second
    less than is annotated."""
    world = fill(SmallWorld(tmp_path_factory.mktemp("home")).register())
    for number in (0, 1):
        world.add_query("train", 500 + number, f"train_{number}", fig_desc="a door opens", time=[4.0, 6.0])
    world.write_annotations("train")
    built = world.view(cheap_main_stages(), CONFIG)
    build(built)
    return built


def moments(view: View, split: str) -> dict[str, tuple[str, float, float]]:
    rows = view.rows("moments").filter(pl.col("split") == split)
    return {r["query_id"]: (r["video_id"], r["start_s"], r["end_s"]) for r in rows.to_dicts()}


def test_every_table_has_rows_and_none_failed(view: View) -> None:
    for name in view.stages:
        failed = view.table(name).rows().filter(pl.col("status") == "failed")
        assert failed.is_empty(), (name, failed["error"].to_list())
    windows = windows_by_video(view)
    assert windows["train_0"] == ["train_0//0-3", "train_0//2.25-5.001"]
    assert len(windows) == 9
    assert view.rows("video_index", ["split", "num_videos"]).rows() == [("test", 3), ("train", 6)]


def test_wrong_segments_show_nothing_of_a_moment_with_the_same_text(view: View) -> None:
    of_query = moments(view, "train")
    never = same_text_videos(view)
    assert "train_1//2.25-5.001" in never["500_fig"]
    assert "train_1//0-3" not in never["500_fig"]
    rows = dict(view.rows("hard_negatives", ["query_id", "video_ids"]).iter_rows())
    for query_id, wrong in rows.items():
        assert wrong
        assert not any(touches(segment_id, *of_query[query_id]) for segment_id in wrong)
    assert not any(touches(segment_id, "train_1", 4.0, 6.0) for segment_id in rows["500_fig"])
    own = [s for query_id, wrong in rows.items() for s in wrong if video_of(s) == of_query[query_id][0]]
    assert own, "other windows of the right film are wrong, and the hardest"


def test_the_pool_calls_a_window_right_that_holds_half_of_the_moment(view: View) -> None:
    of_query, right = moments(view, "train"), right_segments(view)
    pool = view.rows("top1_pool", ["query_id", "label", "shown_video_id"]).rows()
    assert {label for _, label, _ in pool} == {"matched", "not_matched"}
    for query_id, label, shown in pool:
        assert is_right(shown, *of_query[query_id]) == (label == "matched")
        if label == "not_matched":
            assert not touches(shown, *of_query[query_id])
    assert right["500_fig"] == "train_0//2.25-5.001"
    assert right["100_fig"] == "train_0//0-3"


def test_an_answer_to_learn_has_the_part_of_the_span_that_is_shown(view: View) -> None:
    of_query = moments(view, "train")
    rows = view.rows("sft_examples", ["query_id", "label", "shown_video_id", "answer"]).rows()
    spans = 0
    for query_id, label, shown, answer in rows:
        if label == "matched":
            parsed = parse_answer(answer, DURATION_S)
            start_s, end_s = clipped(shown, *of_query[query_id][1:])
            assert (parsed.start_s, parsed.end_s) == (round(start_s, 1), round(end_s, 1))
            spans += 1
    assert spans
    labels = view.rows("grpo_prompts", ["query_id", "label", "retrieved_video_id"]).rows()
    assert all(is_right(shown, *of_query[query_id]) == (label == "matched") for query_id, label, shown in labels)


def test_a_trace_tells_what_its_window_shows_at_the_seconds_of_the_source(view: View) -> None:
    shown = dict(view.rows("reasoning_traces", ["trace", "shown_video_id"]).iter_rows())
    assert len(shown) > 1
    for trace, segment_id in shown.items():
        window = window_of(segment_id)
        assert window is not None
        told = [
            tuple(map(float, words.split(":")[0].split("-"))) for words in trace.split("Asked")[0].split(". ") if words
        ]
        assert told
        assert all(window[0] - 0.051 <= start_s <= end_s <= window[1] + 0.051 for start_s, end_s in told), trace


def test_a_probe_shows_one_right_window_and_one_that_shows_nothing_of_the_moment(view: View) -> None:
    of_query = moments(view, "test")
    probes = view.rows("verification_probe.sqr_sft", ["query_id", "label", "shown_video_id"]).rows()
    assert len(probes) == 2 * len(of_query)
    for query_id, label, shown in probes:
        check = is_right if label == "matched" else touches
        assert check(shown, *of_query[query_id]) == (label == "matched")


@pytest.mark.slow
def test_the_views_judge_windows_as_the_metrics_do(view: View) -> None:
    home = view.home or Path()
    for method in CONFIG.evaluation.methods:
        truth = annotated_queries(view, "test")
        expected = dict(outcomes(load_episodes(truth, view.rows(f"predictions.{method}"))).iter_rows())
        sql = f"SELECT query_id, outcome FROM outcomes WHERE method = '{method}' AND dataset = 'small'"
        assert dict(warehouse.query(home, sql).iter_rows()) == expected
    shown = warehouse.query(home, "SELECT query_id, video_id, is_right_video FROM turns").rows()
    of_query = moments(view, "test")
    assert [right for *_, right in shown] == [is_right(s, *of_query[query_id]) for query_id, s, _ in shown]
    rows = warehouse.query(home, "SELECT * FROM segments WHERE video_id = 'test_0' ORDER BY start_s").to_dicts()
    assert [(r["segment_id"], r["start_s"], r["end_s"]) for r in rows] == [
        ("test_0//0-3", 0.0, 3.0),
        ("test_0//2.25-5.001", 2.25, 5.001),
    ]


def test_recall_is_scored_by_windows_as_well(view: View) -> None:
    of_query = moments(view, "test")
    rows = view.rows("metrics", ["method", "metric", "value"]).filter(pl.col("metric").str.starts_with("segment_"))
    assert set(rows["metric"]) == {f"segment_recall_at_{k}" for k in (1, 5, 10)}
    tops = [turn["video_id"] for turns in view.rows("predictions.sqr_sft")["turns"] for turn in turns]
    right = [is_right(shown, *moment) for shown, moment in zip(tops, of_query.values(), strict=True)]
    episodes = load_episodes(
        annotated_queries(view, "test"),
        view.rows("predictions.sqr_sft").with_columns(top_video_ids=pl.Series([[top] for top in tops])),
    )
    assert episodes.segment_rank is not None
    assert [rank == 1 for rank in episodes.segment_rank] == right


def test_ranks_are_those_of_videos(view: View) -> None:
    ranks = view.rows("first_ranking", ["split", "gt_video_id", "rank", "top_video_ids"]).rows()
    assert {(split, len(top)) for split, *_, top in ranks} == {("train", 12), ("test", 6)}
    for _, video_id, rank, top in ranks:
        assert rank == 1 + list(dict.fromkeys(map(video_of, top))).index(video_id)
