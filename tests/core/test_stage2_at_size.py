"""What lets stage 2 run at size changes nothing but rounding: prompts that are read once, text that is not replayed,
micro-batches, adapters in place of a reference model, AdamW in 8 bits, and text by vLLM."""

from __future__ import annotations

import copy
import gc
import importlib.util
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.core.fake_vllm import LearningFakeLLM
from tests.core.test_grpo import (
    RECIPE,
    World,
    counts_of,
    let_some_match,
    loss_of,
    make_world,
    replayed,
    rig,
    trainer_of,
    weights_of,
)
from tests.core.test_packed import num_layers
from tests.core.unshared import gradients, largest_difference, unshared_replay
from vsr1_core.models.qwen3_vl.loaded import LoadedPolicy
from vsr1_core.models.qwen3_vl.vllm_writer import VLLMWriter
from vsr1_core.training import lora, optimizers
from vsr1_core.training import rollout as rollout_module
from vsr1_core.training.grpo import EpisodeGRPOTrainer
from vsr1_core.training.losses import group_advantages
from vsr1_core.training.rollout import Rollout, recorded_log_probs, replay

EXACT = 1e-5
THREE_TURNS = replace(RECIPE, group_size=8, num_turns=3)


@pytest.fixture
def some_match(monkeypatch: pytest.MonkeyPatch) -> None:
    let_some_match(monkeypatch)


def gradients_of(trainer: EpisodeGRPOTrainer, rollouts: list[Rollout]) -> dict[str, Tensor]:
    """The gradients of a whole step."""
    trainer.model.zero_grad()
    assert trainer._differentiated(rollouts, counts_of(rollouts)) is not None
    found = {name: p.grad.clone() for name, p in trainer.policy.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("seed_hidden", "is_checkpointed"), [("post_norm", False), ("pre_norm", True)])
def test_prompts_that_are_read_once_give_the_gradients_of_whole_rows(
    some_match: None, seed_hidden: str, is_checkpointed: bool, tmp_path: Path
) -> None:
    world = make_world()
    world.policy.model.config.soft_query["seed_hidden"] = seed_hidden
    trainer_of(world, THREE_TURNS, tmp_path)
    rollouts = world.sample(THREE_TURNS)
    assert {len(r.episode.turns) for r in rollouts} == {1, 2, 3}
    world.policy.model.train()
    if is_checkpointed:
        world.policy.model.activation_checkpointing_enable()
    ours, plain = replayed(world, rollouts), unshared_replay(world.policy, rollouts, world.features)
    assert torch.equal(ours.mask, plain.mask)
    torch.testing.assert_close(ours.log_probs, plain.log_probs, atol=EXACT, rtol=0)
    torch.testing.assert_close(ours.entropy, plain.entropy, atol=EXACT, rtol=0)
    for one, other in zip(ours.latents, plain.latents, strict=True):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, atol=EXACT, rtol=EXACT)
    of_ours, of_plain = gradients(world.policy, ours), gradients(world.policy, plain)
    assert of_plain["model.language_model.layers.0.self_attn.k_proj.weight"].abs().max() > 0.1
    assert largest_difference(of_ours, of_plain) < EXACT


def test_a_prompt_is_read_once_for_all_its_answers(some_match: None, monkeypatch: pytest.MonkeyPatch) -> None:
    world, read = make_world(), []
    rollouts = world.sample(THREE_TURNS)
    run = world.policy.model.model.language_model.forward
    monkeypatch.setattr(
        world.policy.model.model.language_model,
        "forward",
        lambda **kwargs: read.append(len(kwargs["inputs_embeds"])) or run(**kwargs),
    )
    replayed(world, rollouts)
    turns = [turn for r in rollouts for turn in r.episode.turns]
    different = {(turn.video_id, turn.prompt.token_ids.numpy().tobytes()) for turn in turns}
    assert read == [len(different)]
    assert len(different) < len(turns) / 2


