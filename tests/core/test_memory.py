"""What passes take in memory: the formulas against measured peaks at reduced depth, and how they move."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from vsr1_core.models.memory import Learning, Passes
from vsr1_core.models.registry import model_size
from vsr1_core.models.sizes import ModelSize

SIZE = model_size("Qwen/Qwen3-VL-2B-Instruct")
LOWEST, HIGHEST = 0.6, 1.8
"""What a forecast may be of a measured peak. Kernels and allocators differ between processors."""


@pytest.fixture(scope="module")
def peaks() -> dict[str, tuple[float, float]]:
    environ = {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "tests.core.pass_peaks"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **environ})
    found: dict[str, tuple[float, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize("name", ["vision", "text", "all weights", "adapters"])
def test_a_forecast_peak_is_near_the_measured_one(peaks: dict[str, tuple[float, float]], name: str) -> None:
    measured, forecast = peaks[name]
    assert LOWEST < forecast / measured < HIGHEST, f"{measured / 2**20:.0f} MiB, forecast {forecast / 2**20:.0f} MiB"


def size() -> ModelSize:
    assert SIZE is not None
    return SIZE


def test_a_padded_batch_costs_its_longest_row() -> None:
    passes = Passes(size())
    assert passes.text([100, 1000]) == 2 * passes.text([1000])
    assert passes.cache([10]) == 10 * 2 * 28 * 2 * 8 * 128
    assert passes.decoding([1000], 256) > passes.text([1000]) + passes.cache([1256])


def test_a_long_video_alone_takes_a_part_and_its_input() -> None:
    passes, most = Passes(size()), float(1 << 28)
    patches, tokens = 25_088, 6_700  # 64 frames of 448 x 448 pixels
    assert passes.vision_in_parts(patches, most) == most + 4 * size().patch_values * patches
    assert passes.vision_in_parts(1_000, most) == passes.vision(1_000) < most
    assert passes.video_embedding([patches], [tokens], most) < passes.video_embedding([patches], [tokens]) / 2
    two = [patches] * 2, [tokens] * 2
    assert passes.video_embedding(*two, most) == passes.video_embedding(*two), "a batch is formed by the budget"


def test_adapters_need_a_fraction_of_what_all_weights_need() -> None:
    whole, adapters = Learning(size()), Learning(size(), lora_rank=32)
    assert whole.held == 12 * whole.num_learning
    assert adapters.num_adapters == 32 * 28 * (2 * (2048 + 2048) + 2 * (2048 + 1024) + 3 * (2048 + 6144))
    assert adapters.peak([3000], 150) < whole.peak([3000], 150) / 3


def test_every_term_moves_the_peak() -> None:
    base = Learning(size())
    peak = base.peak([3000], 150)
    assert base.peak([6000], 150) > peak, "longer prompts"
    assert base.peak([3000], 1500) > peak + 3 * 4 * 1350 * 151_936, "logits at the token limit"
    long = base.peak([30_000], 150)
    assert base.peak([30_000], 150, 1 << 30) == long + (1 << 30), "what else is held, where activations decide"
    assert replace(base, is_checkpointed=False).peak([3000], 150) > peak
    assert base.bf16_copies == 2 * base.size.text + 2 * (base.size.text - 151_936 * 2048)
    assert replace(base, lora_rank=8).bf16_copies == 2 * 2 * replace(base, lora_rank=8).num_adapters
    assert base.optimiser_temporaries == 4 * base.num_learning
    assert replace(base, on_cpu=True).optimiser_temporaries == 4 * 151_936 * 2048
    state, cache = 2048 * 28, 2 * 28 * 8 * 128
    assert base.continued([1000, 10]) == 2 * 1000 * max(2 * cache, 4 * state)
    assert base.continued([1000], by_answers=True) == 1000 * (2 + 4 / 2 + 2 / 2) * cache
    adapters = replace(base, lora_rank=32)
    assert adapters.continued([1000]) == 1000 * 2 * cache
    assert adapters.continued([1000], by_answers=True) == 1000 * 4 * cache
    assert adapters.peak([1], 1) == adapters.held + 4 * adapters.num_learning + adapters.optimiser_temporaries
