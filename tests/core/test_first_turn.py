"""With which vector of a query an episode of stage 2 begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.core.fake_corpus import shape_corpus
from tests.core.test_grpo import RECIPE, World, make_world
from vsr1_core.stages.methods import TRAINED
from vsr1_core.stages.trained import GRPOCheckpoint


@pytest.fixture
def world() -> World:
    return make_world()


def test_the_first_turn_searches_with_the_stored_vector(world: World) -> None:
    stored = world.vectors["v7"]  # not the query's own, so that it shows
    world.prompts = [replace(p, vector=stored) for p in world.prompts]
    for rollout in world.sample():
        assert rollout.episode.first_vector is not None
        assert torch.equal(rollout.episode.first_vector, stored)
        assert rollout.episode.turns[0].video_id == "v7"
    world.prompts = [world.prompts[0], replace(world.prompts[1], vector=None)]
    made = [r.episode.first_vector for r in world.sample()]
    assert not any(vector is None or torch.equal(vector, stored) for vector in made)


def test_a_stored_vector_is_not_used_where_a_query_head_maps_queries(world: World) -> None:
    world.prompts = [replace(p, vector=world.vectors["v7"]) for p in world.prompts]
    sampler = world.sampler(RECIPE)
    sampler.searcher.embedder = sampler.searcher.embedder.with_head(torch.nn.Linear(48, 48))
    made = torch.ones(len(world.prompts), 48)
    sampler.searcher.plain_vectors = lambda texts: made  # type: ignore[method-assign, assignment]
    assert sampler._first_vectors(world.prompts) is made


def test_stage_2_gives_its_prompts_the_stored_vectors(tmp_path: Path) -> None:
    corpus = shape_corpus(tmp_path, 6)
    corpus.build("video_index", "first_ranking", "hard_negatives", "grpo_prompts")
    stage = GRPOCheckpoint(TRAINED["grpo_checkpoint"])
    prompts = stage._prompts(corpus.view)
    stored = dict(corpus.view.rows("query_embeddings", ["query_id", "vector"]).iter_rows())
    assert len(prompts) == 12
    for prompt in prompts:
        assert prompt.vector is not None
        assert prompt.vector.tolist() == stored[prompt.query_id]
    assert "query_embeddings" in stage.upstream
    assert "query_embeddings" not in stage.reads, "its versions are in those of the prompts"
