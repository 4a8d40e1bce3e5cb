"""The stages `verification_probe.*`: which videos are shown, what makes a row stale, and what a row says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.core.fake_corpus import FakeCorpus, Given, shape_corpus
from vsr1_core.input_form import OURS
from vsr1_core.models.protocols import Decoded
from vsr1_core.reasoning.conversation import answer_text, parse_answer
from vsr1_core.search import episodes
from vsr1_core.search.episodes import Verification
from vsr1_core.stages import loading
from vsr1_core.stages.base import Stage, View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import all_stages, in_order, plan_graph
from vsr1_core.stages.readings import NotYetKnown

ASSET = "verification_probe.sqr_sft"
REAL = all_stages()


@pytest.fixture
def corpus(tmp_path: Path) -> FakeCorpus:
    made = shape_corpus(tmp_path)
    made.build("video_index", "first_ranking")
    return made


def view_of(corpus: FakeCorpus, checkpoint: str = "one", **contents: str) -> View:
    """The corpus with frames and checkpoint committed. contents: video id -> another content of its frames."""
    videos = [
        {"video_id": v, "content": contents.get(v, v), "duration_s": 10.0, "splits": splits}
        for v, splits in corpus.splits.items()
        if v in corpus.vectors
    ]
    given = [
        Given(REAL["frame_tensors"], videos),
        Given(REAL["base_models"], [{"model_id": "policy", "path": "p"}]),
        Given(REAL["sft_checkpoint"], [{"checkpoint": "sft_checkpoint", "path": "p", "digest": checkpoint}]),
    ]
    view = replace(corpus.view, stages=in_order([*corpus.stages.values(), *given, REAL[ASSET]]))
    for stage in given:
        stage.build(view, Execution())
    return view


@pytest.fixture(autouse=True)
def answers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A policy that accepts everything with the first two seconds; the list gets what it was asked."""
    asked: list[tuple[str, str]] = []

    def verify(policy: Any, features: Any, durations_s: Any, pairs: Any, settings: Any, size: int) -> Any:
        asked.extend(pairs)
        text = answer_text("a ring.", True, 0.0, 2.0)
        made = Decoded([1, 2, 3], [0.0] * 3, text, None)
        return [Verification(None, made, parse_answer(text, durations_s[v])) for _, v in pairs]  # type: ignore[arg-type]

    monkeypatch.setattr(episodes, "verify", verify)
    monkeypatch.setattr(loading, "policy_of", lambda *_: _Policy())
    monkeypatch.setattr(loading, "frame_store", lambda *_: None)
    return asked


class _Policy:
    encoder = None
    model = SimpleNamespace(soft_query=SimpleNamespace(form=OURS))


def stage(view: View) -> Stage:
    return view.stages[ASSET]


def build(view: View) -> int:
    return stage(view).build(view, Execution(batch_size=2)).num_processed


def rows(view: View) -> dict[str, dict[str, Any]]:
    return {row["probe_id"]: row for row in view.rows(ASSET).to_dicts()}


def test_every_evaluated_query_is_shown_its_right_video_and_the_first_wrong_one(corpus, answers):
    view = view_of(corpus)
    assert build(view) == 24
    found, ranking = rows(view), corpus.rows("first_ranking")
    for moment in corpus.moments:
        if moment["split"] != "test":
            continue
        query_id = moment["query_id"]
        right, wrong = found[f"{query_id}/right"], found[f"{query_id}/wrong"]
        first_wrong = next(v for v in ranking[query_id]["top_video_ids"] if v != moment["video_id"])
        assert (right["label"], right["shown_video_id"]) == ("matched", moment["video_id"])
        assert (wrong["label"], wrong["shown_video_id"]) == ("not_matched", first_wrong)
        assert right["iou"] == (0.4 if moment["start_s"] == 0.0 else 0.0)
        assert (wrong["iou"], wrong["end_s"], wrong["num_text_tokens"]) == (0.0, 2.0, 3)
    assert len(answers) == len(found) == 24


