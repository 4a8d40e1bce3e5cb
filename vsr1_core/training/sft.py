"""Stage 1 (METHOD 5) on TRL's SFTTrainer: answer tokens' cross-entropy + weight * L_ret through latents and embedder.

Difference from the authors: the latents are trained by the cached pass that inference uses, and negatives that
outrank the right video stay in. `SFTRecipe.refine` other than `soft` trains a baseline: the text alone, no latents.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from vsr1_core.models.checkpoints import LoadedPolicy
from vsr1_core.models.decoding import teacher_forced
from vsr1_core.models.embedder import Embedder
from vsr1_core.models.vision import FeatureStore
from vsr1_core.recipes import SFTRecipe
from vsr1_core.training.contrastive import CurvePoint, StepLines
from vsr1_core.training.examples import PART_NAMES, SFTExample, choose_negatives
from vsr1_core.training.kernels import training_attention
from vsr1_core.training.losses import retrieval_loss, token_cross_entropy
from vsr1_core.training.processes import SharedSteps, own_weight, share_of


@dataclass(frozen=True)
class SFTData:
    """examples; features of any video; corpus vectors by video id; never: query id -> videos that are no negatives."""

    examples: Sequence[SFTExample]
    features: FeatureStore
    vectors: Mapping[str, Tensor]
    never: Mapping[str, frozenset[str]]


def train_sft(
    policy: LoadedPolicy,
    embedder: Embedder,
    data: SFTData,
    recipe: SFTRecipe,
    work_folder: Path,
    log: Callable[[str], None] = lambda line: None,
) -> list[CurvePoint]:
    """Train `policy.model` in place. Returns the logged losses. `work_folder` is the trainer's own.

    Raises ValueError when there are no examples.
    """
    if not data.examples:
        raise ValueError("stage 1 has no examples to train on: the top-1 pool or the reasoning traces are empty")
    _freeze(policy, recipe)
    trainer = RefineSFTTrainer(
        policy=policy,
        embedder=embedder,
        data=data,
        recipe=recipe,
        args=_arguments(recipe, work_folder),
        callbacks=[LogLines(log)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    policy.model.eval()
    return curve_of(trainer.state.log_history)


def _freeze(policy: LoadedPolicy, recipe: SFTRecipe) -> None:
    policy.model.requires_grad_(True)
    policy.model.model.visual.requires_grad_(recipe.train_vision)
    policy.model.refine_gate.requires_grad_(False)
    if recipe.refine != "soft":
        for parameter in policy.model.refine_parameters:
            parameter.requires_grad_(False)


def _arguments(recipe: SFTRecipe, work_folder: Path) -> SFTConfig:
    return SFTConfig(
        output_dir=str(work_folder),
        max_steps=recipe.steps or -1,
        num_train_epochs=1,
        per_device_train_batch_size=share_of(recipe.batch_size, "rows"),
        gradient_accumulation_steps=recipe.gradient_accumulation,
        max_grad_norm=recipe.max_grad_norm,
        learning_rate=recipe.lr,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=recipe.warmup_ratio,  # below 1 it is a share of all steps
        bf16=recipe.bf16,
        use_cpu=not torch.cuda.is_available(),
        activation_checkpointing=recipe.gradient_checkpointing,
        seed=recipe.seed,
        data_seed=recipe.seed,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        max_length=None,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=False,
    )


def parameter_groups(policy: LoadedPolicy, lr: float, refine_lr: float) -> list[dict[str, Any]]:
    """What is trained, as an optimiser's groups: P, R and A have a learning rate of their own."""
    refine = {id(p) for p in policy.model.refine_parameters}
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in refine], "lr": lr},
        {"params": [p for p in trained if id(p) in refine], "lr": refine_lr},
    ]
    return [group for group in groups if group["params"]]


