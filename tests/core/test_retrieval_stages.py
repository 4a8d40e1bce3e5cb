"""Index, first ranking and hard negatives on a made-up corpus."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import polars as pl
import pytest

from tests.core.fake_corpus import FakeCorpus, shape_corpus
from vsr1_core.configurations import NANO
from vsr1_core.recipes import RetrievalRecipe
from vsr1_core.rows.increments import Future
from vsr1_core.search.faiss_kinds import is_of_kind
from vsr1_core.search.index import read_index
from vsr1_core.stages.base import Stage, View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.readings import NotYetKnown
from vsr1_core.stages.retrieval import VideoIndexes, as_matrix

STAGES = ("video_index", "first_ranking", "hard_negatives")


@pytest.fixture
def corpus(tmp_path):
    return shape_corpus(tmp_path)


def due(corpus: FakeCorpus) -> dict[str, int | str]:
    return corpus.plan(*STAGES)


def test_each_split_has_an_index_of_its_own_videos(corpus):
    corpus.build("video_index")
    rows = corpus.rows("video_index")
    assert {split: row["num_videos"] for split, row in rows.items()} == {"train": 24, "test": 6}
    index = read_index(corpus.view.files("video_index") / "test")
    assert index.ids == tuple(f"test_{i:02d}" for i in range(6))
    assert rows["test"]["path"].endswith("test")
    assert rows["test"]["dim"] == 16


def test_the_first_ranking_agrees_with_brute_force(corpus):
    corpus.build(*STAGES)
    rows = corpus.rows("first_ranking")
    assert len(rows) == 60
    for moment in corpus.moments:
        scores = {
            v: float(corpus.vectors[v] @ moment["vector"]) for v, s in corpus.splits.items() if moment["split"] in s
        }
        row, own = rows[moment["query_id"]], scores[moment["video_id"]]
        assert row["rank"] == 1 + sum(s > own for s in scores.values())
        assert row["score"] == pytest.approx(own, abs=1e-6)
        assert row["top_video_ids"] == sorted(scores, key=lambda v: -scores[v])
        assert row["top_scores"] == pytest.approx(sorted(scores.values(), reverse=True), abs=1e-6)


def test_top_k_bounds_what_is_kept(tmp_path):
    config = dataclasses.replace(NANO, retrieval=RetrievalRecipe(top_k=3, num_hard_negatives=2))
    corpus = shape_corpus(tmp_path, config=config)
    corpus.build(*STAGES)
    assert {len(r["top_video_ids"]) for r in corpus.rows("first_ranking").values()} == {3}
    assert {len(r["video_ids"]) for r in corpus.rows("hard_negatives").values()} == {2}


def test_a_query_whose_video_is_missing_has_no_rank_but_a_ranking(corpus):
    del corpus.vectors["test_00"]
    corpus.write()
    corpus.build("video_index", "first_ranking")
    row = corpus.rows("first_ranking")["test_00_0_fig"]
    assert (row["status"], row["rank"], row["score"]) == ("ok", None, None)
    assert len(row["top_video_ids"]) == 5


def test_a_split_without_any_video_fails_its_queries_and_says_where_to_look(corpus):
    for video_id in [v for v in corpus.vectors if v.startswith("test")]:
        del corpus.vectors[video_id]
    corpus.write()
    outcome = corpus.build("video_index", "first_ranking")["first_ranking"]
    assert outcome.num_failed == 12
    assert "none of its videos was decoded" in corpus.rows("first_ranking")["test_00_0_fig"]["error"]
    assert sum(r["status"] == "ok" for r in corpus.rows("first_ranking").values()) == 48


def test_an_empty_dataset_gives_empty_tables(tmp_path):
    corpus = FakeCorpus(tmp_path)
    corpus.write()
    assert {o.num_processed for o in corpus.build().values()} == {0}


def test_doing_it_again_does_nothing(corpus):
    corpus.build(*STAGES)
    assert due(corpus) == {"video_index": 0, "first_ranking": 0, "hard_negatives": 0}
    assert [o.num_processed for o in corpus.build(*STAGES).values()] == [0, 0, 0]


def test_a_new_train_video_ranks_its_split_anew_and_no_other(corpus):
    corpus.build(*STAGES)
    corpus.add_video("train_99", np.ones(16))
    corpus.write()
    counts = due(corpus)
    done = {name: outcome.num_processed for name, outcome in corpus.build(*STAGES).items()}
    assert done == counts == {"video_index": 1, "first_ranking": 48, "hard_negatives": 48}
    assert corpus.rows("video_index")["train"]["num_videos"] == 25


def test_a_changed_query_is_ranked_alone(corpus):
    corpus.build(*STAGES)
    corpus.moments[3]["vector"] = corpus.vectors["train_07"]
    corpus.write()
    assert due(corpus)["first_ranking"] == 1
    corpus.build(*STAGES)
    assert corpus.rows("first_ranking")[corpus.moments[3]["query_id"]]["top_video_ids"][0] == "train_07"


def test_a_changed_span_ranks_nothing(corpus):
    corpus.build(*STAGES)
    corpus.moments[3]["start_s"] = 1.25
    corpus.write()
    assert due(corpus) == {"video_index": 0, "first_ranking": 0, "hard_negatives": 0}


def test_hard_negatives_are_the_best_wrong_videos_in_rank_order(corpus):
    corpus.build(*STAGES)
    rankings, rows = corpus.rows("first_ranking"), corpus.rows("hard_negatives")
    assert set(rows) == {m["query_id"] for m in corpus.moments if m["split"] == "train"}
    for query_id, row in rows.items():
        expected = [v for v in rankings[query_id]["top_video_ids"] if v != rankings[query_id]["gt_video_id"]]
        assert row["video_ids"] == expected[:30]
        assert row["scores"] == sorted(row["scores"], reverse=True)


def test_videos_that_share_the_querys_text_are_never_negatives(corpus):
    corpus.moments[0]["query"], corpus.moments[10]["query"] = "A dog barks", " a dog barks"
    corpus.write()
    corpus.build(*STAGES)
    for one, other in ((0, 10), (10, 0)):
        negatives = corpus.rows("hard_negatives")[corpus.moments[one]["query_id"]]["video_ids"]
        assert corpus.moments[other]["video_id"] not in negatives
        assert len(negatives) == 22


def test_a_text_that_becomes_shared_redoes_only_the_rows_it_touches(corpus):
    corpus.build(*STAGES)
    corpus.moments[0]["query"] = corpus.moments[10]["query"]
    corpus.write()
    assert due(corpus) == {"video_index": 0, "first_ranking": 0, "hard_negatives": 2}


def test_vectors_that_are_no_unit_vectors_fail_the_index_with_a_reason(corpus):
    corpus.vectors["test_03"] = corpus.vectors["test_03"] * 3
    corpus.write()
    outcome = corpus.build("video_index")["video_index"]
    assert outcome.num_failed == 1
    assert "not unit vectors" in corpus.rows("video_index")["test"]["error"]
    assert corpus.rows("video_index")["train"]["status"] == "ok"


def test_splits_that_are_not_known_yet_postpone_the_plan(corpus):
    view = corpus.view
    table = view.table("video_embeddings")
    due = table.rows().with_columns(splits=pl.lit(None, pl.List(pl.String)))
    view.planned["video_embeddings"] = Future(table, due)
    with pytest.raises(NotYetKnown, match="video_embeddings"):
        view.stages["video_index"].plan(view)


def test_approximate_indexes_still_give_exact_ranks(tmp_path):
    exact, approximate = (
        shape_corpus(tmp_path / kind, config=dataclasses.replace(NANO, retrieval=RetrievalRecipe(index=kind)))
        for kind in ("flat", "hnsw")
    )
    for corpus in (exact, approximate):
        corpus.build("video_index", "first_ranking")
    ranks = [{i: r["rank"] for i, r in c.rows("first_ranking").items()} for c in (exact, approximate)]
    assert ranks[0] == ranks[1]


def approximate(home, kind="ivf", num_videos=120):
    return shape_corpus(home, num_videos, config=dataclasses.replace(NANO, retrieval=RetrievalRecipe(index=kind)))


def lines_of(corpus: FakeCorpus) -> list[str]:
    """What a build of the indexes says."""
    lines: list[str] = []
    corpus.stages["video_index"].build(corpus.view, Execution(log=lines.append))
    return [line for line in lines if "vectors" in line]


def check_vectors(corpus: FakeCorpus, split: str) -> None:
    """The index on disk has exactly the vectors of the table."""
    index = read_index(corpus.view.files("video_index") / split)
    table = corpus.view.rows("video_embeddings").filter(pl.col("splits").list.contains(split))
    expected = dict(zip(table["video_id"], as_matrix(table["vector"]), strict=True))
    assert sorted(index.ids) == sorted(expected)
    assert all((vector == expected[i]).all() for i, vector in zip(index.ids, index.vectors, strict=True))


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_is_updated_and_says_what_it_finds(tmp_path, kind):
    corpus = approximate(tmp_path, kind)
    assert [line.split(", recall")[0] for line in lines_of(corpus)] == [
        "video_index: test: 6 vectors, built anew",
        "video_index: train: 120 vectors, built anew",
    ]
    corpus.add_video("train_999", np.ones(16))
    corpus.write()
    (line,) = lines_of(corpus)
    row = corpus.rows("video_index")["train"]
    said = f"recall at 10 {row['recall_at_10']:.3f}, recall at 100 {row['recall_at_100']:.3f}"
    assert line == f"video_index: train: 121 vectors, 1 added, 0 changed, 0 removed, {said}"
    assert 0 < row["recall_at_100"] <= row["recall_at_10"] <= 1
    assert (row["num_trained"], row["num_moved"]) == ((120, 1) if kind == "ivf" else (None, None))
    check_vectors(corpus, "train")
    assert due(corpus)["video_index"] == 0


def test_a_changed_vector_and_a_removed_video_do_not_stay(tmp_path):
    corpus = approximate(tmp_path)
    corpus.build("video_index")
    del corpus.vectors["train_05"]
    corpus.vectors["train_06"] = corpus.vectors["train_07"]
    corpus.write()
    (line,) = lines_of(corpus)
    assert "119 vectors, 0 added, 1 changed, 1 removed" in line
    check_vectors(corpus, "train")


def test_flat_indexes_are_exact_and_say_no_recall(corpus):
    corpus.build("video_index")
    assert {row["recall_at_10"] for row in corpus.rows("video_index").values()} == {None}


@pytest.mark.parametrize("change", ["the kind", "the stage"])
def test_an_index_that_was_made_otherwise_is_built_anew(tmp_path, monkeypatch, change):
    corpus = approximate(tmp_path)
    corpus.build("video_index")
    if change == "the stage":
        monkeypatch.setattr(VideoIndexes, "version", 2)
    else:
        corpus.config = dataclasses.replace(NANO, retrieval=RetrievalRecipe(index="hnsw"))
    assert all("built anew" in line for line in lines_of(corpus))
    check_vectors(corpus, "train")


def test_an_index_that_failed_before_is_built_anew(tmp_path):
    corpus = approximate(tmp_path)
    corpus.build("video_index")
    good = corpus.vectors["train_03"]
    corpus.vectors["train_03"] = 3 * good
    corpus.write()
    assert lines_of(corpus) == []
    assert corpus.rows("video_index")["train"]["status"] == "failed"
    corpus.vectors["train_03"] = good
    corpus.write()
    assert "built anew" in lines_of(corpus)[0]


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
@pytest.mark.parametrize("cut", ["while it is written", "before it is committed"])
def test_a_killed_update_leaves_an_index_and_the_next_build_the_right_one(tmp_path, monkeypatch, kind, cut):
    from vsr1_core.rows.table import Table
    from vsr1_core.search import index as module

    corpus = approximate(tmp_path, kind)
    corpus.build("video_index")
    before = read_index(corpus.view.files("video_index") / "train").ids
    corpus.add_video("train_999", np.ones(16))
    corpus.write()

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*((module, "write_json") if cut == "while it is written" else (Table, "commit_changes")), killed)
        corpus.build("video_index")
    left = read_index(corpus.view.files("video_index") / "train").ids
    assert left == (before if cut == "while it is written" else (*before, "train_999"))
    assert due(corpus)["video_index"] == 1
    assert "built anew" not in lines_of(corpus)[0]
    check_vectors(corpus, "train")


@pytest.mark.parametrize("change", ["another video", "another kind"])
@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_an_index_whose_change_was_killed_and_taken_back_is_made_again(tmp_path, monkeypatch, kind, change):
    """The inputs are those of the committed row again, and the folder is not."""
    from vsr1_core.rows.table import Table

    corpus = approximate(tmp_path, kind)
    corpus.build("video_index")
    config, added = corpus.config, "train_999"
    if change == "another video":
        corpus.add_video(added, np.ones(16))
        corpus.write()
    else:
        corpus.config = dataclasses.replace(NANO, retrieval=RetrievalRecipe(index="hnsw"))

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Table, "commit_changes", killed)
        corpus.build("video_index")
    corpus.config = config
    if change == "another video":
        del corpus.vectors[added]
        corpus.write()
    assert due(corpus)["video_index"] >= 1
    corpus.build("video_index")
    assert due(corpus)["video_index"] == 0
    check_vectors(corpus, "train")
    stored = read_index(corpus.view.files("video_index") / "train").faiss_index
    assert is_of_kind(stored, kind)


def test_an_index_that_finds_too_little_warns(tmp_path):
    from vsr1_core.stages.checks import INDEX_FINDS

    corpus = approximate(tmp_path, num_videos=400)  # ten lists, one of which is searched
    corpus.build("video_index")
    recall = corpus.rows("video_index")["train"]["recall_at_10"]
    assert recall < 0.9
    problem = INDEX_FINDS.find(corpus.view, "video_index")
    assert problem == (
        "ivf indexes find too few of the ten nearest videos: "
        f"that of split train {recall:.0%} (retrieval.index=flat finds all)"
    )
    assert not INDEX_FINDS.blocking
    exact = shape_corpus(tmp_path / "flat")
    exact.build("video_index")
    assert INDEX_FINDS.find(exact.view, "video_index") == ""


def test_planning_imports_no_faiss_and_no_torch(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from tests.core.fake_corpus import shape_corpus; "
        "from vsr1_core.stages.graph import plan_graph; "
        f"plan_graph(shape_corpus(Path({str(tmp_path)!r})).view); "
        "sys.exit(bool({'faiss', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_last_step_of_a_build_runs_even_when_nothing_is_due(corpus):
    calls = []

    class Counting(VideoIndexes):
        def after_build(self, view: View) -> None:
            calls.append(json.dumps(sorted(view.versions("video_index"))))

    stage: Stage = Counting()
    stage.build(corpus.view, Execution())
    stage.build(corpus.view, Execution())
    assert calls == ['["test", "train"]'] * 2


def test_columns_of_lists_become_matrices():
    column = pl.Series([[1.0, 2.0], [3.0, 4.0]], dtype=pl.List(pl.Float32))
    assert as_matrix(column).tolist() == [[1, 2], [3, 4]]
    for bad in (pl.Series([[1.0], [3.0, 4.0]]), pl.Series([], dtype=pl.List(pl.Float32))):
        with pytest.raises(ValueError, match="must have the same length"):
            as_matrix(bad)
