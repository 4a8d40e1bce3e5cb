"""Episodes of a policy whose form forces no refinement, and the stored vectors by which the first turn ranks."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.core.test_episodes import NO, QUERIES, YES, script, searcher, vector_rank
from tests.core.tiny_models import tiny_policy
from vsr1_core.input_form import InputForm
from vsr1_core.reasoning.conversation import asks_to_refine
from vsr1_core.search.turns import Episode
from vsr1_core.stages.predictions import _search

__all__ = ["script"]


@pytest.mark.parametrize("exclude_rejected", [False, True])
def test_an_episode_ends_where_no_refine_was_written_and_the_form_forces_none(
    script: Any, exclude_rejected: bool
) -> None:
    """As the authors' evaluation stops: a rejection without <REFINE>, or an answer that cannot be read, without it."""
    asked = script([NO, NO.removesuffix(" <REFINE>"), YES])
    policy = tiny_policy(form=InputForm(video_wrapper="template", force_refine=False))
    for episode in searcher(num_turns=3, policy=policy, exclude_rejected=exclude_rejected).run(QUERIES):
        assert [turn.answer.decision for turn in episode.turns] == ["not_matched", "not_matched"]
        assert len(episode.latents) == 1
        assert not episode.is_matched
        assert episode.final_rank == episode.turns[-1].rank
        assert episode.final_video_id == episode.turns[-1].video_id
    assert len(asked) == 2
    assert asks_to_refine("perhaps <REFINE>", is_forced=False)
    assert not asks_to_refine("perhaps", is_forced=False)
    assert not asks_to_refine(f"{YES} <REFINE>", is_forced=False)
    assert asks_to_refine("perhaps")


@torch.no_grad()
def test_the_first_turn_ranks_by_the_given_vectors_and_later_ones_by_their_own(script: Any) -> None:
    script([NO])
    search = searcher(num_turns=2)
    stored = torch.from_numpy(search.index.vectors[[3] * len(QUERIES)])
    for episode in search.run(QUERIES, stored):
        assert episode.turns[0].video_id == "v3"
        assert episode.turns[0].score == pytest.approx(1.0, abs=1e-5)
        assert search.prefix_ranks([episode]) != [None]
        assert torch.equal(search.embed([replace(episode, latents=[])])[0], stored[0]), "without soft tokens too"
        later = search.embed([Episode(episode.query, latents=episode.latents[:1])])[0]
        assert episode.turns[1].rank == vector_rank(search, later, str(episode.query.gt_video_id))


@torch.no_grad()
def test_predictions_start_from_the_stored_vectors_unless_the_policy_has_a_head() -> None:
    given: list[Any] = []

    def run(queries: Any, first_vectors: Any) -> list[Any]:
        given.append(first_vectors)
        return []

    vectors = torch.eye(2)
    for head in (None, torch.nn.Identity()):
        embedder = SimpleNamespace(head=head, device=torch.device("cpu"))
        stand_in: Any = SimpleNamespace(run=run, embedder=embedder, best_answers=lambda e: e, prefix_ranks=lambda e: e)
        assert list(_search(stand_in, [], vectors, "digest")) == []
    assert given[0] is vectors or torch.equal(given[0], vectors)
    assert given[1] is None