def test_a_video_that_shares_the_querys_text_is_not_shown_as_wrong(corpus):
    first = rows_of_first_wrong(corpus)
    owner = next(m for m in corpus.moments if m["video_id"] == first["shown_video_id"])
    asked = next(m for m in corpus.moments if m["query_id"] == first["query_id"])
    owner["query"] = asked["query"].upper() + " "
    corpus.write()
    view = view_of(corpus)
    build(view)
    assert rows(view)[first["probe_id"]]["shown_video_id"] != first["shown_video_id"]


def rows_of_first_wrong(corpus: FakeCorpus) -> dict[str, Any]:
    view = view_of(corpus)
    build(view)
    return next(row for row in rows(view).values() if row["label"] == "not_matched")


def test_a_split_of_one_video_has_right_probes_only(tmp_path):
    made = FakeCorpus(tmp_path)
    made.add_video("only", [1.0, 0.0], "test")
    made.add_moment("q_fig", "only", [1.0, 0.1], split="test")
    made.write()
    made.build("video_index", "first_ranking")
    view = view_of(made)
    assert build(view) == 1
    assert list(rows(view)) == ["q_fig/right"]


def test_a_query_whose_right_video_is_missing_is_not_probed(corpus):
    del corpus.vectors["test_00"]
    corpus.write()
    corpus.build("video_index", "first_ranking")
    view = view_of(corpus)
    assert build(view) == 20
    assert not [row for row in rows(view).values() if row["shown_video_id"] == "test_00"]


def test_only_what_a_row_reads_makes_it_stale(corpus):
    view = view_of(corpus)
    build(view)
    assert build(view_of(corpus)) == 0
    changed = view_of(corpus, test_03="other pixels")
    shown = [row for row in rows(view).values() if row["shown_video_id"] == "test_03"]
    assert build(changed) == len(shown) > 0
    corpus.moments[-1]["start_s"] = 6.0
    corpus.write()
    assert build(view_of(corpus, test_03="other pixels")) == 1
    assert build(view_of(corpus, checkpoint="two", test_03="other pixels")) == 24


def test_a_new_video_that_ranks_first_for_nobody_asks_nothing_again(corpus):
    build(view_of(corpus))
    corpus.add_video("test_99", -sum(corpus.vectors[v] for v in corpus.vectors if v.startswith("test")), "test")
    corpus.write()
    corpus.build("video_index", "first_ranking")
    shown = {row["shown_video_id"] for row in rows(view_of(corpus)).values()}
    view = view_of(corpus)
    due = build(view)
    moved = [row for row in rows(view).values() if row["shown_video_id"] == "test_99"]
    assert "test_99" not in shown
    assert due == len(moved)


def test_the_wrong_video_waits_for_the_ranking(corpus):
    view = view_of(corpus)
    corpus.moments[-1]["vector"] = corpus.moments[-1]["vector"] * -1
    corpus.write()
    found = {plan.asset: plan for plan in plan_graph(view_of(corpus))}
    assert found[ASSET].plan is None
    assert found[ASSET].waits_for == "first_ranking"
    with pytest.raises(NotYetKnown):
        stage(view).plan(replace(view, unsettled={"first_ranking"}))


def test_a_video_on_which_the_policy_raises_fails_its_own_probes_only(corpus, monkeypatch):
    view, verify = view_of(corpus), episodes.verify

    def refuse(*arguments: Any) -> Any:
        if any(video_id == "test_03" for _, video_id in arguments[3]):
            raise ValueError("the frames cannot be read")
        return verify(*arguments)

    monkeypatch.setattr(episodes, "verify", refuse)
    build(view)
    table = view.table(ASSET).rows()
    failed = table.filter(table["status"] == "failed")
    assert set(failed["error"]) == {"the frames cannot be read"}
    assert set(failed["shown_video_id"]) == {"test_03"}
    assert "test_03" not in set(table.filter(table["status"] == "ok")["shown_video_id"])
    assert table.height == 24
