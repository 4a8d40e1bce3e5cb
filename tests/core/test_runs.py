"""A training that was stopped and goes on gives the weights of one that never stopped; the order of its rows."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.core import test_grpo, test_sft
from vsr1_core.training import sft
from vsr1_core.training.examples import choose_negatives
from vsr1_core.training.grpo import EpisodeGRPOTrainer, train_grpo
from vsr1_core.training.runs import NOISE, TrainingRun, add_noise, drop_state, kept_state, shared_order, training_order
from vsr1_core.training.sft import RefineSFTTrainer, train_sft

Train = Callable[[Any, Any, TrainingRun], Any]


class Stopped(BaseException):
    """As KeyboardInterrupt: nothing catches it."""


def stop_in_step(monkeypatch: pytest.MonkeyPatch, trainer: type, number: int) -> None:
    """The training of `trainer`s stops when it begins its step `number`, counted from 1."""
    step = trainer.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step + 1 == number:
            raise Stopped
        return step(self, *args, **kwargs)

    monkeypatch.setattr(trainer, "training_step", training_step)


def run_sft(world: Any, recipe: Any, run: TrainingRun) -> Any:
    return train_sft(world.policy, world.embedder, world.data, recipe, run)


def run_grpo(world: Any, recipe: Any, run: TrainingRun) -> Any:
    rest = (world.index, world.features, world.vectors, world.durations_s, {}, recipe, run)
    return train_grpo(world.policy, world.embedder, world.prompts, *rest)


SFT = replace(test_sft.RECIPE, steps=5, num_negatives=5)
"""Two passes and a half, with negatives that are drawn."""
CASES: dict[str, tuple[Callable[[], Any], type, Train, Any]] = {
    "stage 1": (test_sft.make_world, RefineSFTTrainer, run_sft, SFT),
    "stage 1 in bf16, accumulating": (
        test_sft.make_world,
        RefineSFTTrainer,
        run_sft,
        replace(SFT, bf16=True, batch_size=2, gradient_accumulation=2),
    ),
    "stage 1 with adapters": (test_sft.make_world, RefineSFTTrainer, run_sft, replace(SFT, lora_rank=2)),
    "stage 1 with Muon": (
        test_sft.make_world,
        RefineSFTTrainer,
        run_sft,
        replace(SFT, optimizer="muon", all_negatives=True, first_latents="words"),
    ),
    "stage 1 with early stopping": (
        test_sft.make_world,
        RefineSFTTrainer,
        run_sft,
        replace(SFT, early_stop_patience=2, validation_steps=1, validation_share=0.4),
    ),
    "stage 2": (
        test_grpo.make_world,
        EpisodeGRPOTrainer,
        run_grpo,
        replace(test_grpo.RECIPE, steps=5, queries_per_step=1),
    ),
    "stage 2 with adapters": (
        test_grpo.make_world,
        EpisodeGRPOTrainer,
        run_grpo,
        replace(test_grpo.RECIPE, steps=4, queries_per_step=1, lora_rank=2),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_stopped_training_goes_on_as_if_it_had_not_been_stopped(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_world, trainer, train, recipe = CASES[case]
    monkeypatch.setattr(sft, "LOGGING_STEPS", 1)
    whole, stopped, resumed = make_world(), make_world(), make_world()
    expected = train(whole, recipe, TrainingRun(tmp_path / "whole"))
    lines: list[str] = []
    run = TrainingRun(tmp_path / "run", save_steps=1, log=lines.append)
    with monkeypatch.context() as patch:
        stop_in_step(patch, trainer, 4)
        with pytest.raises(Stopped):
            train(stopped, recipe, run)
    found = train(resumed, recipe, run)
    assert "training: continues from step 3" in lines
    weights = resumed.policy.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in whole.policy.model.state_dict().items())
    assert without_times(found) == without_times(expected)


def without_times(result: Any) -> Any:
    if isinstance(result, list):
        return [p for p in result if not any(word in p.name for word in ("time", "second", "runtime", "train_loss"))]
    return without_times(result.curve), result.episodes


@pytest.mark.slow
def test_a_finished_training_that_was_not_committed_takes_no_further_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, again = test_sft.make_world(), test_sft.make_world()
    run = TrainingRun(tmp_path, save_steps=10)
    run_sft(first, SFT, run)
    stop_in_step(monkeypatch, RefineSFTTrainer, 1)
    run_sft(again, SFT, run)
    weights = again.policy.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in first.policy.model.state_dict().items())


@pytest.mark.slow
def test_the_patience_of_early_stopping_survives_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is lowest in step 1, and lower still in step 5, which a patience of 3 never reaches."""

    def evaluate(self: RefineSFTTrainer, *_: Any, **__: Any) -> dict[str, float]:
        found = {"eval_loss": {1: 1.0, 5: 0.5}.get(self.state.global_step, 2.0)}
        self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    monkeypatch.setattr(RefineSFTTrainer, "evaluate", evaluate)
    recipe = replace(SFT, steps=6, early_stop_patience=3, validation_steps=1, validation_share=0.4)
    whole, stopped = test_sft.make_world(), test_sft.make_world()
    expected = run_sft(whole, recipe, TrainingRun(tmp_path / "whole"))
    assert max(point.step for point in expected) == 4
    run = TrainingRun(tmp_path / "run")
    with monkeypatch.context() as patch:
        stop_in_step(patch, RefineSFTTrainer, 4)
        with pytest.raises(Stopped):
            run_sft(stopped, recipe, run)
    found = run_sft(stopped, recipe, run)
    weights = stopped.policy.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in whole.policy.model.state_dict().items())
    assert max(point.step for point in found) == 4


