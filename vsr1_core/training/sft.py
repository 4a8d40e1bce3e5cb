"""Stage 1 with the SFTTrainer of TRL. The loss is the cross-entropy of answer tokens + weight * L_ret, whose gradients
flow through embedder and latents.

Differences from the authors' code: latents are trained in the same cached pass that inference uses, and negatives that
outrank the right video are kept. `SFTRecipe.refine` other than `soft` trains a baseline on text alone, without latents.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import EarlyStoppingCallback
from trl import SFTConfig, SFTTrainer

from vsr1_core.models.feature_store import FeatureStore
from vsr1_core.models.protocols import Embedder, PolicyModel
from vsr1_core.models.query_vectors import QueryVectors
from vsr1_core.recipes import SFTRecipe
from vsr1_core.training import lora
from vsr1_core.training.examples import PART_NAMES, SFTExample, choose_negatives
from vsr1_core.training.lora import Adapters
from vsr1_core.training.losses import retrieval_losses, token_cross_entropy
from vsr1_core.training.policy_trainer import PolicyTrainer
from vsr1_core.training.processes import gather, share_of
from vsr1_core.training.runs import CurvePoint, TrainingRun, training_order

LOGGING_STEPS = 10


@dataclass(frozen=True)
class SFTData:
    """The data of stage 1. features: of the shown videos. vectors: video id -> unit vector [D], for each video that may
    be right or a negative. never: query id -> videos that must not be its negatives."""

    examples: Sequence[SFTExample]
    features: FeatureStore
    vectors: Mapping[str, Tensor]
    never: Mapping[str, frozenset[str]]


def train_sft(
    policy: PolicyModel, embedder: Embedder, data: SFTData, recipe: SFTRecipe, run: TrainingRun
) -> list[CurvePoint]:
    """Stage 1: train `policy.model` in place, with a frozen embedder. Returns the logged values.

    If the run's folder has the state of a stopped training, training continues from it. Trained weights are float32;
    with `recipe.bf16` the passes over them run under autocast. Raises ValueError if there are no examples, or if
    weights of another type would be trained.

    Example:
        curve = train_sft(policy, embedder, SFTData(examples, features, vectors, {}), recipe, TrainingRun(folder))
    """
    if not data.examples:
        raise ValueError(
            "stage 1 has no examples to train on, because top1_pool or reasoning_traces is empty; see: vsr1 status"
        )
    held_out = _held_out(data.examples, recipe) if recipe.early_stop_patience else []
    kept = {e.query_id for e in held_out}
    adapters = _choose_what_learns(policy, recipe)
    trainer = RefineSFTTrainer(
        policy=policy,
        embedder=embedder,
        data=data,
        recipe=recipe,
        examples=[e for e in data.examples if e.query_id not in kept],
        held_out=held_out,
        args=_arguments(recipe, run, bool(held_out)),
        callbacks=[EarlyStoppingCallback(recipe.early_stop_patience)] if held_out else [],
    )
    trainer.adapters = adapters
    return trainer.fit(run)


def _held_out(examples: Sequence[SFTExample], recipe: SFTRecipe) -> list[SFTExample]:
    """The validation rows: the rows of a share of the right videos. A hash chooses the videos, so that additional rows
    do not change the choice.

    They come from the train split, because not every dataset has a validation split, and traces are written only for
    train rows.
    """
    share = {v: _draw(recipe.seed, v) for v in {e.gt_video_id for e in examples}}
    held_out = [e for e in examples if share[e.gt_video_id] < recipe.validation_share]
    if not held_out or len(held_out) == len(examples):
        raise ValueError(
            f"early stopping needs {recipe.validation_share:.0%} of {len(share)} videos for validation, which leaves "
            f"{len(held_out)} rows for validation and {len(examples) - len(held_out)} for training; change "
            "sft.validation_share"
        )
    return held_out


def _draw(seed: int, video_id: str) -> float:
    """Deterministic uniform draw in [0, 1) for a video."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{video_id}".encode()).digest()[:6], "big") / (1 << 48)


def _choose_what_learns(policy: PolicyModel, recipe: SFTRecipe) -> Adapters | None:
    """Mark the parameters that learn. Returns the adapters, or None without any."""
    model = policy.model
    model.requires_grad_(True)
    policy.vision_tower.requires_grad_(recipe.train_vision)
    model.refine_gate.requires_grad_(False)
    adapters = lora.attach(policy.text_model, recipe.lora_rank, recipe.seed) if recipe.lora_rank else None
    for parameter in model.refine_parameters:
        parameter.requires_grad_(recipe.refine == "soft")
    halves = {str(p.dtype) for p in model.parameters() if p.requires_grad} - {"torch.float32"}
    if halves:
        raise ValueError(
            f"trained weights must be float32, but the policy has weights of {', '.join(sorted(halves))}; load it with "
            "dtype=torch.float32"
        )
    return adapters


