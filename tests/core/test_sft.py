"""Stage 1 on random tiny models: what is learned, what stays as it is, and what is logged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from tests.core.tiny_models import query_text, random_video, tiny_embedder, tiny_policy
from vsr1_core.models.feature_store import FeatureStore
from vsr1_core.models.qwen3_vl.embedder import Qwen3VLEmbedder
from vsr1_core.models.qwen3_vl.loaded import LoadedPolicy
from vsr1_core.models.soft_query import soft_query_modules, start_among_words
from vsr1_core.reasoning.conversation import answer_text
from vsr1_core.recipes import SFTRecipe
from vsr1_core.training import search_loss, sft
from vsr1_core.training.examples import PART_NAMES, build_examples
from vsr1_core.training.losses import retrieval_losses
from vsr1_core.training.runs import CurvePoint, TrainingRun
from vsr1_core.training.search_loss import SearchLoss
from vsr1_core.training.sft import RefineSFTTrainer, SFTData, train_sft

RECIPE = SFTRecipe(steps=2, batch_size=4, lr=1e-3, refine_lr=1e-3, num_negatives=3, bf16=False)
REFINE_MODULES = ("refine_projector", "refine_latent_input_projector", "refine_append_input_projector")


@dataclass
class World:
    policy: LoadedPolicy
    embedder: Qwen3VLEmbedder
    data: SFTData

    def train(self, recipe: SFTRecipe, folder: Path) -> list[CurvePoint]:
        return train_sft(self.policy, self.embedder, self.data, recipe, TrainingRun(folder))


def sft_row(i: int, writes_query: bool) -> dict[str, Any]:
    """Every second query was shown its right video, the others the next one."""
    is_match = i % 2 == 0
    ending: dict[str, Any] = {"start_s": 0.0, "end_s": 1.0 + i} if is_match else {}
    ending |= {"new_query": query_text(i + 1)} if writes_query and not is_match else {}
    return {
        "query_id": f"q{i}",
        "query": query_text(i),
        "gt_video_id": f"v{i}",
        "shown_video_id": f"v{i if is_match else (i + 1) % 8}",
        "label": "matched" if is_match else "not_matched",
        "answer": answer_text(f"a ring grows {i}.", is_match, **ending),
        "negative_ids": [f"v{(i + 1) % 8}", f"v{(i + 2) % 8}"],
    }


def make_world(writes_query: bool = False) -> World:
    policy, embedder = tiny_policy(num_soft_tokens=3), tiny_embedder()
    videos = {f"v{i}": random_video(i, policy.model.config, max_pairs=2) for i in range(8)}
    with torch.no_grad():
        vectors = embedder.embed_features(FeatureStore(embedder.encoder, videos.__getitem__).get(sorted(videos)))
    features = FeatureStore(policy.encoder, videos.__getitem__)
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


@pytest.mark.slow
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


TEXT_MODEL = "model.language_model.layers."


def moved_and_apart(first: World, second: World, before: dict[str, Tensor]) -> tuple[float, float]:
    """How far the first world's weights moved at most, and how far the second's are from them."""
    ours, theirs = weights_of(first.policy.model), weights_of(second.policy.model)
    moved = max(float((ours[name] - before[name]).abs().max()) for name in before)
    return moved, max(float((ours[name] - theirs[name]).abs().max()) for name in before)


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"batch_size": 4, "gradient_accumulation": 2}, {"gradient_checkpointing": True}])
def test_accumulation_and_checkpointing_change_nothing_but_memory(change: dict[str, Any], tmp_path: Path) -> None:
    plain, other = make_world(), make_world()
    before = weights_of(plain.policy.model)
    recipe = replace(RECIPE, batch_size=8)
    plain.train(recipe, tmp_path / "a")
    other.train(replace(recipe, **change), tmp_path / "b")
    moved, apart = moved_and_apart(plain, other, before)
    assert moved > 1e-3
    assert apart < 0.02 * moved, "by rounding only"


@pytest.mark.slow
def test_adapters_learn_in_place_of_the_text_model_and_are_merged(tmp_path: Path) -> None:
    world, again = make_world(), make_world()
    before = weights_of(world.policy.model)
    curve = world.train(replace(RECIPE, lora_rank=2), tmp_path / "a")
    after = weights_of(world.policy.model)
    assert after.keys() == before.keys()
    learned = changed(world.policy.model, before)
    of_text = {name for name in learned if not name.startswith(REFINE_MODULES)}
    assert of_text == {name for name in before if name.startswith(TEXT_MODEL) and "_proj.weight" in name}
    for name in of_text:
        assert int(torch.linalg.matrix_rank(after[name] - before[name], atol=1e-6)) <= 2
    assert REFINE_MODULES[0] + ".3.weight" in learned
    torch.manual_seed(99)
    assert again.train(replace(RECIPE, lora_rank=2), tmp_path / "b")[0] == curve[0]
    assert all(torch.equal(value, after[name]) for name, value in weights_of(again.policy.model).items())


def test_adapters_begin_as_no_change() -> None:
    world = make_world()
    embeds = torch.randn(1, 5, 48, generator=torch.Generator().manual_seed(0))
    text_model = world.policy.model.model.language_model
    with torch.no_grad():
        before = text_model(inputs_embeds=embeds).last_hidden_state
        adapters = sft.lora.attach(world.policy.text_model, 4, seed=0)
        torch.testing.assert_close(text_model(inputs_embeds=embeds).last_hidden_state, before)
        adapters.merge()
        torch.testing.assert_close(world.policy.model.model.language_model(inputs_embeds=embeds)[0], before)


def test_what_learns_has_to_be_float32(tmp_path: Path) -> None:
    world = make_world()
    world.policy.model.bfloat16()
    with pytest.raises(ValueError, match="trained weights must be float32"):
        world.train(RECIPE, tmp_path)


@pytest.mark.slow
def test_a_training_without_progress_on_held_out_videos_stops_early(world: World, tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=6, lr=0.0, refine_lr=0.0, early_stop_patience=1, validation_steps=1)
    curve = world.train(replace(recipe, validation_share=0.4), tmp_path)
    losses = [point for point in curve if point.name == "eval_loss"]
    assert [point.step for point in losses] == [1, 2]
    assert losses[0].value == losses[1].value
    assert {point.step for point in curve} == {1, 2}


@pytest.mark.slow
def test_the_best_weights_are_kept_and_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 1.0, 2.0, 2.0])

    def evaluate(self: RefineSFTTrainer, *_: Any, **__: Any) -> dict[str, float]:
        found = {"eval_loss": next(losses)}
        self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    monkeypatch.setattr(RefineSFTTrainer, "evaluate", evaluate)
    recipe = replace(RECIPE, steps=2, schedule="constant", early_stop_patience=9, validation_steps=1)
    two, best = make_world(), make_world()
    monkeypatch.setattr(sft, "_held_out", lambda examples, _: examples[:2])
    losses = iter([3.0, 1.0])
    two.train(recipe, tmp_path / "a")
    losses = iter([3.0, 1.0, 2.0, 2.0])
    curve = best.train(replace(recipe, steps=9, early_stop_patience=2), tmp_path / "b")
    assert max(point.step for point in curve) == 4
    expected = weights_of(two.policy.model)
    assert all(torch.equal(value, expected[name]) for name, value in weights_of(best.policy.model).items())


def test_validation_holds_out_whole_videos_and_more_rows_move_none(world: World) -> None:
    recipe = replace(RECIPE, early_stop_patience=1, validation_share=0.4)
    held_out = {e.query_id for e in sft._held_out(world.data.examples, recipe)}
    assert 0 < len(held_out) < 8
    fewer = {e.query_id for e in sft._held_out(world.data.examples[:6], recipe)}
    assert fewer == held_out & {f"q{i}" for i in range(6)}
    twice = [replace(e, query_id=f"{e.query_id}b") for e in world.data.examples]
    both = {e.query_id for e in sft._held_out([*world.data.examples, *twice], recipe)}
    assert both == held_out | {f"{i}b" for i in held_out}
    with pytest.raises(ValueError, match=r"change sft\.validation_share"):
        sft._held_out(world.data.examples, replace(recipe, validation_share=0.0))


@pytest.mark.slow
def test_in_batch_positives_that_share_the_querys_text_are_no_negatives(world: World, tmp_path: Path) -> None:
    everything = frozenset(world.data.vectors)
    recipe = replace(RECIPE, in_batch_positives=True)
    world.data = replace(world.data, never={e.query_id: everything for e in world.data.examples})
    found = [p.value for p in world.train(recipe, tmp_path / "a") if p.name == "retrieval_loss"]
    assert found == [0.0]
    other = make_world()
    assert next(p.value for p in other.train(recipe, tmp_path / "b") if p.name == "retrieval_loss") > 0


def test_with_all_negatives_the_loss_is_over_the_corpus_without_videos_of_the_same_text(world: World) -> None:
    rows = [e for e in world.data.examples if e.refines]
    soft = torch.zeros(len(rows), 3, world.embedder.hidden_size, requires_grad=True)
    never = {rows[0].query_id: frozenset({rows[0].gt_video_id, "v6"})}
    recipe = replace(RECIPE, all_negatives=True, in_batch_positives=True)
    found = SearchLoss(world.embedder, world.data.vectors, never, recipe)(rows, soft, "0", ["v0"])
    queries = world.embedder.embed_queries([e.query for e in rows], list(soft))
    ids = sorted(world.data.vectors)
    logits = queries @ torch.stack([world.data.vectors[v] for v in ids]).T / recipe.temperature
    logits[0, ids.index("v6")] = -torch.inf
    right = torch.tensor([ids.index(e.gt_video_id) for e in rows])
    torch.testing.assert_close(found.losses, torch.nn.functional.cross_entropy(logits, right, reduction="none"))
    found.losses.sum().backward()
    assert soft.grad is not None
    assert soft.grad.abs().sum() > 0


@pytest.mark.parametrize("all_negatives", [False, True])
def test_the_right_video_is_no_negative_although_the_excluded_ones_do_not_name_it(
    world: World, all_negatives: bool
) -> None:
    rows = [e for e in world.data.examples if e.refines]
    soft = torch.zeros(len(rows), 3, world.embedder.hidden_size)
    recipe = replace(RECIPE, all_negatives=all_negatives, num_negatives=99)

    def losses(never: dict[str, frozenset[str]]) -> Tensor:
        return SearchLoss(world.embedder, world.data.vectors, never, recipe)(rows, soft, "0", []).losses

    others = {e.query_id: frozenset({"v6"}) - {e.gt_video_id} for e in rows}
    named = {e.query_id: others[e.query_id] | {e.gt_video_id} for e in rows}
    torch.testing.assert_close(losses(others), losses(named))


@pytest.mark.slow
def test_logs_say_how_near_refined_queries_are_and_how_many_rose(world: World, tmp_path: Path) -> None:
    rows = [e for e in world.data.examples if e.refines]
    search = SearchLoss(world.embedder, world.data.vectors, {}, RECIPE)
    facts = search(rows, torch.randn(len(rows), 3, world.embedder.hidden_size), "0", []).facts
    plain = world.embedder.embed_queries([e.query for e in rows])
    right = torch.stack([world.data.vectors[e.gt_video_id] for e in rows])
    assert float(facts["plain_similarity"]) == pytest.approx(float((plain * right).sum(-1).mean()), abs=1e-6)
    assert 0 <= float(facts["risen_share"] + facts["fallen_share"]) <= 1
    exact = search(rows, torch.zeros(len(rows), 0, world.embedder.hidden_size), "0", []).facts
    assert (float(exact["risen_share"]), float(exact["fallen_share"])) == (0.0, 0.0)
    assert set(facts) <= names(world.train(RECIPE, tmp_path))


def test_latents_that_start_among_words_have_their_scale_and_a_gradient_of_their_size(world: World) -> None:
    def first_gradient() -> tuple[Tensor, float]:
        rows = [e for e in world.data.examples if e.refines]
        videos = world.data.features.get([e.shown_video_id for e in rows])
        at = list(range(len(rows)))
        prompts, last = [e.prompt for e in rows], [1] * len(rows)
        _, latents = world.policy.teacher_forced(prompts, videos, last=last, refining=at, num_soft_tokens=3)
        soft = world.policy.model.append_input(latents)
        search = SearchLoss(world.embedder, world.data.vectors, {}, RECIPE)
        world.policy.model.zero_grad()
        search(rows, soft, "0", []).losses.mean().backward()
        weight = world.policy.model.refine_projector[3].weight
        assert weight.grad is not None
        return soft.detach(), float(weight.grad.norm())

    model, words = world.policy.model, world.embedder.word_embeddings
    for name, module in soft_query_modules(model.config.text_config.hidden_size, model.soft_query).items():
        model.get_submodule(name).load_state_dict(module.state_dict())
    soft, at_zero = first_gradient()
    assert float(soft.abs().max()) == 0
    assert start_among_words(model, model.get_input_embeddings().weight, words, seed=1)
    soft, among_words = first_gradient()
    assert 0.5 < float(soft.std() / words.std()) < 2
    assert at_zero > 1000 * among_words
    before = weights_of(model)
    assert not start_among_words(model, model.get_input_embeddings().weight, words, seed=2)
    assert changed(model, before) == set()


@pytest.mark.slow
def test_noise_moves_what_learns_by_rounding_and_leaves_the_tower(tmp_path: Path) -> None:
    first, second = make_world(), make_world()
    before = weights_of(first.policy.model)
    for world, noise in ((first, 0), (second, 3)):
        world.train(replace(RECIPE, noise=noise, lr=1e-9, refine_lr=1e-9), tmp_path / str(noise))
    ours, theirs = weights_of(first.policy.model), weights_of(second.policy.model)
    apart = {n: float(((theirs[n] - ours[n]) / before[n].abs().clamp(min=1e-3)).abs().max()) for n in before}
    assert all(gap == 0 for name, gap in apart.items() if ".visual." in name)
    assert 0 < apart["model.language_model.layers.0.mlp.up_proj.weight"] < 1e-5


def test_trackers_are_told_what_is_logged(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, set[str]]] = []

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            told.append((args.run_name, set(logs)))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Tracker)
    run = TrainingRun(tmp_path, trackers=("tensorboard",), name="toy/sft_checkpoint")
    train_sft(world.policy, world.embedder, world.data, RECIPE, run)
    assert told[0][0] == "toy/sft_checkpoint"
    assert {"text_loss", "retrieval_loss"} <= told[0][1]
    with pytest.raises(ValueError, match="crystal_ball"):
        train_sft(world.policy, world.embedder, world.data, RECIPE, replace(run, trackers=("crystal_ball",)))


def test_the_weight_of_the_retrieval_loss_rises_where_the_recipe_says_so() -> None:
    rising = SFTRecipe(retrieval_weight=0.8, retrieval_warmup_ratio=0.5)
    assert [sft.retrieval_weight(rising, step, 100) for step in (0, 25, 50, 99)] == [0.0, 0.4, 0.8, 0.8]
    assert sft.retrieval_weight(SFTRecipe(), 0, 100) == 0.3


@pytest.mark.parametrize("option", ["", "drop_above_positive", "drop_above_positive_when_refined"])
def test_negatives_are_judged_by_the_query_that_the_option_names(
    option: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judges: list[tuple[Tensor, Tensor | None]] = []

    def losses(queries: Tensor, *rest: Any, judged_by: Tensor | None = None, **options: Any) -> Tensor:
        judges.append((queries.detach(), judged_by))
        return retrieval_losses(queries, *rest, judged_by=judged_by, **options)

    monkeypatch.setattr(search_loss, "retrieval_losses", losses)
    world.train(replace(RECIPE, steps=1, batch_size=8, **{option: True} if option else {}), tmp_path)
    [(refined, judged_by)] = judges
    if option == "drop_above_positive":
        with torch.no_grad():
            plain = world.embedder.embed_queries([query_text(i) for i in range(8)])
        assert judged_by is not None
        nearest = (judged_by @ plain.T).max(dim=1).values
        assert torch.allclose(nearest, torch.ones(4), atol=1e-5)
        assert not torch.allclose(judged_by, refined)
    else:
        assert (judged_by is None) == (not option)
        assert judged_by is None or torch.equal(judged_by, refined)
