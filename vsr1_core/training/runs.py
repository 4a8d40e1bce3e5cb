"""How a training runs, and how it continues after a stop. What it learns is in `training.sft` and `training.grpo`.

A stopped training that is started again in the same folder gives the weights of one that never stopped. Transformers
saves weights, optimiser, schedule and its own random states; our random states are saved here (`own_state`). The order
of the rows is drawn before the first step, so no sampler has a state.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import TrainerCallback

from vsr1_core.rows.files import read_json, write_json
from vsr1_core.rows.progress import Progress

TRAINER_STATE = "trainer_state.json"
"""The file that transformers writes last: a checkpoint folder without it is not complete."""


@dataclass(frozen=True)
class CurvePoint:
    """One logged value of a training run."""

    step: int
    name: str
    value: float


@dataclass(frozen=True)
class TrainingRun:
    """Where a training keeps its state, and where it logs. None of this changes what is learned."""

    folder: Path
    """A folder that belongs to this training alone."""
    save_steps: int = 0
    """The state is saved every so many steps; 0 saves none."""
    trackers: tuple[str, ...] = ()
    """Names of trackers for TRL (`report_to`), such as trackio, tensorboard or wandb."""
    name: str = "training"
    """The name of this training in logs and trackers."""
    log: Callable[[str], None] = lambda line: None

    def arguments(self, logging_steps: int) -> dict[str, Any]:
        """Arguments for the configurations of TRL. State is saved right after values are logged, so that no value is
        lost."""
        save_steps = -(-self.save_steps // logging_steps) * logging_steps
        return {
            "output_dir": str(self.folder),
            "logging_steps": logging_steps,
            "save_strategy": "steps" if save_steps else "no",
            "save_steps": max(1, save_steps),
            "save_total_limit": 1,
            "restore_callback_states_from_checkpoint": True,  # the patience of early stopping
            "report_to": list(self.trackers) or "none",
            "run_name": self.name,
            "project": "vsr1",
            "use_cpu": not torch.cuda.is_available(),
            "disable_tqdm": True,
            "remove_unused_columns": False,
            "dataloader_pin_memory": False,
        }


def kept_state(folder: Path) -> Path | None:
    """The newest complete checkpoint of a training that was stopped in `folder`; incomplete ones are ignored."""
    found = [path for path in folder.glob("checkpoint-*") if _is_whole(path)]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _is_whole(path: Path) -> bool:
    try:
        return bool(json.loads((path / TRAINER_STATE).read_text()))
    except (OSError, ValueError):
        return False


def drop_state(folder: Path) -> None:
    """Remove the saved state of all trainings below `folder`. Files that trackers wrote there stay."""
    for path in folder.glob("*/checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in [*folder.glob("*"), folder]:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def training_order(num_rows: int, rows_a_step: int, num_steps: int, seed: int) -> list[int]:
    """The order in which steps read the rows: shuffled passes over all rows, one after another.

    With `num_steps` 0 there is one pass. Otherwise the rows at the end of a pass that do not fill a step are left out,
    so that no row occurs twice in a step; if there are fewer rows than a step takes, rows are repeated.
    """
    rng = random.Random(f"{seed}/order")
    if not num_steps:
        return rng.sample(range(num_rows), num_rows)
    whole = num_rows - num_rows % rows_a_step if num_rows > rows_a_step else num_rows
    order: list[int] = []
    while len(order) < num_steps * rows_a_step:
        order += rng.sample(range(num_rows), num_rows)[:whole]
    return order[: num_steps * rows_a_step]


def shared_order(is_first_kind: Sequence[bool], share: float, rows_a_step: int, num_steps: int, seed: int) -> list[int]:
    """As `training_order`, but in each step a `share` of the rows is of the first kind, with at least one row of each
    kind. If there is only one kind, or a step has one row, this is `training_order`."""
    kinds = [[i for i, first in enumerate(is_first_kind) if first is kind] for kind in (True, False)]
    if not all(kinds) or rows_a_step < 2:
        return training_order(len(is_first_kind), rows_a_step, num_steps, seed)
    num_first = min(max(1, round(share * rows_a_step)), rows_a_step - 1)
    num_steps = num_steps or -(-len(is_first_kind) // rows_a_step)
    sizes = (num_first, rows_a_step - num_first)
    drawn = [
        [rows[i] for i in training_order(len(rows), size, num_steps, seed)]
        for rows, size in zip(kinds, sizes, strict=True)
    ]
    return [
        row
        for step in range(num_steps)
        for rows, size in zip(drawn, sizes, strict=True)
        for row in rows[step * size : (step + 1) * size]
    ]


NOISE = 1e-6
"""Relative size of the noise on first weights: some eight units in the last place of a float32."""


def add_noise(parameters: Iterable[nn.Parameter], draw: int) -> None:
    """Multiply each weight by 1 + NOISE * x with a normal x, drawn with the seed `draw`; nothing if `draw` is 0.

    It stands for the rounding of another processor, which decides the course of a training in the same way.
    """
    if not draw:
        return
    generator = torch.Generator().manual_seed(draw)
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(1 + NOISE * torch.randn(parameter.shape, generator=generator).to(parameter))


def _own_state_path(checkpoint: str) -> Path:
    """The file of this process in the folder of a checkpoint."""
    return Path(checkpoint) / f"own_state_{PartialState().process_index}.json"


class Resumable:
    """A mixin with which a Trainer of transformers continues exactly where it was stopped; it comes before the Trainer
    in the list of base classes.

    rng, generator: the generators of negatives and samples whose state lasts from step to step. Subclasses add to
    `own_state` what else has to be saved. A training can only continue with the number of processes with which it
    began; otherwise it raises an error that says so.
    """

    rng: random.Random | None = None
    generator: torch.Generator | None = None

    def run(self, run: TrainingRun) -> None:
        """Train to the end, from the saved state in the run's folder if there is one. Raises ValueError if that state
        is of another number of processes."""
        state = kept_state(run.folder)
        if state is not None:
            kept_by = len(list(state.glob("own_state_*.json")))
            if kept_by != (processes := PartialState().num_processes):
                raise ValueError(
                    f"{run.name} was stopped at {state} with {kept_by} processes and cannot continue with {processes}; "
                    f"set VSR1_PROCESSES={kept_by}, or remove that folder to start again"
                )
            run.log(f"{run.name}: continues from step {state.name.rpartition('-')[2]}")
        self.train(resume_from_checkpoint=str(state) if state else None)  # type: ignore[attr-defined]

    def own_state(self) -> dict[str, Any]:
        """The states of `rng` and `generator`, in JSON types."""
        generator = None if self.generator is None else self.generator.get_state().tolist()
        return {"rng": self.rng and self.rng.getstate(), "generator": generator}

    def set_own_state(self, state: dict[str, Any]) -> None:
        if self.rng is not None:
            version, numbers, gauss = state["rng"]
            self.rng.setstate((version, tuple(numbers), gauss))
        if self.generator is not None:
            self.generator.set_state(torch.tensor(state["generator"], dtype=torch.uint8))

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)  # type: ignore[misc]
        write_json(_own_state_path(output_dir), self.own_state())

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)  # type: ignore[misc]
        if checkpoint is not None:
            self.set_own_state(read_json(_own_state_path(checkpoint)))

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """No-op: the folder is deleted once the weights are committed."""


class LogLines(TrainerCallback):
    """Writes the logs of a trainer as lines, with the values whose names end in one of `shown`."""

    def __init__(self, log: Callable[[str], None], name: str, shown: Sequence[str]) -> None:
        self.log_line, self.name, self.shown = log, name, tuple(shown)
        self.progress: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress = Progress(self.log_line, self.name, state.max_steps, "steps", state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        values = {name: float(value) for name, value in (logs or {}).items() if name.endswith(self.shown)}
        if values and "train_runtime" not in (logs or {}) and self.progress:
            self.progress.note(state.global_step, values)