def _arguments(recipe: SFTRecipe, run: TrainingRun, validates: bool) -> SFTConfig:
    arguments = run.arguments(LOGGING_STEPS)
    if validates:  # transformers keeps the best weights as a checkpoint, so it has to save as often as it validates
        steps = {"eval_steps": recipe.validation_steps, "save_steps": recipe.validation_steps}
        best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}
        arguments |= {"eval_strategy": "steps", "save_strategy": "steps", **steps, **best}
    return SFTConfig(
        **arguments,
        max_steps=recipe.steps or -1,
        num_train_epochs=1,
        per_device_train_batch_size=share_of(recipe.batch_size, "rows"),
        gradient_accumulation_steps=recipe.gradient_accumulation,
        max_grad_norm=recipe.max_grad_norm,
        learning_rate=recipe.lr,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=recipe.warmup_ratio,  # below 1 it is a share of all steps
        bf16=recipe.bf16,
        activation_checkpointing=recipe.gradient_checkpointing,
        seed=recipe.seed,
        train_sampling_strategy="sequential",
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def retrieval_weight(recipe: SFTRecipe, step: int, num_steps: int) -> float:
    """The weight of L_ret at a step. It rises from 0 during the share `retrieval_warmup_ratio` of all steps."""
    rising = recipe.retrieval_warmup_ratio * num_steps
    return recipe.retrieval_weight * (min(1.0, step / rising) if rising else 1.0)


@dataclass(frozen=True)
class LossSums:
    """Sums of losses, with gradients. text: cross-entropy of `num_tokens` answer tokens; search: L_ret of
    `num_refining` rows."""

    text: Tensor
    num_tokens: int
    search: Tensor
    num_refining: int


class RefineSFTTrainer(PolicyTrainer, SFTTrainer):
    """An SFTTrainer whose loss is over answer tokens and, for rows that refine, over the search with their latents.

    Means are taken over the whole optimiser step, however many micro-batches and processes it has.
    """

    shown = ("_loss",)

    def __init__(
        self,
        *,
        policy: PolicyModel,
        embedder: Embedder,
        data: SFTData,
        recipe: SFTRecipe,
        examples: Sequence[SFTExample],
        held_out: Sequence[SFTExample] = (),
        **kwargs: Any,
    ) -> None:
        self.policy, self.data, self.recipe, self.held_out = policy, data, recipe, held_out
        self.embedder = embedder.with_head(policy.model.query_head)
        self.plain = QueryVectors(self.embedder)
        self.corpus_ids = sorted(data.vectors)
        rows_a_step = recipe.batch_size * recipe.gradient_accumulation
        order = training_order(len(examples), rows_a_step, recipe.steps, recipe.seed)
        super().__init__(
            model=policy.model,
            processing_class=policy.tokenizer,
            train_dataset=Dataset.from_dict({"example": order}),
            eval_dataset=Dataset.from_dict({"example": list(range(len(held_out)))}) if held_out else None,
            data_collator=lambda rows: {"examples": [examples[r["example"]] for r in rows]},
            **kwargs,
        )
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the counts of the whole step

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Tensor:
        """The numbers of answer tokens and of refining rows in the micro-batches of a step, as means over the
        processes. Gradients are averaged over the processes, so dividing by the mean count divides the total by the
        count of all processes."""
        examples = [e for batch in batch_samples for e in batch["examples"]]
        counts = [sum(len(e.parts) for e in examples), len(self._refining(examples))]
        return self.accelerator.reduce(torch.tensor(counts, dtype=torch.float32, device=device), "mean")

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        examples = inputs["examples"]
        if num_items_in_batch is None:
            num_items_in_batch = self._get_num_items_in_batch([inputs], self.args.device)
        # Autocast has to be set here: accelerate wraps only the model's forward, which this loss does not call.
        with self.accelerator.autocast(), self._attention():
            sums, parts = self._sums(examples, str(self.state.global_step), gather)
        for name, value in parts.items():
            self._note(f"{name}_loss", value)
        self._note("text_loss", sums.text / sums.num_tokens)
        if sums.num_refining:
            self._note("retrieval_loss", sums.search / sums.num_refining)
        num_tokens, num_refining = num_items_in_batch.tolist()
        weight = retrieval_weight(self.recipe, self.state.global_step, self.state.max_steps)
        loss = self._weighted(sums, num_tokens, num_refining, weight)
        return (loss, None) if return_outputs else loss

    def _weighted(self, sums: LossSums, num_tokens: float, num_refining: float, weight: float) -> Tensor:
        search = weight * sums.search / num_refining if num_refining else 0.0
        return sums.text / num_tokens + search

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The loss over the validation rows, with the same negatives every time."""
        self.policy.model.eval()
        size = self.recipe.batch_size
        with self.accelerator.autocast():
            found = [
                self._sums(self.held_out[i : i + size], "eval", list)[0] for i in range(0, len(self.held_out), size)
            ]
        text, search = (torch.stack([getattr(s, name) for s in found]).sum() for name in ("text", "search"))
        total = LossSums(text, sum(s.num_tokens for s in found), search, sum(s.num_refining for s in found))
        weight = self.recipe.retrieval_weight
        metrics = {"eval_loss": float(self._weighted(total, total.num_tokens, total.num_refining, weight))}
        self.log(metrics)
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _refining(self, examples: Sequence[SFTExample]) -> list[int]:
        return [i for i, e in enumerate(examples) if e.refines] if self.recipe.refine == "soft" else []

    def _sums(
        self, examples: Sequence[SFTExample], draw: str, in_batch: Callable[[list[str]], list[str]]
    ) -> tuple[LossSums, Mapping[str, Tensor]]:
        """The sums of losses, and the mean cross-entropy of each answer part. `draw` is part of the seed of random
        negatives; `in_batch` extends the right videos of these rows to those of the whole batch."""
        refining = self._refining(examples)
        hidden, latents = self.policy.teacher_forced(
            [e.prompt for e in examples],
            self.data.features.get([e.shown_video_id for e in examples]),
            refining=refining,
            num_soft_tokens=self.policy.model.soft_query.num_soft_tokens,
        )
        states = torch.cat([hidden[i, -len(e.parts) - 1 : -1] for i, e in enumerate(examples)])
        targets = torch.cat([e.prompt.token_ids[-len(e.parts) :] for e in examples]).to(hidden.device)
        kinds = torch.cat([e.parts for e in examples])
        mean, parts = token_cross_entropy(self.policy.model.lm_head(states), targets, kinds, PART_NAMES)
        search = mean.new_zeros(())
        right_ids = in_batch([examples[i].gt_video_id for i in refining]) if self.recipe.in_batch_positives else []
        if refining:
            search = self._retrieval_losses([examples[i] for i in refining], latents, draw, right_ids).sum()
        return LossSums(mean * len(targets), len(targets), search, len(refining)), parts

    def _retrieval_losses(
        self, examples: Sequence[SFTExample], latents: Tensor, draw: str, right_ids: Sequence[str]
    ) -> Tensor:
        """L_ret [R] of the refined queries. The embedder is frozen, and gradients reach the latents.

        The random negatives of a row have a seed of their own, so that they do not depend on which process has the row.
        """
        soft = self.policy.model.append_input(latents)
        limit = self.policy.model.soft_query.form.query_tokens
        queries = self.embedder.embed_queries([e.query for e in examples], list(soft), limit)
        positives = torch.stack([self.data.vectors[e.gt_video_id] for e in examples]).to(queries)
        negatives, mask = self._negatives(examples, draw)
        in_batch = in_batch_mask = None
        if self.recipe.in_batch_positives:
            in_batch = torch.stack([self.data.vectors[v] for v in right_ids]).to(queries)
            in_batch_mask = torch.tensor([[v not in self._never(row) for v in right_ids] for row in examples])
        return retrieval_losses(
            queries,
            positives,
            negatives.to(queries),
            mask.to(queries.device),
            temperature=self.recipe.temperature,
            in_batch=in_batch,
            in_batch_mask=in_batch_mask,
            judged_by=self._judges(examples, queries),
        )

    def _judges(self, examples: Sequence[SFTExample], refined: Tensor) -> Tensor | None:
        """The query vectors [R, D] by which negatives above the right video are dropped; None if all of them stay."""
        if self.recipe.drop_above_positive:
            return self.plain.get([e.query for e in examples]).to(refined)
        return refined if self.recipe.drop_above_positive_when_refined else None

    def _never(self, example: SFTExample) -> frozenset[str]:
        return self.data.never.get(example.query_id, frozenset({example.gt_video_id}))

    def _negatives(self, examples: Sequence[SFTExample], draw: str) -> tuple[Tensor, Tensor]:
        """Vectors [R, K, D] of the negatives, and a mask [R, K] that is False where a row has fewer than K."""
        wanted = self.recipe.num_negatives
        size = len(next(iter(self.data.vectors.values())))
        vectors, mask = torch.zeros(len(examples), wanted, size), torch.zeros(len(examples), wanted, dtype=torch.bool)
        for row, example in enumerate(examples):
            nearest = [example.shown_video_id, *example.negative_ids]
            rng = random.Random(f"{self.recipe.seed}/{draw}/{example.query_id}")
            ids = choose_negatives(nearest, self.corpus_ids, self._never(example), wanted, rng)
            for column, video_id in enumerate(ids):
                vectors[row, column] = self.data.vectors[video_id]
                mask[row, column] = True
        return vectors, mask
