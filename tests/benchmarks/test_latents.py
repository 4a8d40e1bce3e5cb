"""The cached loop against the plain one: the four comparisons of `bench_latents`, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tests.benchmarks.bench_latents import PARTS
from tests.benchmarks.measuring import scaled


def compare(part: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.bench_latents", f"--part={part}", *arguments]
    subprocess.run(command, check=True)


@pytest.mark.parametrize("part", PARTS)
def test_the_cached_loop(part: str) -> None:
    compare(part, f"--queries={scaled(32)}", f"--batch={max(2, scaled(16))}")


@pytest.mark.parametrize("part", PARTS)
def test_the_cached_loop_of_a_model_of_2b_on_a_gpu(part: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    compare(part, "--device=cuda", "--size=2b", f"--queries={scaled(32)}")