class RefineSFTTrainer(SharedSteps, SFTTrainer):
    """SFTTrainer whose loss runs over answer tokens and, for rows that refine, over latents and search."""

    def __init__(
        self, *, policy: LoadedPolicy, embedder: Embedder, data: SFTData, recipe: SFTRecipe, **kwargs: Any
    ) -> None:
        self.policy, self.data, self.recipe = policy, data, recipe
        self.embedder = embedder.with_head(policy.model.query_head)
        self.negatives_rng = random.Random(recipe.seed)
        self.corpus_ids = sorted(data.vectors)
        super().__init__(
            model=policy.model,
            processing_class=policy.tokenizer,
            train_dataset=Dataset.from_dict({"example": list(range(len(data.examples)))}),
            data_collator=lambda rows: {"examples": [data.examples[r["example"]] for r in rows]},
            **kwargs,
        )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW; the refine modules have their own learning rate."""
        groups = parameter_groups(self.policy, self.recipe.lr, self.recipe.refine_lr)
        self.optimizer = torch.optim.AdamW(groups, weight_decay=self.recipe.weight_decay)
        return self.optimizer

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Any:
        # accelerate wraps the model's forward, which this loss does not call.
        with self.accelerator.autocast(), self._attention():
            loss = self._loss(inputs["examples"])
        return (loss, None) if return_outputs else loss

    def _loss(self, examples: list[SFTExample]) -> Tensor:
        text_loss, latents, parts = self._text_loss(examples)
        self._note("text_loss", text_loss)
        for name, value in parts.items():
            self._note(f"{name}_loss", value)
        loss = text_loss * own_weight(sum(len(e.parts) for e in examples), self.accelerator)
        weight = self.recipe.retrieval_weight * own_weight(len(latents), self.accelerator)
        if len(latents):
            search_loss = self._retrieval_loss([e for e in examples if e.refines], latents)
            self._note("retrieval_loss", search_loss)
            loss = loss + weight * search_loss
        return loss

    def _text_loss(self, examples: list[SFTExample]) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
        """Mean cross-entropy over all answer tokens, the latents [R, N, D], and each part's mean."""
        refining = [i for i, e in enumerate(examples) if e.refines] if self.recipe.refine == "soft" else []
        hidden, latents, batch = teacher_forced(
            self.policy.model,
            [e.prompt for e in examples],
            self.data.features.get([e.shown_video_id for e in examples]),
            refining=refining,
            pad_id=self.policy.tokenizer.pad_token_id,
            num_soft_tokens=self.policy.model.soft_query.num_soft_tokens,
        )
        states = torch.cat([hidden[i, -len(e.parts) - 1 : -1] for i, e in enumerate(examples)])
        targets = torch.cat([batch.token_ids[i, -len(e.parts) :] for i, e in enumerate(examples)])
        kinds = torch.cat([e.parts for e in examples])
        loss, parts = token_cross_entropy(self.policy.model.lm_head(states), targets, kinds, PART_NAMES)
        return loss, latents, parts

    def _retrieval_loss(self, examples: list[SFTExample], latents: Tensor) -> Tensor:
        """L_ret of the refined queries (METHOD 4); the embedder is frozen, gradients reach the latents."""
        soft = self.policy.model.append_input(latents)
        queries = self.embedder.embed_queries([e.query for e in examples], list(soft))
        positives = torch.stack([self.data.vectors[e.right_video_id] for e in examples]).to(queries)
        negatives, mask = self._negatives(examples)
        return retrieval_loss(
            queries,
            positives,
            negatives.to(queries),
            mask.to(queries.device),
            temperature=self.recipe.temperature,
            in_batch_positives=self.recipe.in_batch_positives,
            drop_above_positive=self.recipe.drop_above_positive,
        )

    def _negatives(self, examples: list[SFTExample]) -> tuple[Tensor, Tensor]:
        """Vectors [R, K, D] and a mask [R, K] that is False where a row has fewer."""
        wanted = self.recipe.num_negatives
        size = len(next(iter(self.data.vectors.values())))
        vectors, mask = torch.zeros(len(examples), wanted, size), torch.zeros(len(examples), wanted, dtype=torch.bool)
        for row, example in enumerate(examples):
            never = self.data.never.get(example.query_id, frozenset({example.right_video_id}))
            nearest = [example.shown_video_id, *example.negative_ids]
            ids = choose_negatives(nearest, self.corpus_ids, never, wanted, self.negatives_rng)
            for column, video_id in enumerate(ids):
                vectors[row, column] = self.data.vectors[video_id]
                mask[row, column] = True
        return vectors, mask

    def _attention(self) -> AbstractContextManager[None]:
        return training_attention(self.accelerator.device, self.recipe.gradient_checkpointing)

    def _note(self, name: str, value: Tensor) -> None:
        self._metrics["train"][name].append(float(value.detach()))


class LogLines(TrainerCallback):
    """The trainer's logs as lines: the values whose names end in `shown`."""

    def __init__(self, log: Callable[[str], None], name: str = "stage 1", shown: str = "_loss") -> None:
        self.log_line, self.name, self.shown = log, name, shown
        self.lines: StepLines | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.lines = StepLines(self.log_line, self.name, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        values = {name: float(value) for name, value in (logs or {}).items() if name.endswith(self.shown)}
        if values and "train_runtime" not in (logs or {}) and self.lines:
            self.lines.note(state.global_step, values)


def curve_of(history: Sequence[Mapping[str, Any]]) -> list[CurvePoint]:
    """The trainer's log history as points, losses and rewards only."""
    skipped = {"step", "epoch", "train_runtime", "total_flos", "train_samples_per_second", "train_steps_per_second"}
    return [
        CurvePoint(int(entry["step"]), name, float(value))
        for entry in history
        for name, value in entry.items()
        if name not in skipped and isinstance(value, int | float)
    ]
