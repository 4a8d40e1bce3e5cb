"""What the trainers of both stages share: which parameters step with which learning rate, attention, logs, and how a
training begins and ends. What is learned is in `training.sft` and `training.grpo`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PrinterCallback

from vsr1_core.models.protocols import PolicyModel
from vsr1_core.training.attention_backend import training_attention
from vsr1_core.training.lora import Adapters
from vsr1_core.training.muon import muon_with_adamw
from vsr1_core.training.optimizers import adamw
from vsr1_core.training.processes import SharedSteps
from vsr1_core.training.runs import CurvePoint, LogLines, Resumable, TrainingRun


class PolicyTrainer(Resumable, SharedSteps):
    """A mixin for a trainer of TRL that trains a policy; it comes before that trainer in the list of base classes.

    policy: the policy that learns. recipe: a recipe with `lr`, `refine_lr`, `optimizer`, `weight_decay` and
    `gradient_checkpointing`.
    adapters: of the policy's text model, if only they learn. shown: the endings of the names that the log shows.
    """

    policy: PolicyModel
    recipe: Any
    adapters: Adapters | None = None
    shown: ClassVar[tuple[str, ...]] = ()

    def fit(self, run: TrainingRun) -> list[CurvePoint]:
        """Train to the end, from the state in the run's folder if there is one. Returns the logged values; the policy
        has its adapters merged, and is in evaluation mode. However it ends, the model checkpoints no activations and
        has its own `forward`, as another recipe may train it next."""
        self.remove_callback(PrinterCallback)
        self.add_callback(LogLines(run.log, run.name, self.shown))
        try:
            self.run(run)
        finally:
            self.policy.model.activation_checkpointing_disable()
            self.policy.model.__dict__.pop("forward", None)  # remove the wrapper of TRL and accelerate
        if self.adapters:
            self.adapters.merge()
        self.policy.model.eval()
        return curve_of(self.state.log_history)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimiser of the recipe, with a learning rate of their own for the soft query modules."""
        groups = parameter_groups(self.policy, self.recipe.lr, self.recipe.refine_lr)
        if self.recipe.optimizer == "muon":
            self.optimizer = muon_with_adamw(groups, self.recipe.weight_decay, self.policy.model)
        else:
            self.optimizer = adamw(groups, self.recipe.weight_decay, self.recipe.optimizer, self.policy.model)
        return self.optimizer

    def _attention(self) -> AbstractContextManager[None]:
        return training_attention(self.accelerator.device, self.recipe.gradient_checkpointing)

    def _note(self, name: str, value: Tensor | float) -> None:
        self._metrics["train"][name].append(float(torch.as_tensor(value).detach()))


def parameter_groups(policy: PolicyModel, lr: float, refine_lr: float) -> list[dict[str, Any]]:
    """The trained parameters as groups for an optimiser: P, R and A have a learning rate of their own."""
    refine = {id(p) for p in policy.model.refine_parameters}
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in refine], "lr": lr},
        {"params": [p for p in trained if id(p) in refine], "lr": refine_lr},
    ]
    return [group for group in groups if group["params"]]


def curve_of(history: Sequence[Mapping[str, Any]]) -> list[CurvePoint]:
    """The log history of a trainer as curve points, without its times and counters."""
    skipped = {"step", "epoch", "train_runtime", "total_flos", "train_samples_per_second", "train_steps_per_second"}
    return [
        CurvePoint(int(entry["step"]), name, float(value))
        for entry in history
        for name, value in sorted(entry.items())  # in a resumed training, entries have another order
        if name not in skipped and isinstance(value, int | float)
    ]
