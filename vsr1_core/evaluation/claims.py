"""Decides whether the claims of the paper hold in an experiment. Each claim names its methods and its metric."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vsr1_core.evaluation.curves import SOFT_TOKENS, TURNS, Point
from vsr1_core.evaluation.experiment import ROUNDING, Estimate, Experiment


@dataclass(frozen=True)
class Claim:
    """One claim: what should hold, what was found, and whether it holds."""

    text: str
    value: float
    low: float
    """Lower end of the interval over queries."""
    high: float
    holds: bool | None
    """None if it cannot be judged."""
    unit: Literal["share", "gain", "tokens"] = "share"
    """How the numbers are shown; a gain is relative."""


def claims(experiment: Experiment, num_soft_tokens: int) -> list[Claim]:
    """Check the claims of the paper on the means over the seeds, as far as the reported methods allow it.

    Args:
        experiment: The runs; a claim about a method that they lack is left out.
        num_soft_tokens: Number of soft tokens that each turn brings.
    """
    return [
        *_retrieval_claims(experiment),
        *_moment_claims(experiment),
        *_hard_refinement_claims(experiment),
        *_curve_claims(experiment, num_soft_tokens),
    ]


def _claim(text: str, found: Estimate, holds: bool, unit: Literal["share", "gain", "tokens"] = "share") -> Claim:
    is_known = not np.isnan(found.value)
    return Claim(text, found.value, *found.interval, bool(holds) if is_known else None, unit)


def _above(value: float, limit: float = 0.0) -> bool:
    """Whether a mean is above `limit` by more than rounding."""
    return value > limit + ROUNDING


def _at_least(value: float, limit: float = 0.0) -> bool:
    """Whether a mean is `limit` or more, whatever rounding makes of equal numbers."""
    return value >= limit - ROUNDING


def _retrieval_claims(e: Experiment) -> Iterator[Claim]:
    for method, name in (("sqr_sft", "stage 1"), ("videosearch_r1", "stage 2")):
        if e.has(method):
            gain = e.estimate(method, "recall_at_1").over(e.estimate(method, "first_recall_at_1"))
            text = f"SQR after {name} lifts R@1 over the first ranking by at least 60 %, interval above 0"
            yield _claim(text, gain, _at_least(gain.value, 0.6) and _above(gain.interval[0]), "gain")


def _moment_claims(e: Experiment) -> Iterator[Claim]:
    def vcmr(method: str) -> Estimate:
        return e.estimate(method, "vcmr_0.5")

    if e.has("fine_tuned", "zero_shot"):
        found = vcmr("fine_tuned") - vcmr("zero_shot")
        yield _claim("VCMR: fine-tuned above zero-shot", found, _above(found.value))
    if e.has("sqr_sft", "fine_tuned"):
        found = vcmr("sqr_sft") - vcmr("fine_tuned")
        yield _claim("VCMR: stage 1 above fine-tuned", found, _above(found.value))
    if e.has("videosearch_r1", "sqr_sft"):
        found = vcmr("videosearch_r1") - vcmr("sqr_sft")
        yield _claim("VCMR: stage 2 not below stage 1", found, _at_least(found.value))
    if e.has("videosearch_r1", "fine_tuned"):
        found = vcmr("videosearch_r1").over(vcmr("fine_tuned"))
        yield _claim("VCMR: stage 2 above fine-tuned by at least 25 %", found, _at_least(found.value, 0.25), "gain")
    if e.has("videosearch_r1"):
        found = e.estimate("videosearch_r1", "verification_accuracy")
        yield _claim("Verification accuracy of stage 2 at least 85 %", found, _at_least(found.value, 0.85))
        found = e.estimate("videosearch_r1", "grounding_0.5")
        yield _claim(
            "Grounding IoU 0.5 of stage 2, accepted right videos, at least 70 %", found, _at_least(found.value, 0.7)
        )


def _hard_refinement_claims(e: Experiment) -> Iterator[Claim]:
    if not e.has("sqr_sft", "hard_refine"):
        return
    found = e.estimate("sqr_sft", "recall_at_1") - e.estimate("hard_refine", "recall_at_1")
    yield _claim("R@1: soft refinement (stage 1) not below hard refinement", found, _at_least(found.value))
    spent = [
        e.estimate(method, "num_text_tokens") + e.estimate(method, "num_latent_tokens")
        for method in ("hard_refine", "sqr_sft")
    ]
    saved = spent[0] - spent[1]
    yield _claim(
        "Soft refinement generates fewer tokens per query than hard refinement", saved, _above(saved.value), "tokens"
    )


def _curve_claims(e: Experiment, num_soft_tokens: int) -> Iterator[Claim]:
    method = next((name for name in ("videosearch_r1", "sqr_sft") if e.has(name)), None)
    if method is None:
        return

    def at(curve: str, x: int, metric: str) -> Estimate:
        return e.estimate(method, Point(curve, x, metric).name)

    points = {0, num_soft_tokens // 2, num_soft_tokens} if num_soft_tokens > 0 else ()
    recall = {x: at(SOFT_TOKENS, x, "recall_at_1") for x in points}
    if recall:
        found = recall[num_soft_tokens] - recall[0]
        yield _claim(f"R@1 with {num_soft_tokens} soft tokens above R@1 with 0", found, _above(found.value))
    if (half := num_soft_tokens // 2) > 0:
        found = recall[num_soft_tokens] - recall[half]
        yield _claim(f"R@1 with {num_soft_tokens} soft tokens not below R@1 with {half}", found, _at_least(found.value))
    names = next(iter(e.runs.values()))[method].names
    turns = [t for t in (1, 2, 3) if Point(TURNS, t, "vcmr_0.5").name in names]
    vcmr = [at(TURNS, turn, "vcmr_0.5") for turn in turns]
    if len(vcmr) > 1:
        found = vcmr[1] - vcmr[0]
        yield _claim("VCMR rises from turn 1 to turn 2", found, _above(found.value))
    if len(vcmr) > 2:
        found = vcmr[2] - vcmr[1]
        yield _claim("VCMR is flat from turn 2 to turn 3 (0 in the interval)", found, not _above(found.interval[0]))
