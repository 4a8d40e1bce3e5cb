"""The verdict "nothing like that is here", with an embedder whose scores are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from vsr1_core.home.search import SearchRequest, search_together
from vsr1_core.home.search_result import NOTHING_ABOVE, Found, ShownTurn
from vsr1_core.search.index import VideoIndex, build_index
from vsr1_core.search.unrelated import UNRELATED, best_scores, share_at_least
from vsr1_core.stages import loading

DIM = 8


def towards(video: int, cosine: float) -> np.ndarray:
    """A unit vector with this cosine to video `video` and to no other."""
    vector = np.zeros(DIM, np.float32)
    vector[video], vector[DIM - 1] = cosine, np.sqrt(1 - cosine**2)
    return vector


class Known:
    """Opened models of six videos, on which unrelated text n scores 0.2 + 0.002 n, and a query what its words say."""

    def __init__(self, num_fitting: int = 0) -> None:
        self.view: Any = None
        self.asked: list[str] = []
        self.plain = self
        self.best = {text: 0.2 + 0.002 * number for number, text in enumerate(UNRELATED)}
        self.best |= dict.fromkeys(UNRELATED[:num_fitting], 0.9)

    def index(self, split: str) -> VideoIndex:
        return build_index([f"v{n}" for n in range(DIM - 2)], np.eye(DIM, dtype=np.float32)[: DIM - 2])

    def get(self, texts: Sequence[str]) -> torch.Tensor:
        self.asked += texts
        return torch.tensor(np.stack([towards(n % 6, self.best.get(t) or float(t)) for n, t in enumerate(texts)]))

    def unrelated_scores(self, split: str) -> Any:
        return best_scores(self.index(split), self.get(UNRELATED).numpy())


def found(text: str, num_fitting: int = 0) -> Found:
    known: Any = Known(num_fitting)
    known.view = type("View", (), {"entry": type("Entry", (), {"name": "mine", "search_only": True})})
    return search_together(known, [SearchRequest(text, verify=False)])[0]


@pytest.fixture(autouse=True)
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vsr1_core.home.search.method_of", lambda view, request: None)
    monkeypatch.setattr(loading, "one_row", lambda *row: {"digest": "ab"})


def test_the_share_counts_the_unrelated_texts_that_score_at_least_as_high() -> None:
    scores = np.array([0.1, 0.2, 0.3, 0.3])
    assert [share_at_least(score, scores) for score in (0.4, 0.3, 0.2, 0.0)] == [0.2, 0.6, 0.8, 1.0]
    assert share_at_least(0.30004, scores) == 0.6, "scores are compared as they are shown"


def test_there_are_99_texts_so_that_a_share_is_a_whole_number_of_percent() -> None:
    assert len(set(UNRELATED)) == 99
    assert [share_at_least(score, np.arange(99) / 100) for score in (2.0, 0.5, 0.0)] == [0.01, 0.5, 1.0]


@pytest.mark.parametrize(
    ("score", "share", "is_nothing"),
    [(0.95, 0.01, False), (0.389, 0.05, False), (0.387, 0.06, True), (0.25, 0.75, True), (0.05, 1.0, True)],
)
def test_a_query_that_scores_no_better_than_unrelated_texts_finds_nothing_like_it(
    score: float, share: float, is_nothing: bool
) -> None:
    result = found(str(score))
    assert result.unrelated_share == pytest.approx(share)
    assert result[0].score == pytest.approx(score, abs=1e-4), "the nearest videos are listed all the same"
    said = f"not verified; nothing like that is here (unrelated texts score as high in {share:.0%} of cases)"
    if is_nothing:
        assert result.verdict == f"{said}; nearest videos follow"
    else:
        assert result.verdict == "not verified; videos by similarity follow"


def test_four_texts_that_fit_the_videos_after_all_move_no_verdict_and_a_fifth_does() -> None:
    assert "nothing like" not in found("0.8", num_fitting=4).verdict
    assert "nothing like" in found("0.8", num_fitting=5).verdict


def test_one_draw_of_unrelated_queries_is_called_nothing_as_often_as_the_rule_says() -> None:
    """The share is a p-value: of queries that are one more unrelated text, NOTHING_ABOVE score above the rule."""
    draw = np.random.default_rng(7)
    shares = []
    for _ in range(2000):
        scores = np.round(draw.beta(3, 5, 100), 4)
        shares.append(share_at_least(scores[0], scores[1:]))
    taken_for_something = np.mean(np.array(shares) <= NOTHING_ABOVE)
    assert taken_for_something == pytest.approx(NOTHING_ABOVE, abs=0.012)


def test_a_policy_that_refused_all_says_so_first_and_a_match_is_a_match() -> None:
    refused = (ShownTurn(1, "v1", 0.3, "not_matched"),)
    nothing = Found("x", "mine", "test", method="sqr_sft", turns=refused, unrelated_share=0.4)
    assert nothing.verdict == (
        "nothing matched; nothing like that is here (unrelated texts score as high in 40% of cases); "
        "nearest videos follow"
    )
    matched = (ShownTurn(1, "v1", 0.3, "matched"),)
    assert Found("x", "mine", "test", method="sqr_sft", turns=matched, unrelated_share=0.4).verdict == (
        "matched in turn 1"
    )
