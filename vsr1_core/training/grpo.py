"""Stage 2: GRPO over whole search episodes, with the GRPOTrainer of TRL. Sampling and replay are in `rollout`.

This is a subclass and not a loop of our own, because the part of TRL (GRPOConfig, the sampler that repeats a prompt for
its group, schedule, clipping, logging) needs only overrides of about ten lines: what a rollout is and what the loss is;
two learning rates are those of `PolicyTrainer`. Micro-batches are ours: TRL shuffles the episodes of a step before it
splits them, and episodes of one group share the reading of their prompts only if they stay together. The reference
model of TRL is not used, because TRL loads it by name; ours is the policy without its adapters, or a frozen copy of the
policy as it is at the start, without a second vision tower.

Two differences from the authors' code follow the paper (docs/method.md, stage 2): whole episodes instead of one turn on
a stored video, and soft tokens that learn, through L_ret of the last refined query of the episode. With `accumulate`,
this query holds the latents of all turns, and gradients flow through all of them. One difference from TRL: a sequence
is an episode (`training.losses`). Several passes over one set of rollouts are not implemented.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from vsr1_core.models.batches import is_out_of_memory
from vsr1_core.models.feature_store import FeatureStore
from vsr1_core.models.protocols import DecodeSettings, Embedder, PolicyModel
from vsr1_core.recipes import GRPORecipe
from vsr1_core.search.episodes import EpisodeSettings, Searcher
from vsr1_core.search.index import VideoIndex
from vsr1_core.search.turns import Turn
from vsr1_core.training import lora
from vsr1_core.training.losses import PolicyLoss, policy_loss
from vsr1_core.training.policy_trainer import PolicyTrainer
from vsr1_core.training.processes import share_of
from vsr1_core.training.rewards import RewardBreakdown
from vsr1_core.training.rollout import GRPOPrompt, Replay, Rollout, RolloutSampler, recorded_log_probs, replay
from vsr1_core.training.runs import CurvePoint, TrainingRun, shared_order, training_order
from vsr1_core.training.traces import EpisodeTrace, trace_of

NUM_TRACED_STEPS = 20
FEW_EPISODES = 8
"""Episodes of a micro-batch, rounded up to whole groups, where no number is given."""


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
    micro_batch_size: int = 0,
) -> GRPOResult:
    """Stage 2: train `policy.model` in place on whole search episodes, with a frozen embedder. If the run's folder has
    the state of a stopped training, training continues from it.

    Args:
        policy: The policy to train. If it has a `writer`, that writes the text of the rollouts, and gets the weights
            after every step.
        embedder: The frozen embedder that made `index` and `vectors`.
        prompts: The queries. If there are fewer than a step takes, every step uses all of them.
        index: The index that is searched.
        features: Vision features of the videos in the index.
        vectors: Video id -> unit vector [D] of each right video, and of each video that may be a negative.
        durations_s: Segment id -> seconds, for every segment in the index.
        never: Query id -> videos that must not be its negatives.
        recipe: What is trained, and how.
        run: Where the state is kept, and what is logged.
        micro_batch_size: Episodes in one backward pass; 0 begins with a few groups and halves the number whenever
            memory does not suffice. It changes memory; only `bnpo` gives another result.

    Raises:
        ValueError: There are no prompts, or the right video of a prompt has no vector.
    """
    _check_prompts(prompts, vectors)
    adapters = _choose_what_learns(policy, embedder, recipe)
    settings = EpisodeSettings(
        num_turns=recipe.num_turns,
        decode=DecodeSettings(recipe.max_new_tokens, recipe.temperature, policy.model.soft_query.num_soft_tokens),
    )
    trainer = EpisodeGRPOTrainer(
        policy=policy,
        prompts=prompts,
        sampler=_sampler(Searcher(policy, embedder, index, features, durations_s, settings), recipe, vectors, never),
        recipe=recipe,
        adapters=adapters,
        micro_batches=MicroBatches(micro_batch_size, recipe.group_size, run),
        args=_arguments(recipe, run, min(recipe.queries_per_step, len(prompts))),
    )
    return GRPOResult(trainer.fit(run), trainer.traces)


def _check_prompts(prompts: Sequence[GRPOPrompt], vectors: Mapping[str, Tensor]) -> None:
    if not prompts:
        raise ValueError(
            "stage 2 has no prompts to train on, because grpo_prompts is empty; check that there is a split named train"
        )
    lost = sorted({p.right_segment_id for p in prompts if p.right_segment_id not in vectors})
    if lost:
        raise ValueError(
            f"{len(lost)} right videos have no vector, e.g. {', '.join(lost[:3])}; build video_embeddings and "
            "grpo_prompts again"
        )


def _choose_what_learns(policy: PolicyModel, embedder: Embedder, recipe: GRPORecipe) -> lora.Adapters | None:
    """Let the text model (or adapters of it) and P, R and A learn, and freeze both vision towers, the embedder and the
    unused gate. Returns the adapters.

    With adapters the output layer is frozen too: the reference model is the policy without adapters, so nothing else
    that decides a token may change."""
    policy.model.requires_grad_(True)
    policy.vision_tower.requires_grad_(False)
    policy.model.refine_gate.requires_grad_(False)
    embedder.model.requires_grad_(False)
    if not recipe.lora_rank:
        return None
    policy.model.lm_head.requires_grad_(False)
    return lora.attach(policy.text_model, recipe.lora_rank, recipe.seed)


def _sampler(
    searcher: Searcher, recipe: GRPORecipe, vectors: Mapping[str, Tensor], never: Mapping[str, frozenset[str]]
) -> RolloutSampler:
    device = next(searcher.policy.model.parameters()).device
    seed = recipe.seed + PartialState().process_index  # with one seed, all processes would draw the same samples
    generator = torch.Generator(device).manual_seed(seed)
    return RolloutSampler(searcher, recipe, vectors, never, generator, random.Random(seed))


def _arguments(recipe: GRPORecipe, run: TrainingRun, num_queries: int) -> GRPOConfig:
    return GRPOConfig(
        **run.arguments(logging_steps=1),
        max_steps=recipe.steps or -1,
        num_train_epochs=1,
        # A group is scored in one process.
        per_device_train_batch_size=share_of(num_queries, "queries") * recipe.group_size,
        gradient_accumulation_steps=1,
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


class MicroBatches:
    """How many episodes go through one backward pass. `given` 0 begins with whole groups, about FEW_EPISODES."""

    def __init__(self, given: int, group_size: int, run: TrainingRun) -> None:
        self.size = given or -(-FEW_EPISODES // group_size) * group_size
        self.run = run

    def parts(self, rollouts: Sequence[Rollout]) -> list[Sequence[Rollout]]:
        """The episodes of a step, in micro-batches. Groups stay in their order."""
        return [rollouts[i : i + self.size] for i in range(0, len(rollouts), self.size)]

    def halve(self, num_rollouts: int) -> None:
        """Go on with half of the episodes. Raises RuntimeError if a micro-batch has one episode already."""
        size = min(self.size, num_rollouts)
        if size == 1:
            raise RuntimeError(
                "a single episode does not fit into memory; lower frames.max_frames, frames.max_pixels or "
                "grpo.max_new_tokens, or set grpo.gradient_checkpointing, grpo.lora_rank or grpo.optimizer=adamw_8bit"
            )
        self.size = size // 2
        self.run.log(f"{self.run.name}: out of memory; goes on with {self.size} episodes in a backward pass")


@dataclass(frozen=True)
class StepCounts:
    """What the losses of a whole step are divided by. tokens, refined: means over the processes, as gradients are
    averaged over them; episodes: of this process."""

    tokens: float
    refined: float
    episodes: int


Notes = list[tuple[str, Tensor]]
"""Names and values for the log, without gradients: those of all micro-batches are kept until the step is over."""


class EpisodeGRPOTrainer(PolicyTrainer, GRPOTrainer):
    """GRPOTrainer whose completions are search episodes and whose loss also runs through their latents."""

    shown = ("/mean",)

    def __init__(
        self,
        *,
        policy: PolicyModel,
        prompts: Sequence[GRPOPrompt],
        sampler: RolloutSampler,
        recipe: GRPORecipe,
        micro_batches: MicroBatches,
        adapters: lora.Adapters | None = None,
        **kwargs: Any,
    ) -> None:
        self.policy, self.prompts, self.sampler, self.recipe = policy, prompts, sampler, recipe
        self.adapters, self.micro_batches = adapters, micro_batches
        self.reference = policy.frozen_copy() if recipe.beta and not adapters else None  # for the KL term
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

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Sample and score the episodes of a step. They are one item of the result, which TRL would shuffle."""
        self.policy.model.eval()
        if self.policy.writer is not None:
            self.policy.writer.take_weights(lora.merged_weights(self.policy.model))
        with self.accelerator.autocast():
            rollouts = self.sampler.sample([self.prompts[row["prompt"]] for row in inputs])
        self.policy.model.train()
        self._note_rollouts(rollouts)
        return {
            "num_tokens": self._mean_count(sum(r.num_sampled_tokens for r in rollouts))[None],
            "num_refined": self._mean_count(sum(r.is_refined for r in rollouts)),
            "rollouts": [rollouts],
        }

    def _mean_count(self, count: int) -> Tensor:
        """The mean of `count` over the processes. Gradients are averaged over the processes, so dividing by the mean
        count divides the total by the count of all processes."""
        return self.accelerator.reduce(torch.tensor(float(count), device=self.accelerator.device), "mean")

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
        """The loss of a step. Its gradients are added here, one micro-batch after another, so what is returned is a
        constant, of which the Trainer's backward pass adds nothing."""
        [rollouts] = inputs["rollouts"]
        counts = StepCounts(float(inputs["num_tokens"]), float(inputs["num_refined"]), len(rollouts))
        while (total := self._differentiated(rollouts, counts)) is None:
            self.micro_batches.halve(len(rollouts))
            model.zero_grad()
            torch.cuda.empty_cache()
        return total.requires_grad_()

    def _differentiated(self, rollouts: Sequence[Rollout], counts: StepCounts) -> Tensor | None:
        """The loss of a step, whose gradients have been added to the parameters. None if memory did not suffice; part
        of the gradients may have been added then."""
        total, noted = torch.zeros((), device=self.accelerator.device), Notes()
        try:
            for part in self.micro_batches.parts(rollouts):
                loss, notes = self.loss_of(part, counts)
                if loss.requires_grad:
                    self.accelerator.backward(loss)
                total += loss.detach()
                noted += notes
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        for name, value in noted:
            self._note(name, value)
        return total

    def loss_of(self, rollouts: Sequence[Rollout], counts: StepCounts) -> tuple[Tensor, Notes]:
        """The share of a micro-batch in the loss of a step, and what is logged of it. Shares are added up.

        Without a KL term, an episode whose advantage is 0 has no part in the policy loss: its text is not replayed."""
        has_text = [bool(self.recipe.beta) or rollout.advantage != 0 for rollout in rollouts]
        reference = self._reference_log_probs(rollouts)
        with self.accelerator.autocast(), self._attention():
            played = self._replay(self.policy, rollouts, has_text=has_text)
        policy = self._policy_loss(rollouts, played, reference, counts)
        # `dapo` is divided by the whole step's tokens already.
        share = 1.0 if self.recipe.loss_type == "dapo" else len(rollouts) / counts.episodes
        loss = policy.loss * share
        notes = [("kl", policy.kl), ("clip_fraction", policy.clip_fraction), ("policy_loss", loss.detach() / share)]
        if any(has_text):
            notes.append(("entropy", played.entropy[played.mask].nanmean()))
        if not any(played.latents):
            return loss, notes
        with self.accelerator.autocast(), self._attention():
            losses = self._refined_losses(rollouts, played)
        notes.append(("retrieval_loss", losses.detach().mean()))
        return loss + self.recipe.retrieval_weight * losses.sum() / counts.refined, notes

    @contextlib.contextmanager
    def _reference(self) -> Iterator[PolicyModel]:
        """The policy as it was at the start, without gradients."""
        with torch.no_grad(), self.adapters.disabled() if self.adapters else contextlib.nullcontext():
            yield self.reference or self.policy

    def _reference_log_probs(self, rollouts: Sequence[Rollout]) -> Tensor | None:
        if not self.recipe.beta:
            return None
        with self._reference() as reference, self.accelerator.autocast():
            return self._replay(reference, rollouts, with_latents=False).log_probs

    def _replay(self, policy: PolicyModel, rollouts: Sequence[Rollout], **kwargs: Any) -> Replay:
        return replay(policy, rollouts, self.sampler.searcher.features, self.recipe.temperature, **kwargs)

    def _policy_loss(
        self, rollouts: Sequence[Rollout], played: Replay, reference: Tensor | None, counts: StepCounts
    ) -> PolicyLoss:
        """The policy loss. Recorded log-probabilities are at temperature 1; at another temperature, those of the
        current policy are used as the old ones, which gives a ratio of 1 that has a gradient."""
        old = played.log_probs.detach()
        if self.recipe.temperature == 1:
            old = recorded_log_probs(rollouts).to(old)
        return policy_loss(
            played.log_probs,
            old,
            torch.tensor([r.advantage for r in rollouts], device=old.device),
            played.mask,
            reference_logprobs=reference,
            clip=self.recipe.clip,
            beta=self.recipe.beta,
            loss_type=self.recipe.loss_type,
            max_tokens=self.max_completion_length,
            num_tokens=counts.tokens,
        )

    def _refined_losses(self, rollouts: Sequence[Rollout], played: Replay) -> Tensor:
        refined = [(rollout, soft) for rollout, soft in zip(rollouts, played.latents, strict=True) if soft]
        return self.sampler.refined_losses([r for r, _ in refined], [soft for _, soft in refined])

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
            self.traces += [trace_of(step, sample, rollout) for sample, rollout in enumerate(group)]

    def _is_cut(self, turn: Turn) -> bool:
        return turn.decoded.token_ids[-1] not in self.policy.end_tokens
