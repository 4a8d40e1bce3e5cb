"""Stage 2 on random tiny models: what is an action, where gradients go, and what one step does."""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Qwen3VLConfig

from tests.core.tiny_models import query_text, random_video, tiny_embedder, tiny_policy
from vsr1_core.models.feature_store import FeatureStore
from vsr1_core.models.protocols import DecodeSettings
from vsr1_core.models.qwen3_vl.embedder import Qwen3VLEmbedder
from vsr1_core.models.qwen3_vl.inputs import VideoPatches
from vsr1_core.models.qwen3_vl.loaded import LoadedPolicy
from vsr1_core.models.qwen3_vl.tokenizer import end_tokens
from vsr1_core.reasoning.conversation import REFINE_TOKEN, Answer
from vsr1_core.recipes import GRPORecipe
from vsr1_core.reward_weights import RewardWeights
from vsr1_core.search import episodes as episodes_module
from vsr1_core.search.episodes import EpisodeSettings, Searcher
from vsr1_core.search.index import VideoIndex, build_index
from vsr1_core.training import rollout as rollout_module
from vsr1_core.training.grpo import (
    EpisodeGRPOTrainer,
    GRPOResult,
    MicroBatches,
    StepCounts,
    _arguments,
    _choose_what_learns,
    train_grpo,
)
from vsr1_core.training.rewards import REWARDS, EpisodeRecord, RewardBreakdown
from vsr1_core.training.rollout import (
    GRPOPrompt,
    Replay,
    Rollout,
    RolloutSampler,
    fed_tokens,
    recorded_log_probs,
    replay,
)
from vsr1_core.training.runs import TrainingRun

pytestmark = pytest.mark.slow

RECIPE = GRPORecipe(
    steps=1,
    queries_per_step=2,
    group_size=4,
    num_turns=2,
    max_new_tokens=10,
    lr=1e-3,
    refine_lr=1e-3,
    warmup_steps=0,
    weight_decay=0.0,
    num_negatives=4,
    bf16=False,
)


@dataclass
class World:
    policy: LoadedPolicy
    embedder: Qwen3VLEmbedder
    features: FeatureStore
    vectors: dict[str, Tensor]
    index: VideoIndex
    durations_s: dict[str, float]
    prompts: list[GRPOPrompt]

    def train(self, recipe: GRPORecipe, folder: Path, micro_batch_size: int = 8) -> GRPOResult:
        rest = (self.index, self.features, self.vectors, self.durations_s, {}, recipe, TrainingRun(folder))
        return train_grpo(self.policy, self.embedder, self.prompts, *rest, micro_batch_size=micro_batch_size)

    def sampler(self, recipe: GRPORecipe) -> RolloutSampler:
        settings = EpisodeSettings(
            recipe.num_turns, decode=DecodeSettings(recipe.max_new_tokens, recipe.temperature, 3)
        )
        searcher = Searcher(self.policy, self.embedder, self.index, self.features, self.durations_s, settings)
        generator = torch.Generator().manual_seed(recipe.seed)
        return RolloutSampler(searcher, recipe, self.vectors, {}, generator, random.Random(recipe.seed))

    def sample(self, recipe: GRPORecipe = RECIPE) -> list[Rollout]:
        return self.sampler(recipe).sample([p for p in self.prompts for _ in range(recipe.group_size)])


@pytest.fixture
def world() -> World:
    return make_world()


short_video = partial(random_video, max_pairs=2)


def make_world(
    video: Callable[[int, Qwen3VLConfig], VideoPatches] = short_video, config: Qwen3VLConfig | None = None
) -> World:
    """`video`: (number, config) -> one of the eight videos that are searched. `config`: of the policy."""
    policy, embedder = tiny_policy(num_soft_tokens=3, config=config), tiny_embedder()
    _let_texts_end(policy)
    videos = {f"v{i}": video(i, policy.model.config) for i in range(8)}
    with torch.no_grad():
        vectors = embedder.embed_features(FeatureStore(embedder.encoder, videos.__getitem__).get(sorted(videos)))
    return World(
        policy=policy,
        embedder=embedder,
        features=FeatureStore(policy.encoder, videos.__getitem__),
        vectors=dict(zip(sorted(videos), vectors, strict=True)),
        index=build_index(sorted(videos), vectors.numpy()),
        durations_s=dict.fromkeys(videos, 4.0),
        prompts=[GRPOPrompt(f"q{i}", query_text(i), f"v{i}", 0.0, 1.0, 4.0, ("v5", "v6")) for i in range(2)],
    )


