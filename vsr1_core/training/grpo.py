"""Stage 2: GRPO over whole search episodes, with the GRPOTrainer of TRL. Sampling and replay are in `rollout`.

This is a subclass and not a loop of our own, because the part of TRL (GRPOConfig, the sampler that repeats a prompt for
its group, generating once and splitting into micro-batches, accumulation, schedule, clipping, logging) needs only three
overrides of about ten lines: what a rollout is, what the loss is, and two learning rates. The reference model of TRL is
not used, because TRL loads it by name; ours is a frozen copy of the policy as it is at the start, without a second
vision tower.

Two differences from the authors' code follow the paper (docs/method.md, stage 2): whole episodes instead of one turn on
a stored video, and soft tokens that learn, through L_ret of the last refined query of the episode. With `accumulate`,
this query holds the latents of all turns, and gradients flow through all of them. One difference from TRL: a sequence
is an episode (`training.losses`). Several passes over one set of rollouts are not implemented.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from vsr1_core.models.feature_store import FeatureStore
from vsr1_core.models.protocols import DecodeSettings, Embedder, PolicyModel
from vsr1_core.recipes import GRPORecipe
from vsr1_core.search.episodes import EpisodeSettings, Searcher, Turn
from vsr1_core.search.index import VideoIndex
from vsr1_core.search.turn_rows import turn_row
from vsr1_core.training.attention_backend import training_attention
from vsr1_core.training.losses import PolicyLoss, policy_loss
from vsr1_core.training.processes import SharedSteps, share_of
from vsr1_core.training.rewards import RewardBreakdown
from vsr1_core.training.rollout import GRPOPrompt, Replay, Rollout, RolloutSampler, recorded_log_probs, replay
from vsr1_core.training.runs import CurvePoint, LogLines, Resumable, TrainingRun, shared_order, training_order
from vsr1_core.training.sft import curve_of, parameter_groups

NUM_TRACED_STEPS = 20


@dataclass(frozen=True)
class EpisodeTrace:
    """One sampled episode for people to read, in plain values."""

    step: int
    sample: int
    """Index of the episode in its group."""
    query_id: str
    query: str
    gt_video_id: str
    gt_start_s: float
    gt_end_s: float
    first_rank: int | None
    """Rank of the right video for the query's own text."""
    rank: int | None
    """Rank of the right video in the last ranking."""
    reward: RewardBreakdown
    advantage: float
    turns: tuple[Mapping[str, Any], ...]
    """One row of `search.turn_rows.turn_row` per turn."""


@dataclass(frozen=True)
class GRPOResult:
    """What a training of stage 2 logged. curve: losses and rewards of every step; episodes: the first group of each of
    about twenty steps."""

    curve: list[CurvePoint]
    episodes: list[EpisodeTrace]


