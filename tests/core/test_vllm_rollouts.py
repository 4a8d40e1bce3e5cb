"""vLLM itself, in the process that trains: it gets the weights of every step, and writes with them what the loop does.

`test_stage2_at_size` has the same checks with a stand-in. These need vLLM's CPU build: on a GPU, vLLM computes in
bfloat16 where it writes for a training. `-s` shows the differences.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.core.fake_vllm import SETTINGS, InProcessWriter
from tests.core.test_grpo import RECIPE, World, let_some_match, make_world
from tests.core.test_stage2_at_size import watch_log_probs
from tests.core.test_vllm_writer import config_of_vllm, device_of_vllm
from vsr1_core.models.prompts import Prompt
from vsr1_core.models.protocols import Decoded
from vsr1_core.models.qwen3_vl.loaded import LoadedPolicy
from vsr1_core.models.qwen3_vl.vision import VideoFeatures
from vsr1_core.models.qwen3_vl.vllm_writer import open_writer
from vsr1_core.search.episodes import prompts_of
from vsr1_core.training import lora

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs the CPU build of vLLM"),
]
EXACT = 1e-5


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world of stage 2 whose policy's text vLLM writes."""
    device = device_of_vllm(monkeypatch)
    if device != "cpu":
        pytest.skip("compares float32 numbers, which vLLM makes on a CPU alone")
    let_some_match(monkeypatch)
    made = make_world(config=config_of_vllm())
    made.policy = made.policy.with_writer(open_writer(made.policy, tmp_path / "plain", 1024, learns=True))
    yield made
    assert made.policy.writer is not None
    made.policy.writer.close()


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_vllm_samples_from_the_weights_of_every_step(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lora_rank: int
) -> None:
    apart = watch_log_probs(monkeypatch)
    recipe = replace(RECIPE, steps=3, queries_per_step=1, lora_rank=lora_rank, lr=1e-2)
    curve = world.train(recipe, tmp_path / "run").curve
    print("log-probabilities of each step are apart by at most", apart)
    assert len(apart) == 3
    assert max(apart) < EXACT
    assert {p.value for p in curve if p.name == "clip_fraction"} == {0.0}


def test_after_a_handover_greedy_texts_are_those_of_the_new_weights(world: World) -> None:
    rows = asked(world)
    before = written(world.policy, *rows)
    compare(before, InProcessWriter(world.policy).write(*rows, SETTINGS))
    with torch.no_grad():
        for name, parameter in world.policy.model.named_parameters():
            if "language_model" in name:  # every kind of layer: vLLM has another form for each
                parameter.mul_(1.1)
    new = InProcessWriter(world.policy).write(*rows, SETTINGS)
    stale = written(world.policy, *rows)
    assert [r.log_probs for r in stale] == [r.log_probs for r in before]
    assert furthest(stale, new) > 0.01, "or nothing would show"
    assert world.policy.writer is not None
    world.policy.writer.take_weights(lora.merged_weights(world.policy.model))
    compare(written(world.policy, *rows), new)


def asked(world: World) -> tuple[list[Prompt], list[VideoFeatures]]:
    features = world.features.get(sorted(world.durations_s))
    queries = [world.prompts[place % 2].query for place in range(len(features))]
    return prompts_of(world.policy, queries, [f.layout for f in features]), features


def written(policy: LoadedPolicy, prompts: list[Prompt], features: list[VideoFeatures]) -> list[Decoded]:
    assert policy.writer is not None
    return policy.writer.write(prompts, features, SETTINGS)


def compare(rows: list[Decoded], loop: list[Decoded]) -> None:
    assert [row.token_ids for row in rows] == [row.token_ids for row in loop]
    print("greedy log-probabilities are apart by at most", furthest(rows, loop))
    assert furthest(rows, loop) < EXACT


def furthest(rows: list[Decoded], others: list[Decoded]) -> float:
    """By how much the log-probabilities of tokens differ at most, as far as the texts are of one length."""
    pairs = zip(rows, others, strict=True)
    return max(abs(a - b) for one, two in pairs for a, b in zip(one.log_probs, two.log_probs, strict=False))
