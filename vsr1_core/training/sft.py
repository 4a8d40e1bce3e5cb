"""Stage 1 with the SFTTrainer of TRL. The loss is the cross-entropy of answer tokens + weight * L_ret, whose gradients
flow through embedder and latents.

Differences from the authors' code: latents are trained in the same cached pass that inference uses, and negatives that
outrank the right video are kept. `SFTRecipe.refine` other than `soft` trains a baseline on text alone, without latents.
"""

from __future__ import annotations

import hashlib
import math
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
from vsr1_core.models.soft_query import start_among_words
from vsr1_core.recipes import SFTRecipe
from vsr1_core.segments import video_of
from vsr1_core.training import lora
from vsr1_core.training.examples import PART_NAMES, SFTExample
from vsr1_core.training.lora import Adapters
from vsr1_core.training.losses import token_cross_entropy
from vsr1_core.training.policy_trainer import PolicyTrainer
from vsr1_core.training.processes import gather, share_of
from vsr1_core.training.runs import CurvePoint, TrainingRun, add_noise, training_order
from vsr1_core.training.search_loss import SearchLoss

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
    if recipe.refine == "soft" and recipe.first_latents == "words":
        words = policy.model.get_input_embeddings().weight
        start_among_words(policy.model, words, embedder.word_embeddings, recipe.seed)
    add_noise((p for p in policy.model.parameters() if p.requires_grad), recipe.noise)
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
    share = {v: _draw(recipe.seed, v) for v in {video_of(e.gt_video_id) for e in examples}}
    held_out = [e for e in examples if share[video_of(e.gt_video_id)] < recipe.validation_share]
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
    """Mark the parameters that learn. Returns the adapters, or None without any. With adapters, an output layer of its
    own is frozen as the word embeddings are, which are the output layer of smaller models."""
    model = policy.model
    model.requires_grad_(True)
    policy.vision_tower.requires_grad_(recipe.train_vision)
    model.refine_gate.requires_grad_(False)
    adapters = lora.attach(policy.text_model, recipe.lora_rank, recipe.seed) if recipe.lora_rank else None
    model.lm_head.requires_grad_(adapters is None)
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
    # A validation saves the state, so values have to be logged by then (`TrainingRun.arguments`).
    arguments = run.arguments(math.gcd(LOGGING_STEPS, recipe.validation_steps) if validates else LOGGING_STEPS)
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

    shown = ("_loss", "_share")

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
        engine, limit = embedder.with_head(policy.model.query_head), policy.model.soft_query.form.query_tokens
        self.search_loss = SearchLoss(engine, data.vectors, data.never, recipe, limit)
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
            sums, noted = self._sums(examples, str(self.state.global_step), gather)
        for name, value in noted.items():
            self._note(name, value)
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
        """The sums of losses, and for logs the mean cross-entropy of each answer part and facts about refined queries
        (`RefinedSearch.facts`). `draw` is part of the seed of random
        negatives; `in_batch` extends the right videos of these rows to those of the whole batch."""
        refining = self._refining(examples)
        hidden, latents = self.policy.teacher_forced(
            [e.prompt for e in examples],
            self.data.features.get([e.shown_video_id for e in examples]),
            last=[len(e.parts) + 1 for e in examples],
            refining=refining,
            num_soft_tokens=self.policy.model.soft_query.num_soft_tokens,
        )
        states = torch.cat([of_answer[:-1] for of_answer in hidden])
        targets = torch.cat([e.prompt.token_ids[-len(e.parts) :] for e in examples]).to(states.device)
        kinds = torch.cat([e.parts for e in examples])
        mean, parts = token_cross_entropy(self.policy.model.lm_head(states), targets, kinds, PART_NAMES)
        search, facts = mean.new_zeros(()), dict[str, Tensor]()
        right_ids = in_batch([examples[i].gt_video_id for i in refining]) if self.recipe.in_batch_positives else []
        if refining:
            soft = self.policy.model.append_input(latents)
            found = self.search_loss([examples[i] for i in refining], soft, draw, right_ids)
            search, facts = found.losses.sum(), dict(found.facts)
        parts = {f"{name}_loss": value for name, value in parts.items()}
        return LossSums(mean * len(targets), len(targets), search, len(refining)), parts | facts