def train_grpo(
    policy: PolicyModel,
    embedder: Embedder,
    prompts: Sequence[GRPOPrompt],
    index: VideoIndex,
    features: FeatureStore,
    vectors: Mapping[str, Tensor],
    durations_s: Mapping[str, float],
    never: Mapping[str, frozenset[str]],
    recipe: GRPORecipe,
    run: TrainingRun,
    micro_batch_size: int = 8,
) -> GRPOResult:
    """Stage 2: train `policy.model` in place on whole search episodes, with a frozen embedder. If the run's folder has
    the state of a stopped training, training continues from it.

    Args:
        policy: The policy to train.
        embedder: The frozen embedder that made `index` and `vectors`.
        prompts: The queries. If there are fewer than a step takes, every step uses all of them.
        index: The index that is searched.
        features: Vision features of the videos in the index.
        vectors: Video id -> unit vector [D] of each right video, and of each video that may be a negative.
        durations_s: Video id -> seconds, for every video in the index.
        never: Query id -> videos that must not be its negatives.
        recipe: What is trained, and how.
        run: Where the state is kept, and what is logged.
        micro_batch_size: Episodes in one backward pass. It changes memory; only `bnpo` gives another result.

    Raises:
        ValueError: There are no prompts, or the right video of a prompt has no vector.
    """
    _check_prompts(prompts, vectors)
    _freeze(policy, embedder)
    settings = EpisodeSettings(
        num_turns=recipe.num_turns,
        decode=DecodeSettings(recipe.max_new_tokens, recipe.temperature, policy.model.soft_query.num_soft_tokens),
    )
    device = next(policy.model.parameters()).device
    seed = recipe.seed + PartialState().process_index  # with one seed, all processes would draw the same samples
    sampler = RolloutSampler(
        searcher=Searcher(policy, embedder, index, features, durations_s, settings),
        recipe=recipe,
        vectors=vectors,
        never=never,
        generator=torch.Generator(device).manual_seed(seed),
        rng=random.Random(seed),
    )
    trainer = EpisodeGRPOTrainer(
        policy=policy,
        prompts=prompts,
        sampler=sampler,
        recipe=recipe,
        args=_arguments(recipe, run, min(recipe.queries_per_step, len(prompts)), micro_batch_size),
        callbacks=[LogLines(run.log, run.name, ("/mean",))],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.run(run)
    policy.model.eval()
    policy.model.__dict__.pop("forward", None)  # remove the wrapper of TRL and accelerate
    return GRPOResult(curve_of(trainer.state.log_history), trainer.traces)


def _check_prompts(prompts: Sequence[GRPOPrompt], vectors: Mapping[str, Tensor]) -> None:
    if not prompts:
        raise ValueError(
            "stage 2 has no prompts to train on, because grpo_prompts is empty; check that there is a split named train"
        )
    lost = sorted({p.gt_video_id for p in prompts if p.gt_video_id not in vectors})
    if lost:
        raise ValueError(
            f"{len(lost)} right videos have no vector, e.g. {', '.join(lost[:3])}; build video_embeddings and "
            "grpo_prompts again"
        )


def _freeze(policy: PolicyModel, embedder: Embedder) -> None:
    """Let the text model and P, R and A learn, and freeze both vision towers, the embedder and the unused gate."""
    policy.model.requires_grad_(True)
    policy.vision_tower.requires_grad_(False)
    policy.model.refine_gate.requires_grad_(False)
    embedder.model.requires_grad_(False)


def _arguments(recipe: GRPORecipe, run: TrainingRun, num_queries: int, micro_batch_size: int) -> GRPOConfig:
    num_episodes = share_of(num_queries, "queries") * recipe.group_size  # a group is scored in one process
    size = max(n for n in range(1, num_episodes + 1) if num_episodes % n == 0 and n <= max(1, micro_batch_size))
    return GRPOConfig(
        **run.arguments(logging_steps=1),
        max_steps=recipe.steps or -1,
        num_train_epochs=1,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=num_episodes // size,
        num_generations=recipe.group_size,
        max_completion_length=recipe.num_turns * recipe.max_new_tokens,
        temperature=recipe.temperature,
        learning_rate=recipe.lr,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        epsilon=recipe.clip,
        beta=0.0,  # so that TRL loads no reference model; see EpisodeGRPOTrainer.reference
        loss_type=recipe.loss_type,
        bf16=recipe.bf16,
        activation_checkpointing=recipe.gradient_checkpointing,
        seed=recipe.seed,
        shuffle_dataset=False,
    )


def _scored_with_the_rollouts(**_: Any) -> list[float]:
    """A stand-in for the reward function that TRL needs. RolloutSampler computes rewards, which need whole episodes."""
    raise NotImplementedError("episodes are scored in RolloutSampler.sample")


class EpisodeGRPOTrainer(Resumable, SharedSteps, GRPOTrainer):
    """GRPOTrainer whose completions are search episodes and whose loss also runs through their latents."""

    def __init__(
        self,
        *,
        policy: PolicyModel,
        prompts: Sequence[GRPOPrompt],
        sampler: RolloutSampler,
        recipe: GRPORecipe,
        **kwargs: Any,
    ) -> None:
        self.policy, self.prompts, self.sampler, self.recipe = policy, prompts, sampler, recipe
        self.reference = policy.frozen_copy() if recipe.beta else None  # for the KL term
        self.traces: list[EpisodeTrace] = []
        self.rng, self.generator = sampler.rng, sampler.generator
        queries_a_step = kwargs["args"].generation_batch_size // recipe.group_size
        order = training_order(len(prompts), queries_a_step, recipe.steps, recipe.seed)
        if recipe.matched_share:
            matched = [p.is_matched for p in prompts]
            order = shared_order(matched, recipe.matched_share, queries_a_step, recipe.steps, recipe.seed)
        super().__init__(
            model=policy.model,
            processing_class=policy.tokenizer,
            reward_funcs=_scored_with_the_rollouts,
            train_dataset=Dataset.from_dict({"prompt": order}),
            **kwargs,
        )

    def own_state(self) -> dict[str, Any]:
        return {**super().own_state(), "traces": [asdict(trace) for trace in self.traces]}

    def set_own_state(self, state: dict[str, Any]) -> None:
        super().set_own_state(state)
        self.traces[:] = [
            EpisodeTrace(**{**t, "reward": RewardBreakdown(**t["reward"]), "turns": tuple(t["turns"])})
            for t in state["traces"]
        ]

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW, with a learning rate of their own for the soft query modules."""
        groups = parameter_groups(self.policy, self.recipe.lr, self.recipe.refine_lr)
        self.optimizer = torch.optim.AdamW(groups, weight_decay=self.recipe.weight_decay)
        return self.optimizer

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Sample and score the episodes of a step. TRL shuffles the result and splits it into micro-batches."""
        self.policy.model.eval()
        with self.accelerator.autocast():
            rollouts = self.sampler.sample([self.prompts[row["prompt"]] for row in inputs])
        self.policy.model.train()
        self._note_rollouts(rollouts)
        return {
            "advantages": torch.tensor([r.advantage for r in rollouts], device=self.accelerator.device),
            "rollouts": rollouts,
            "num_tokens": self._mean_count(sum(r.num_sampled_tokens for r in rollouts)),
            "num_refined": self._mean_count(sum(r.is_refined for r in rollouts)),
        }

    def _mean_count(self, count: int) -> Tensor:
        """The mean of `count` over the processes. Gradients are averaged over the processes, so dividing by the mean
        count divides the total by the count of all processes."""
        return self.accelerator.reduce(torch.tensor(float(count), device=self.accelerator.device), "mean")

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
        """The share of a micro-batch in the loss of a step. TRL adds the shares up, so means are divided here."""
        rollouts: list[Rollout] = inputs["rollouts"]
        with self.accelerator.autocast(), self._attention():
            played = self._replay(self.policy, rollouts)
        policy = self._policy_loss(rollouts, played, inputs)
        self._note("kl", policy.kl)
        self._note("clip_fraction", policy.clip_fraction)
        self._note("entropy", played.entropy[played.mask].mean())
        is_shared = self.recipe.loss_type == "dapo"  # already divided by the whole step's tokens
        loss = policy.loss if is_shared else policy.loss / self.current_gradient_accumulation_steps
        self._note("policy_loss", policy.loss * (self.current_gradient_accumulation_steps if is_shared else 1))
        if not any(played.latents):
            return loss
        with self.accelerator.autocast(), self._attention():
            losses = self._refined_losses(rollouts, played)
        self._note("retrieval_loss", losses.mean())
        return loss + self.recipe.retrieval_weight * losses.sum() / inputs["num_refined"]

    def _attention(self) -> AbstractContextManager[None]:
        return training_attention(self.accelerator.device, self.recipe.gradient_checkpointing)

    def _replay(self, policy: PolicyModel, rollouts: list[Rollout], with_latents: bool = True) -> Replay:
        return replay(policy, rollouts, self.sampler.searcher.features, self.recipe.temperature, with_latents)

    def _policy_loss(self, rollouts: list[Rollout], played: Replay, inputs: dict[str, Any]) -> PolicyLoss:
        """The policy loss. Recorded log-probabilities are at temperature 1; at another temperature, those of the
        current policy are used as the old ones, which gives a ratio of 1 that has a gradient."""
        old = played.log_probs.detach()
        if self.recipe.temperature == 1:
            old = recorded_log_probs(rollouts).to(old)
        reference = None
        if self.reference is not None:
            with torch.no_grad(), self.accelerator.autocast():
                reference = self._replay(self.reference, rollouts, with_latents=False).log_probs
        return policy_loss(
            played.log_probs,
            old,
            inputs["advantages"],
            played.mask,
            reference_logprobs=reference,
            clip=self.recipe.clip,
            beta=self.recipe.beta,
            loss_type=self.recipe.loss_type,
            max_tokens=self.max_completion_length,
            num_tokens=float(inputs["num_tokens"]),
        )

    def _refined_losses(self, rollouts: list[Rollout], played: Replay) -> Tensor:
        refined = [(rollout, soft) for rollout, soft in zip(rollouts, played.latents, strict=True) if soft]
        return self.sampler.refined_losses([r for r, _ in refined], [soft for _, soft in refined])

    def _note(self, name: str, value: Tensor | float) -> None:
        self._metrics["train"][name].append(float(torch.as_tensor(value).detach()))

    def _note_rollouts(self, rollouts: list[Rollout]) -> None:
        """Log mean and spread of each reward and numbers about the episodes; every n-th step, keep its first group as
        traces."""
        for part in rollouts[0].reward.names:
            values = torch.tensor([r.reward[part] for r in rollouts])
            self._note(f"rewards/{part}/mean", values.mean())
            self._note(f"rewards/{part}/std", values.std())
        groups = torch.tensor([r.reward.total for r in rollouts]).view(-1, self.recipe.group_size)
        self._note("groups_of_equal_reward", (groups.std(dim=1) < 1e-6).float().mean())
        turns = [turn for r in rollouts for turn in r.episode.turns]
        self._note("num_turns", len(turns) / len(rollouts))
        self._note("num_text_tokens", sum(r.num_sampled_tokens for r in rollouts) / len(rollouts))
        self._note("share_at_token_limit", sum(self._is_cut(turn) for turn in turns) / len(turns))
        self._note("share_matched", sum(r.episode.is_matched for r in rollouts) / len(rollouts))
        self._note("share_final_rank_1", sum(r.episode.final_rank == 1 for r in rollouts) / len(rollouts))
        if self.state.global_step % max(1, self.state.max_steps // NUM_TRACED_STEPS) == 0:
            step, group = self.state.global_step, rollouts[: self.recipe.group_size]
            self.traces += [_trace(step, sample, rollout) for sample, rollout in enumerate(group)]

    def _is_cut(self, turn: Turn) -> bool:
        return turn.decoded.token_ids[-1] not in self.policy.end_tokens


def _trace(step: int, sample: int, rollout: Rollout) -> EpisodeTrace:
    prompt, episode = rollout.prompt, rollout.episode
    return EpisodeTrace(
        step=step,
        sample=sample,
        query_id=prompt.query_id,
        query=prompt.query,
        gt_video_id=prompt.gt_video_id,
        gt_start_s=prompt.start_s,
        gt_end_s=prompt.end_s,
        first_rank=episode.first_rank,
        rank=episode.final_rank,
        reward=rollout.reward,
        advantage=rollout.advantage,
        turns=tuple(turn_row(number, turn) for number, turn in enumerate(episode.turns, 1)),
    )
