"""The cached loop against the plain one: the four comparisons of `bench_latents`, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tests.benchmarks.bench_latents import PARTS
from tests.benchmarks.measuring import scaled


def compare(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "tests.benchmarks.bench_latents", *arguments], check=True)


@pytest.mark.parametrize("part", PARTS)
def test_the_cached_loop(part: str) -> None:
    compare(f"--part={part}", f"--queries={scaled(32)}", f"--batch={max(2, scaled(16))}")


def test_the_cached_loop_of_a_model_of_2b_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    compare("--device=cuda", "--size=2b", f"--queries={scaled(32)}")
