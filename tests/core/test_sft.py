"""Stage 1 on random tiny models: what is learned, what stays as it is, and what is logged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.core.tiny_models import query_text, random_video, tiny_embedder, tiny_policy
from vsr1_core.models.checkpoints import LoadedPolicy
from vsr1_core.models.embedder import Embedder
from vsr1_core.models.vision import FeatureStore
from vsr1_core.reasoning.conversation import answer_text
from vsr1_core.recipes import SFTRecipe
from vsr1_core.training.contrastive import CurvePoint
from vsr1_core.training.examples import PART_NAMES, build_examples
from vsr1_core.training.sft import SFTData, train_sft

RECIPE = SFTRecipe(steps=2, batch_size=4, lr=1e-3, refine_lr=1e-3, num_negatives=3, bf16=False)
REFINE_MODULES = ("refine_projector", "refine_latent_input_projector", "refine_append_input_projector")


@dataclass
class World:
    policy: LoadedPolicy
    embedder: Embedder
    data: SFTData

    def train(self, recipe: SFTRecipe, folder: Path) -> list[CurvePoint]:
        return train_sft(self.policy, self.embedder, self.data, recipe, folder)


def sft_row(i: int, writes_query: bool) -> dict[str, Any]:
    """Every second query was shown its right video, the others the next one."""
    is_match = i % 2 == 0
    ending: dict[str, Any] = {"start_s": 0.0, "end_s": 1.0 + i} if is_match else {}
    ending |= {"new_query": query_text(i + 1)} if writes_query and not is_match else {}
    return {
        "query_id": f"q{i}",
        "query": query_text(i),
        "video_id": f"v{i}",
        "shown_video_id": f"v{i if is_match else (i + 1) % 8}",
        "label": "matched" if is_match else "not_matched",
        "answer": answer_text(f"a ring grows {i}.", is_match, **ending),
        "negative_ids": [f"v{(i + 1) % 8}", f"v{(i + 2) % 8}"],
    }


def make_world(writes_query: bool = False) -> World:
    policy, embedder = tiny_policy(num_soft_tokens=3), tiny_embedder()
    videos = {f"v{i}": random_video(i, policy.model.config, max_pairs=2) for i in range(8)}
    with torch.no_grad():
        vectors = embedder.embed_videos(FeatureStore(embedder.model, videos.__getitem__).get(sorted(videos)))
    features = FeatureStore(policy.model.model, videos.__getitem__)
    rows = [sft_row(i, writes_query) for i in range(8)]
    layouts = [f.layout for f in features.get([r["shown_video_id"] for r in rows])]
    examples = build_examples(policy, rows, layouts)
    return World(policy, embedder, SFTData(examples, features, dict(zip(sorted(videos), vectors, strict=True)), {}))


@pytest.fixture
def world() -> World:
    return make_world()


def weights_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module: torch.nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def names(curve: Sequence[CurvePoint]) -> set[str]:
    return {point.name for point in curve}


def test_text_and_refinement_learn_and_the_vision_tower_and_the_embedder_do_not(world: World, tmp_path: Path) -> None:
    policy, embedder = weights_of(world.policy.model), weights_of(world.embedder.model)
    curve = world.train(RECIPE, tmp_path)
    learned = changed(world.policy.model, policy)
    assert changed(world.embedder.model, embedder) == set()
    assert not any(".visual." in name or name.startswith("refine_gate") for name in learned)
    for module in REFINE_MODULES:
        assert {
            f"{module}.{name}" for name, _ in world.policy.model.get_submodule(module).named_parameters()
        } <= learned
    assert any("language_model.layers" in name for name in learned)
    assert {"text_loss", "verification_loss", "grounding_loss", "reasoning_loss", "retrieval_loss"} <= names(curve)


@pytest.mark.parametrize("refine", ["none", "text"])
def test_without_soft_tokens_their_modules_stay_and_nothing_is_searched(refine: Any, tmp_path: Path) -> None:
    world = make_world(writes_query=refine == "text")
    before = weights_of(world.policy.model)
    curve = world.train(replace(RECIPE, refine=refine), tmp_path)
    learned = changed(world.policy.model, before)
    assert learned
    assert not any(name.startswith(REFINE_MODULES) for name in learned)
    assert "retrieval_loss" not in names(curve)
    assert ("rewriting_loss" in names(curve)) == (refine == "text")


def test_an_fp32_policy_learns_beside_a_tower_and_an_embedder_in_half_precision(tmp_path: Path) -> None:
    world = make_world()
    world.embedder.model.bfloat16()
    world.policy.model.model.visual.bfloat16()
    world.data.features._kept.clear()
    before = weights_of(world.policy.model)
    curve = world.train(replace(RECIPE, bf16=True), tmp_path)
    assert all(p.dtype == torch.float32 for p in world.policy.model.parameters() if p.requires_grad)
    learned = changed(world.policy.model, before)
    assert {"refine_projector.3.weight", "model.language_model.layers.0.mlp.down_proj.weight"} <= learned
    assert all(torch.tensor(point.value).isfinite() for point in curve)


def test_an_answer_ends_with_refine_or_with_the_stop_token_and_its_parts_are_told_apart() -> None:
    for writes_query in (False, True):
        world = make_world(writes_query)
        tokenizer = world.policy.tokenizer
        for i, example in enumerate(world.data.examples):
            ids = example.prompt.token_ids[-len(example.parts) :].tolist()
            written = {
                name: tokenizer.decode([t for t, part in zip(ids, example.parts, strict=True) if part == number])
                for number, name in enumerate(PART_NAMES)
            }
            is_match = i % 2 == 0
            assert example.refines == (not is_match and not writes_query)
            assert tokenizer.decode(ids[-1:]) == ("<REFINE>" if example.refines else "<|im_end|>")
            assert written["verification"] == f"<answer>{'' if is_match else 'not_'}matched</answer>"
            assert written["grounding"] == (f"<start>0.0</start> <end>{1.0 + i}</end>" if is_match else "")
            rewrites = writes_query and not is_match
            assert written["rewriting"] == (f"<query> {query_text(i + 1)} </query>" if rewrites else "")
