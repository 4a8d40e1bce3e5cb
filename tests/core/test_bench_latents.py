"""`make bench` runs: each comparison at its smallest. What it measures is not judged here."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from tests.benchmarks import bench_latents, toy_corpus
from vsr1_core.configurations import TINY
from vsr1_core.toy_recipe import ToyRecipe

SIZES = {"batch": 2, "plain-rows": 1, "queries": 2, "plain-queries": 1, "max-new-tokens": 4}
SMALLEST = [f"--{name}={value}" for name, value in {**SIZES, "repeats": 1, "threads": 1}.items()]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("part", bench_latents.PARTS)
def test_each_comparison_prints_a_ratio(
    part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        toy_corpus, "TINY", dataclasses.replace(TINY, toy=ToyRecipe(num_train=16, num_val=4, num_test=4))
    )
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # it is for the whole process
    assert bench_latents.main([*SMALLEST, "--part", part]) == 0
    printed = capsys.readouterr().out
    ratios = [float(ratio) for ratio in re.findall(r" (\d+\.\d\d)x ", printed)]
    assert len(ratios) == {"latents": 3}.get(part, 1)
    assert min(ratios) > 0