def test_a_few_logits_at_a_time_give_the_same_gradients(some_match: None, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world()
    rollouts = world.sample()
    whole = gradients(world.policy, replayed(world, rollouts))
    monkeypatch.setattr(rollout_module, "MAX_LOGITS", 3 * world.policy.model.lm_head.weight.shape[0])
    assert largest_difference(gradients(world.policy, replayed(world, rollouts)), whole) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo"])
def test_without_kl_groups_of_equal_rewards_are_replayed_only_for_their_latents(
    some_match: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loss_type: Any
) -> None:
    world = make_world()
    rig(monkeypatch, [0.7] * 4 + [0.0, 1.0, 0.3, 0.7])  # the second query's episodes differ
    recipe = replace(RECIPE, beta=0.0, loss_type=loss_type)
    trainer = trainer_of(world, recipe, tmp_path)
    rollouts = world.sample(recipe)
    equal, different = rollouts[:4], rollouts[4:]
    assert any(not r.is_refined for r in equal)
    found, seen = gradients_of(trainer, rollouts), []
    with monkeypatch.context() as patch:
        answer = rollout_module._answered
        patch.setattr(
            rollout_module, "_answered", lambda policy, turns, *rest: seen.extend(turns) or answer(policy, turns, *rest)
        )
        replay(world.policy, equal, world.features, 1.0, has_text=[False] * 4)
    refined = [turn for r in equal for turn in r.episode.turns if turn.decoded.latents is not None]
    assert seen == refined
    assert 0 < len(refined) < sum(len(r.episode.turns) for r in equal)
    played = trainer._replay(world.policy, rollouts, has_text=[r.advantage != 0 for r in rollouts])
    assert played.entropy[:4].isnan().any(dim=1).all()
    assert not played.entropy[4:].isnan().any()
    assert not torch.equal(torch.tensor([r.advantage for r in different]), torch.zeros(4))
    monkeypatch.setattr(
        trainer,
        "_replay",
        lambda policy, rows, has_text=None, **rest: replay(policy, rows, world.features, 1.0, **rest),
    )
    assert largest_difference(found, gradients_of(trainer, rollouts)) < EXACT


def test_equal_rewards_have_no_advantage_whatever_their_mean_rounds_to() -> None:
    rewards = torch.tensor([0.1 + 0.2] * 7 + [0.7] * 7)
    assert rewards[:7].mean() != rewards[0] or rewards[7:].mean() != rewards[7]
    assert group_advantages(rewards, 7).tolist() == [0.0] * 14


def test_a_micro_batch_that_went_backward_keeps_nothing_of_its_latents(
    some_match: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world, kept = make_world(), list[int]()
    trainer = trainer_of(world, RECIPE, tmp_path)
    trainer.micro_batches.size = 2
    rollouts, loss_of = world.sample(RECIPE), trainer.loss_of
    gc.collect()
    before = num_layers()

    def noted(*args: Any) -> Any:
        kept.append(num_layers() - before)
        found = loss_of(*args)
        kept.append(num_layers() - before)
        return found

    monkeypatch.setattr(trainer, "loss_of", noted)
    gradients_of(trainer, rollouts)
    assert kept[::2] == [0, 0, 0, 0]
    assert max(kept[1::2]) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
    ids=["GPU", "CPU"],
)
def test_memory_that_does_not_suffice_halves_the_micro_batch_and_changes_nothing(
    some_match: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    world, lines = make_world(), []
    trainer = trainer_of(world, RECIPE, tmp_path)
    trainer.micro_batches.run = replace(trainer.micro_batches.run, log=lines.append)
    rollouts = world.sample()
    inputs = {"rollouts": [rollouts], "num_tokens": torch.tensor([counts_of(rollouts).tokens])}
    inputs["num_refined"] = torch.tensor(counts_of(rollouts).refined)
    whole, compute, room = gradients_of(trainer, rollouts), trainer.loss_of, [2]

    def loss(some: Sequence[Rollout], *args: Any) -> Any:
        if len(some) > room[0] or (len(some) > 1 and some[-1] is rollouts[-1]):
            raise error
        return compute(some, *args)

    monkeypatch.setattr(trainer, "loss_of", loss)
    total = trainer._compute_loss(trainer.model, inputs)
    total.backward()  # as the Trainer does
    found = {name: p.grad for name, p in world.policy.model.named_parameters() if p.grad is not None}
    assert largest_difference(found, whole) < EXACT
    assert lines[-1] == "training: out of memory; goes on with 1 episodes in a backward pass"
    assert len(lines) == 3
    trainer.micro_batches.size, room[0] = 8, 0
    with pytest.raises(RuntimeError, match=r"a single episode does not fit .* lower frames\.max_frames"):
        trainer._compute_loss(trainer.model, inputs)


def test_another_error_is_not_taken_for_a_lack_of_memory(
    some_match: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = make_world()
    trainer = trainer_of(world, RECIPE, tmp_path)
    rollouts = world.sample()

    def loss(*_: Any) -> Any:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(trainer, "loss_of", loss)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trainer._differentiated(rollouts, counts_of(rollouts))


@pytest.mark.slow
def test_without_adapters_the_policy_is_its_own_reference(some_match: None, tmp_path: Path) -> None:
    world = make_world()
    frozen, rollouts = world.policy.frozen_copy(), world.sample()
    trainer = trainer_of(world, replace(RECIPE, lora_rank=2), tmp_path)
    assert trainer.reference is None
    learning = {name for name, p in world.policy.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or name.startswith("refine_") for name in learning)
    with torch.no_grad():
        for name, parameter in world.policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        expected = replay(frozen, rollouts, world.features, 1.0, with_latents=False).log_probs
        found = trainer._reference_log_probs(rollouts)
        now = replayed(world, rollouts).log_probs
    assert found is not None
    torch.testing.assert_close(found, expected, atol=EXACT, rtol=0)
    assert (now - expected).abs().max() > 0.1, "the adapters are on again"
    loss_of(trainer, rollouts).backward()
    assert all(p.grad is not None for name, p in world.policy.model.named_parameters() if "lora_" in name)


@pytest.mark.slow
def test_adapters_learn_in_stage_2_and_are_merged(world_trained_with_adapters: tuple[World, dict[str, Tensor]]) -> None:
    world, before = world_trained_with_adapters
    after = weights_of(world)
    assert after.keys() == before.keys()
    learned = {name for name in before if not torch.equal(after[name], before[name])}
    of_text = {name for name in learned if not name.startswith("refine_")}
    assert of_text == {name for name in before if "language_model" in name and "_proj.weight" in name}
    assert max(int(torch.linalg.matrix_rank(after[n] - before[n], atol=1e-6)) for n in of_text) == 2


@pytest.fixture(scope="module")
def world_trained_with_adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, dict[str, Tensor]]:
    world = make_world()
    before = weights_of(world)
    recipe = replace(RECIPE, lora_rank=2, steps=2, queries_per_step=1)
    curve = world.train(recipe, tmp_path_factory.mktemp("adapters")).curve
    [first, second] = [p.value for p in curve if p.name == "kl"]
    assert first == pytest.approx(0.0, abs=1e-9)
    assert second > 1e-9
    return world, before


@pytest.mark.slow
def test_adapters_learn_beside_a_base_in_bf16(some_match: None, tmp_path: Path) -> None:
    world = make_world()
    world.policy.model.bfloat16()
    for parameter in world.policy.model.refine_parameters:
        parameter.data = parameter.data.float()
    before = weights_of(world)
    curve = world.train(replace(RECIPE, lora_rank=2, steps=2, queries_per_step=1, lr=0.1, bf16=True), tmp_path).curve
    assert all(math.isfinite(p.value) for p in curve)
    after = weights_of(world)
    assert {name: t.dtype for name, t in after.items()} == {name: t.dtype for name, t in before.items()}
    learned = {name for name in before if not torch.equal(after[name], before[name])}
    assert {name for name in learned if "_proj.weight" in name}
    assert {name for name in learned if name.startswith("refine_append_input_projector")}
    assert "model.language_model.embed_tokens.weight" not in learned


def test_weights_are_handed_over_as_they_will_be_merged() -> None:
    world = make_world()
    adapters = lora.attach(world.policy.text_model, 2, seed=0)
    for name, parameter in world.policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    handed = {name: tensor.clone() for name, tensor in lora.merged_weights(world.policy.model)}
    adapters.merge()
    merged = dict(world.policy.model.named_parameters())
    assert set(handed) == set(merged)
    for name, tensor in handed.items():
        torch.testing.assert_close(tensor, merged[name].data)


def test_without_bitsandbytes_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[eight-bit\]', or set grpo\.optimizer to adamw"):
        trainer_of(make_world(), replace(RECIPE, optimizer="adamw_8bit"), tmp_path).create_optimizer()


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes (the extra eight-bit)")
def test_adamw_in_8_bits_goes_where_adamw_goes() -> None:
    model = torch.nn.ModuleDict({"words": torch.nn.Embedding(512, 16), "layer": torch.nn.Linear(128, 128)})
    other = copy.deepcopy(model)
    before = model["layer"].weight.detach().clone()
    steppers = [
        optimizers.adamw([{"params": list(m.parameters()), "lr": 1e-2}], 0.01, kind, m)
        for kind, m in (("adamw_8bit", model), ("adamw", other))
    ]
    for seed in range(5):
        for stepper, m in zip(steppers, (model, other), strict=True):
            generator = torch.Generator().manual_seed(seed)
            for parameter in m.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            stepper.step()
    kinds = {name: steppers[0].state[p]["state1"].dtype for name, p in model.named_parameters()}
    assert kinds == {"words.weight": torch.float32, "layer.weight": torch.uint8, "layer.bias": torch.float32}
    moved = (other["layer"].weight - before).norm()
    assert (model["layer"].weight - other["layer"].weight).norm() < 0.05 * moved
    torch.testing.assert_close(model["words"].weight, other["words"].weight)


def with_vllm(world: World) -> LearningFakeLLM:
    """Let a stand-in for vLLM, which has weights of its own, write what `world`'s policy writes."""
    llm = LearningFakeLLM(world.policy)
    world.policy = world.policy.with_writer(VLLMWriter(llm, dict, world.policy.tokenizer))
    return llm


def watch_log_probs(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For each step of a training from now on, by how much the log-probabilities of the rollouts differ at most from
    those of the policy's own weights."""
    apart: list[float] = []
    compute = EpisodeGRPOTrainer.loss_of

    def watched(self: EpisodeGRPOTrainer, rollouts: Sequence[Rollout], counts: Any) -> Any:
        with torch.no_grad():
            played = self._replay(self.policy, rollouts)
        apart.append(float((played.log_probs - recorded_log_probs(rollouts))[played.mask].abs().max()))
        return compute(self, rollouts, counts)

    monkeypatch.setattr(EpisodeGRPOTrainer, "loss_of", watched)
    return apart


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_vllm_samples_from_the_weights_of_every_step(
    some_match: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lora_rank: int
) -> None:
    world, apart = make_world(), watch_log_probs(monkeypatch)
    llm = with_vllm(world)
    recipe = replace(RECIPE, steps=3, queries_per_step=1, lora_rank=lora_rank, lr=1e-2)
    untrained = copy.deepcopy(world.policy.model)
    curve = world.train(recipe, tmp_path / "a").curve
    assert len(apart) == 3
    assert max(apart) < EXACT
    assert {p.value for p in curve if p.name == "clip_fraction"} == {0.0}
    assert not any(name.startswith("refine_") for name in llm.taken)

    apart.clear()
    world.policy = replace(world.policy, model=untrained)
    with_vllm(world)
    monkeypatch.setattr(LearningFakeLLM, "reload_weights", lambda self, weights_iterator: None)
    world.train(recipe, tmp_path / "b")
    assert apart[0] < EXACT
    assert min(apart[1:]) > 1e-3, "with the weights of the start, it samples from another policy"


@pytest.mark.slow
def test_vllm_writes_greedily_what_the_policy_that_learned_writes(some_match: None) -> None:
    world = make_world()
    llm = with_vllm(world)
    greedy = replace(RECIPE, temperature=0.0)
    loop = LoadedPolicy(world.policy.model, world.policy.tokenizer)

    def texts(policy: LoadedPolicy) -> list[list[int]]:
        rollouts = replace(world, policy=policy).sample(greedy)
        return [turn.decoded.token_ids for r in rollouts for turn in r.episode.turns]

    before = texts(loop)
    assert texts(world.policy) == before
    with torch.no_grad():
        for parameter in world.policy.model.model.language_model.layers.parameters():
            parameter.mul_(1.3)
    learned = texts(loop)
    assert learned != before
    assert texts(world.policy) == before, "vLLM still has the old weights"
    world.policy.writer.take_weights(lora.merged_weights(world.policy.model))
    assert texts(world.policy) == learned
    assert not any(name.startswith("refine_") for name in llm.taken)
