"""Two processes train what one trains, and end with the same weights."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.core import test_sft, train_run
from vsr1_core.stages import launch
from vsr1_core.stages.execution import Execution
from vsr1_core.training.processes import share_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    module, ours = "vsr1_core.stages.launched", "tests.core.train_run"
    command = [ours if part == module else part for part in launch._command(2, tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for stage in ("sft", "grpo", "base"):
        first, second = (load_file(tmp_path / f"{stage}-{process}.safetensors") for process in range(2))
        assert first.keys() == second.keys()
        assert all(first[name].equal(second[name]) for name in first)
    world = test_sft.make_world()
    before = weights_of(world.policy.model)
    world.train(train_run.SFT, tmp_path / "trainer")
    assert_same_training(before, weights_of(world.policy.model), load_file(tmp_path / "sft-0.safetensors"))
    unmoved = replace(train_run.BASE, vision_pretraining_steps=0, contrastive_steps=0)
    alone = weights_of(train_run.base_model())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_run, "BASE", unmoved)
        before = weights_of(train_run.base_model())
    assert_same_training(before, alone, load_file(tmp_path / "base-0.safetensors"))


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same_training(before: dict[str, Tensor], alone: dict[str, Tensor], shared: dict[str, Tensor]) -> None:
    """The sum of two halves differs from the whole by rounding only, which the optimisers make larger where gradients
    are nearly 0."""
    assert max(float((alone[name] - before[name]).abs().max()) for name in before) > 1e-3
    assert distance(alone, shared) < 0.02 * distance(alone, before)


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return float(torch.cat([(a[name] - b[name]).flatten() for name in a]).norm())


def test_a_step_that_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert share_of(3, "rows") == 3
    monkeypatch.setattr(PartialState(), "num_processes", 2, raising=False)
    with pytest.raises(ValueError, match="a step of 3 rows cannot be shared by 2 processes; set VSR1_PROCESSES"):
        share_of(3, "rows")


def test_what_a_process_logs_is_passed_on_and_the_rest_is_kept_for_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines: list[str] = []
    program = "print('vsr1> stage 1: step 3'); print('noise'); raise SystemExit(3)"
    monkeypatch.setattr(launch, "_command", lambda *_: [sys.executable, "-c", program])
    found = launch._run_launched(tmp_path, Execution(log=lines.append))
    assert found == (3, "noise\n")
    assert lines == ["stage 1: step 3"]