def test_no_state_is_saved_while_values_wait_to_be_logged(tmp_path: Path) -> None:
    for save_steps, validates, validation_steps in ((7, False, 15), (0, True, 15), (0, True, 50)):
        recipe = replace(SFT, validation_steps=validation_steps)
        arguments = sft._arguments(recipe, TrainingRun(tmp_path, save_steps), validates)
        assert arguments.save_steps % arguments.logging_steps == 0
    assert arguments.logging_steps == sft.LOGGING_STEPS


def test_a_half_written_state_is_passed_over_and_dropped_with_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "version"
    assert kept_state(folder) is None
    for step, text in ((9, "{}"), (20, '{"global_step": 20}'), (100, '{"global_st'), (110, None)):
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        if text is not None:
            (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(text)
    found = kept_state(folder)
    assert found is not None
    assert found.name == "checkpoint-20"
    (tmp_path / "other" / "runs").mkdir(parents=True)
    drop_state(tmp_path)
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["other", "other/runs"]


def test_a_share_of_each_step_is_of_the_first_kind() -> None:
    kinds = [i % 5 == 0 for i in range(20)]
    order = shared_order(kinds, 0.5, 4, 30, seed=1)
    steps = [order[i : i + 4] for i in range(0, 120, 4)]
    assert all(len(set(step)) == 4 and sum(kinds[i] for i in step) == 2 for step in steps)
    assert set(order) == set(range(20))
    assert order != shared_order(kinds, 0.5, 4, 30, seed=2)
    assert len(shared_order(kinds, 0.01, 4, 0, seed=1)) == 20
    assert sum(kinds[i] for i in shared_order(kinds, 0.01, 4, 1, seed=1)) == 1
    assert shared_order([False] * 5, 0.5, 2, 3, seed=1) == training_order(5, 2, 3, seed=1)


def test_every_pass_sees_every_row_once_and_no_step_sees_one_twice() -> None:
    assert sorted(training_order(10, 4, 0, seed=1)) == list(range(10))
    order = training_order(10, 5, 6, seed=1)
    assert [sorted(order[i : i + 10]) for i in (0, 10, 20)] == [list(range(10))] * 3
    assert order[:10] != order[10:20]
    steps = [training_order(10, 4, 50, seed=1)[i : i + 4] for i in range(0, 200, 4)]
    assert all(len(set(step)) == 4 for step in steps)
    assert {row for step in steps for row in step} == set(range(10))
    assert training_order(10, 4, 3, seed=1) == training_order(10, 4, 50, seed=1)[:12]
    assert training_order(10, 4, 3, seed=2) != training_order(10, 4, 3, seed=1)
    assert len(training_order(3, 8, 2, seed=1)) == 16


def test_as_many_negatives_are_chosen_as_there_are_whatever_the_corpus_lacks() -> None:
    never = frozenset({"a", "not embedded", "nor this"})
    assert sorted(choose_negatives(["b"], list("abcde"), never, 4, random.Random(0))) == list("bcde")
    assert sorted(choose_negatives(["b"], list("abcde"), never, 9, random.Random(0))) == list("bcde")
    assert choose_negatives(["b", "a", "c"], list("abcde"), never, 2, random.Random(0)) == ["b", "c"]


def test_noise_is_relative_small_and_the_same_for_the_same_draw() -> None:
    def noisy(draw: int) -> torch.Tensor:
        weight = torch.nn.Parameter(torch.linspace(0.1, 10, 1000))
        add_noise([weight], draw)
        return weight.detach()

    plain, first = noisy(0), noisy(1)
    assert torch.equal(plain, torch.linspace(0.1, 10, 1000))
    assert torch.equal(first, noisy(1))
    assert not torch.equal(first, noisy(2))
    assert float(((first - plain) / plain).std()) == pytest.approx(NOISE, rel=0.2)
