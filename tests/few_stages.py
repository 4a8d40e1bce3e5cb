"""The cheap stages of two methods, without what differs from others in nothing but the checkpoint it names."""

from __future__ import annotations

import dataclasses

from tests.cheap_stages import cheap_stages
from vsr1_core.configurations import NANO
from vsr1_core.stages.base import Stage

METHODS = ("sqr_sft", "videosearch_r1")
LEFT_OUT = ("fine_tuned", "hard_refine", "drop_above_positive", "verification_probe.sqr_sft")
START = dataclasses.replace(
    NANO,
    evaluation=dataclasses.replace(NANO.evaluation, methods=METHODS, num_turns=1, num_resamples=1),
    pool=dataclasses.replace(NANO.pool, num_matched=2, num_not_matched=3),
    retrieval=dataclasses.replace(NANO.retrieval, top_k=4, num_hard_negatives=2),
)


def stages() -> dict[str, Stage]:
    """Fresh ones: they hold nothing between builds."""
    return {name: stage for name, stage in cheap_stages().items() if not _is_left_out(name)}


def _is_left_out(name: str) -> bool:
    method = name.partition(".")[2]
    return name.startswith(LEFT_OUT) or bool(method and method not in METHODS)