def _let_texts_end(policy: LoadedPolicy) -> None:
    """Make the stop token and <REFINE> likely, so that short random texts end in every way there is."""
    embedding = policy.model.get_input_embeddings().weight
    stop, refine = policy.tokenizer.convert_tokens_to_ids(["<|im_end|>", REFINE_TOKEN])
    with torch.no_grad():
        embedding[refine] = embedding[stop] = embedding[stop] * 2.5


@pytest.fixture
def some_match(monkeypatch: pytest.MonkeyPatch) -> None:
    let_some_match(monkeypatch)


def let_some_match(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random texts hold no answers: let one in three count as a match of the first second."""

    def parse(text: str, last_s: float, first_s: float = 0.0) -> Answer:
        is_match = len(text.encode()) % 3 == 0
        span = (0.0, 1.0) if is_match else (None, None)
        return Answer("matched" if is_match else "not_matched", *span, text)

    monkeypatch.setattr(episodes_module, "parse_answer", parse)
    monkeypatch.setattr("vsr1_core.reasoning.conversation.parse_answer", parse)


def rig(monkeypatch: pytest.MonkeyPatch, totals: Sequence[float]) -> None:
    """Give the n-th episode of every group the n-th of `totals`, whatever it does."""
    turn = itertools.cycle(totals)

    def score(record: EpisodeRecord, weights: RewardWeights) -> RewardBreakdown:
        return RewardBreakdown(dict.fromkeys(REWARDS, 0.0), next(turn))

    monkeypatch.setattr(rollout_module, "score_episode", score)


def test_rewards_know_what_the_policy_was_asked_to_write(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[EpisodeRecord] = []
    asked = replace(world.policy.model.soft_query, system_prompt="Is it shown?")
    monkeypatch.setattr(type(world.policy.model), "soft_query", asked)

    def score(record: EpisodeRecord, weights: RewardWeights) -> RewardBreakdown:
        seen.append(record)
        return RewardBreakdown(dict.fromkeys(REWARDS, 0.0), 0.0)

    monkeypatch.setattr(rollout_module, "score_episode", score)
    world.sample(replace(RECIPE, num_turns=1, max_new_tokens=2))
    assert [record.system_prompt for record in seen] == ["Is it shown?"] * len(world.prompts) * RECIPE.group_size


def trainer_of(world: World, recipe: GRPORecipe, folder: Path) -> EpisodeGRPOTrainer:
    run = TrainingRun(folder)
    return EpisodeGRPOTrainer(
        policy=world.policy,
        prompts=world.prompts,
        sampler=world.sampler(recipe),
        recipe=recipe,
        adapters=_choose_what_learns(world.policy, world.embedder, recipe),
        micro_batches=MicroBatches(8, recipe.group_size, run),
        args=_arguments(recipe, run, len(world.prompts)),
    )


def counts_of(rollouts: list[Rollout]) -> StepCounts:
    refined = sum(r.is_refined for r in rollouts)
    return StepCounts(sum(r.num_sampled_tokens for r in rollouts), refined, len(rollouts))


def loss_of(trainer: EpisodeGRPOTrainer, rollouts: list[Rollout]) -> Tensor:
    """The loss of a step of these episodes, in one micro-batch."""
    return trainer.loss_of(rollouts, counts_of(rollouts))[0]


def replayed(world: World, rollouts: list[Rollout], temperature: float = 1.0) -> Replay:
    return replay(world.policy, rollouts, world.features, temperature)


def weights_of(world: World) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in world.policy.model.state_dict().items()}


def test_replay_gives_the_log_probs_and_latents_of_the_rollout(world: World, some_match: None) -> None:
    rollouts = world.sample(replace(RECIPE, group_size=24))
    turns = [turn for r in rollouts for turn in r.episode.turns]
    ends = end_tokens(world.policy.tokenizer)
    refine_id = world.policy.tokenizer.convert_tokens_to_ids(REFINE_TOKEN)
    kinds = {
        (t.decoded.latents is not None, "refine" if last == refine_id else "stop" if last in ends else "limit")
        for t in turns
        for last in t.decoded.token_ids[-1:]
    }
    assert kinds == {(refined, end) for refined in (True, False) for end in ("refine", "stop", "limit")}
    with torch.no_grad():
        played = replayed(world, rollouts)
    torch.testing.assert_close(
        played.log_probs[played.mask], recorded_log_probs(rollouts)[played.mask], atol=1e-4, rtol=0
    )
    for rollout, latents in zip(rollouts, played.latents, strict=True):
        assert len(latents) == len(rollout.episode.latents)
        for again, sampled in zip(latents, rollout.episode.latents, strict=True):
            torch.testing.assert_close(again, sampled, atol=1e-4, rtol=1e-4)


def test_every_sampled_token_is_an_action_and_a_forced_refine_is_none(world: World, some_match: None) -> None:
    rollouts = world.sample(replace(RECIPE, group_size=8))
    with torch.no_grad():
        played = replayed(world, rollouts)
    assert played.mask.sum(1).tolist() == [sum(len(t.decoded.token_ids) for t in r.episode.turns) for r in rollouts]
    refine_id = world.policy.tokenizer.convert_tokens_to_ids(REFINE_TOKEN)
    forced = [
        turn
        for r in rollouts
        for turn in r.episode.turns
        if turn.decoded.latents is not None and refine_id not in turn.decoded.token_ids
    ]
    assert forced
    for turn in forced:
        assert fed_tokens(turn, world.policy)[-1] == refine_id
        assert len(turn.decoded.log_probs) == len(turn.decoded.token_ids)


def test_a_group_shares_its_negatives_and_never_the_right_video(world: World) -> None:
    rollouts = world.sample()
    for start in range(0, len(rollouts), RECIPE.group_size):
        group = rollouts[start : start + RECIPE.group_size]
        right = world.vectors[group[0].prompt.gt_video_id]
        assert all(torch.equal(r.negatives, group[0].negatives) for r in group)
        assert not (group[0].negatives == right).all(-1).any()
        assert len(group[0].negatives) == RECIPE.num_negatives
        assert abs(sum(r.advantage for r in group)) < 1e-2


def test_reward_is_that_of_the_last_query_vector(world: World) -> None:
    for rollout in world.sample():
        vector = rollout.episode.final_vector
        assert vector is not None
        others = torch.stack([world.vectors[rollout.prompt.gt_video_id], *rollout.negatives])
        expected = (others @ vector / RECIPE.retrieval_temperature).softmax(0)[0]
        assert rollout.reward["retrieval"] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("bf16", [False, True])
def test_gradients_reach_text_and_refinement_but_no_frozen_weight(
    world: World, some_match: None, tmp_path: Path, bf16: bool
) -> None:
    trainer = trainer_of(world, replace(RECIPE, bf16=bf16), tmp_path)
    loss_of(trainer, world.sample()).backward()
    model = world.policy.model
    for module in (model.refine_projector, model.refine_latent_input_projector, model.refine_append_input_projector):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
    text = list(model.model.language_model.named_parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for _, p in text)
    frozen = [*model.model.visual.parameters(), *model.refine_gate.parameters(), *world.embedder.model.parameters()]
    assert trainer.reference is not None
    assert all(p.grad is None for p in [*frozen, *trainer.reference.model.parameters()])


@pytest.mark.parametrize("accumulate", [True, False])
def test_the_last_query_trains_the_latents_it_is_made_of(world: World, accumulate: bool) -> None:
    world.policy.model.config.soft_query["accumulate"] = accumulate
    rollout = next(r for r in world.sample() if len(r.episode.latents) == 2)
    soft = [latents.clone().requires_grad_() for latents in rollout.episode.latents]
    world.sampler(RECIPE).refined_losses([rollout], [soft]).sum().backward()
    assert soft[1].grad is not None
    assert soft[1].grad.abs().sum() > 0
    assert (soft[0].grad is not None and bool(soft[0].grad.abs().sum() > 0)) == accumulate


def test_refined_loss_is_the_one_that_was_rewarded(world: World) -> None:
    rollouts = world.sample()
    with torch.no_grad():
        losses = world.sampler(RECIPE).refined_losses(rollouts, replayed(world, rollouts).latents)
    rewarded = torch.tensor([r.reward["retrieval"] for r in rollouts])
    torch.testing.assert_close(torch.exp(-losses), rewarded, atol=1e-4, rtol=0)


def test_equal_rewards_leave_the_weights_alone(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rig(monkeypatch, [1.0])
    before = weights_of(world)
    result = world.train(replace(RECIPE, beta=0.0, retrieval_weight=0.0), tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in weights_of(world).items())
    assert {p.value for p in result.curve if p.name == "groups_of_equal_reward"} == {1.0}


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_one_step_makes_the_rewarded_episodes_likelier(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, temperature: float
) -> None:
    rig(monkeypatch, [1.0, 0.0, 0.0, 0.0])
    recipe = replace(RECIPE, temperature=temperature, beta=0.0, retrieval_weight=0.0, lr=1e-4)
    world.prompts = world.prompts[:1]
    rollouts = world.sample(recipe)
    with torch.no_grad():
        before = replayed(world, rollouts).log_probs.sum(1)
    trace = world.train(recipe, tmp_path).episodes[-1]
    assert trace.turns[0]["text"] == rollouts[-1].episode.turns[0].decoded.text  # one seed: the same episodes
    with torch.no_grad():
        change = replayed(world, rollouts).log_probs.sum(1) - before
    is_rewarded = torch.tensor([r.reward.total for r in rollouts]) == 1
    assert (change[is_rewarded] > 0).all()
    assert change[is_rewarded].min() > change[~is_rewarded].max()


def test_loss_equals_the_one_worked_out_by_hand(world: World, some_match: None, tmp_path: Path) -> None:
    recipe = replace(RECIPE, beta=0.5, clip=0.1)
    trainer = trainer_of(world, recipe, tmp_path)
    rollouts = world.sample(recipe)
    assert trainer.reference is not None
    with torch.no_grad():
        for parameter in world.policy.model.model.language_model.layers.parameters():
            parameter.mul_(1.03)  # away from the policy that sampled and from the reference
        now = replayed(world, rollouts)
        reference = replay(trainer.reference, rollouts, world.features, 1.0).log_probs
        found = loss_of(trainer, rollouts)
        refined = [i for i, soft in enumerate(now.latents) if soft]
        search = world.sampler(recipe).refined_losses([rollouts[i] for i in refined], [now.latents[i] for i in refined])
    expected, num_clipped = 0.0, 0
    for row, rollout in enumerate(rollouts):
        old = [value for turn in rollout.episode.turns for value in turn.decoded.log_probs]
        of_tokens = []
        for column, old_value in enumerate(old):
            value, anchor = float(now.log_probs[row, column]), float(reference[row, column])
            ratio = math.exp(value - old_value)
            clipped = min(max(ratio, 0.9), 1.1)
            num_clipped += ratio != clipped
            gain = min(ratio * rollout.advantage, clipped * rollout.advantage)
            of_tokens.append(-gain + 0.5 * (math.exp(anchor - value) - (anchor - value) - 1))
        expected += sum(of_tokens) / len(of_tokens) / len(rollouts)
    assert num_clipped > 0
    assert 0 < len(refined) < len(rollouts)
    assert float(found) == pytest.approx(expected + 0.3 * float(search.mean()), rel=1e-4)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_micro_batches_and_checkpointing_change_nothing(
    world: World, some_match: None, tmp_path: Path, loss_type: str
) -> None:
    recipe = replace(RECIPE, loss_type=loss_type)
    grads = []
    for size, is_checkpointed in ((8, False), (2, True)):
        copied = copy.deepcopy(world)
        curve = copied.train(replace(recipe, gradient_checkpointing=is_checkpointed), tmp_path, size).curve
        grads.append([p.value for p in curve if p.name in ("grad_norm", "loss")])
    assert len(grads[0]) == 2
    assert grads[0] == pytest.approx(grads[1], rel=1e-3)


def test_a_seed_gives_the_same_training_twice(world: World, tmp_path: Path) -> None:
    again = copy.deepcopy(world)
    recipe = replace(RECIPE, steps=2, queries_per_step=1)
    first, second = world.train(recipe, tmp_path / "a"), again.train(recipe, tmp_path / "b")
    assert [p for p in first.curve if "time" not in p.name] == [p for p in second.curve if "time" not in p.name]
    assert first.episodes == second.episodes
    assert all(torch.equal(value, weights_of(again)[name]) for name, value in weights_of(world).items())
    other = copy.deepcopy(again).train(replace(recipe, seed=1), tmp_path / "c")
    assert other.episodes != first.episodes


def test_every_reward_is_logged_apart_and_episodes_can_be_read(world: World, tmp_path: Path) -> None:
    result = world.train(replace(RECIPE, steps=2, queries_per_step=1, bf16=True), tmp_path)
    by_name = {name: [p for p in result.curve if p.name == name] for name in {p.name for p in result.curve}}
    for part in ("format", "verification", "retrieval", "grounding", "total"):
        for kind in ("mean", "std"):
            assert [p.step for p in by_name[f"rewards/{part}/{kind}"]] == [1, 2]
    for name in ("policy_loss", "retrieval_loss", "kl", "entropy", "clip_fraction", "grad_norm", "num_turns"):
        assert all(math.isfinite(p.value) for p in by_name[name]), name
    assert len(result.episodes) == 2 * RECIPE.group_size
    trace = result.episodes[0]
    assert trace.query in {p.query for p in world.prompts}
    assert [turn["turn"] for turn in trace.turns] == list(range(1, RECIPE.num_turns + 1))
    assert (trace.turns[0]["rank"], trace.turns[0]["num_text_tokens"] > 0) == (trace.first_rank, True)
    assert [t.sample for t in result.episodes] == 2 * list(range(RECIPE.group_size))
    weighted = sum(weight * trace.reward[name] for name, weight in RECIPE.rewards.items())
    assert trace.reward.total == pytest.approx(weighted)
