"""Stage 2: GRPO over whole search episodes, on TRL's GRPOTrainer. Sampling and replay are `rollout`.

Why a subclass and not a loop of our own: TRL's part (GRPOConfig, the sampler that repeats a prompt for its group,
generating once and splitting into micro-batches, accumulation, schedule, clipping, logging) needs three overrides of
about ten lines: what a rollout is, what the loss is, and two learning rates. TRL's reference model is not used: it is
loaded by name, ours is a frozen copy of the policy as it stands, without a second vision tower.

Differences from the authors' code, in which we follow the paper (docs/method.md, stage 2): whole episodes instead of
one turn on a stored video, and the soft tokens learn, through L_ret of the episode's last refined query. With
`accumulate` that query holds the latents of all turns, and gradients flow through all of them. Difference from TRL: a
sequence is an episode (`training.losses`).
Left out: several passes over one set of rollouts.
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
from vsr1_core.search.episodes import EpisodeSettings, Searcher, Turn, turn_row
from vsr1_core.search.index import VideoIndex
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
    """One sampled episode to read, in plain values. sample: its place in its group; ranks: of the right video;
    turns: what `search.episodes.turn_row` says of each."""

    step: int
    sample: int
    query_id: str
    query: str
    gt_video_id: str
    gt_start_s: float
    gt_end_s: float
    first_rank: int | None
    rank: int | None
    reward: RewardBreakdown
    advantage: float
    turns: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class GRPOResult:
    """curve: losses and rewards of every step; episodes: the first group of about twenty steps."""

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
    """Stage 2: train `policy.model` in place by whole search episodes, the embedder frozen. It goes on from the state
    kept in the run's folder if there is one.

    `vectors`: video id -> unit vector of each video that may be a negative; `never`: query id -> videos that are no
    negatives of it; `durations_s`: of every video in the index; `micro_batch_size`: episodes a backward pass (memory;
    only `bnpo` gives another result).
    With fewer prompts than queries per step, each step takes all of them.

    Raises ValueError when there are no prompts, or a prompt's right video has no vector.
    """
    _check_prompts(prompts, vectors)
    _freeze(policy, embedder)
    settings = EpisodeSettings(
        num_turns=recipe.num_turns,
        decode=DecodeSettings(recipe.max_new_tokens, recipe.temperature, policy.model.soft_query.num_soft_tokens),
    )
    device = next(policy.model.parameters()).device
    seed = recipe.seed + PartialState().process_index  # or all processes would draw the same samples
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
    policy.model.__dict__.pop("forward", None)  # TRL and accelerate wrapped it; the policy leaves as it came
    return GRPOResult(curve_of(trainer.state.log_history), trainer.traces)


def _check_prompts(prompts: Sequence[GRPOPrompt], vectors: Mapping[str, Tensor]) -> None:
    if not prompts:
        raise ValueError("stage 2 has no prompts to train on: grpo_prompts is empty; is there a split named train?")
    lost = sorted({p.gt_video_id for p in prompts if p.gt_video_id not in vectors})
    if lost:
        raise ValueError(
            f"{len(lost)} right videos have no vector, e.g. {', '.join(lost[:3])}: build video_embeddings and "
            "grpo_prompts again"
        )


def _freeze(policy: PolicyModel, embedder: Embedder) -> None:
    """The text model and P, R, A learn; both vision towers, the embedder and the unused gate do not."""
    policy.model.requires_grad_(True)
    policy.vision_tower.requires_grad_(False)
    policy.model.refine_gate.requires_grad_(False)
    embedder.model.requires_grad_(False)


def _arguments(recipe: GRPORecipe, run: TrainingRun, num_queries: int, micro_batch_size: int) -> GRPOConfig:
    num_episodes = share_of(num_queries, "queries") * recipe.group_size  # whole groups: a group is scored in one place
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
        beta=0.0,  # no reference model by name; see EpisodeGRPOTrainer.reference
        loss_type=recipe.loss_type,
        bf16=recipe.bf16,
        activation_checkpointing=recipe.gradient_checkpointing,
        seed=recipe.seed,
        shuffle_dataset=False,
    )


def _scored_with_the_rollouts(**_: Any) -> list[float]:
    """TRL asks for a reward function; ours needs the whole episode and is called in RolloutSampler."""
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
        self.reference = policy.frozen_copy() if recipe.beta else None  # of the KL term
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
        """AdamW with the refine modules' own learning rate."""
        groups = parameter_groups(self.policy, self.recipe.lr, self.recipe.refine_lr)
        self.optimizer = torch.optim.AdamW(groups, weight_decay=self.recipe.weight_decay)
        return self.optimizer

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """The step's episodes, sampled and scored. TRL shuffles and splits what comes back into micro-batches."""
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
        """Of all processes: what is divided by it here and averaged over them is divided by the sum of all."""
        return self.accelerator.reduce(torch.tensor(float(count), device=self.accelerator.device), "mean")

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
        """The micro-batch's share of the step's loss: TRL adds shares up, so the means are divided here."""
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
        """Recorded log-probabilities are those of temperature 1. At another one the old policy is the present one,
        which made these samples: a ratio of 1 with a gradient."""
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
        """Mean and spread of each reward, and what the episodes look like; every n-th step its first group to read."""
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
