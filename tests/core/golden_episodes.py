"""Six queries whose metrics are worked out by hand, and the parts that such episodes are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fake_results import moments_frame, predictions_frame

from vsr1_core.evaluation.episodes import Episodes, load_episodes
from vsr1_core.evaluation.metrics import metrics_of, score
from vsr1_core.evaluation.scores import values


def turn(number: int, video: str, decision: str, *, rank: int = 1, span: Any = None, probability: Any = None) -> dict:
    start, end = span if span else (None, None)
    return {
        "turn": number,
        "video_id": video,
        "decision": decision,
        "rank": rank,
        "start_s": start,
        "end_s": end,
        "matched_probability": probability,
        "num_text_tokens": 10,
        "num_latent_tokens": 8,
    }


def prediction(query_id: str, turns: list[dict], first_rank: int | None = 1, **changes: Any) -> dict:
    last = turns[-1]
    row = {name: last[name] for name in ("video_id", "decision", "rank", "start_s", "end_s")}
    tokens = {name: sum(t[name] for t in turns) for name in ("num_text_tokens", "num_latent_tokens")}
    best = {f"best_{name}": last[name] for name in ("video_id", "start_s", "end_s") if last["decision"] == "matched"}
    return {"query_id": query_id, "first_rank": first_rank, "turns": turns, **row, **tokens, **best, **changes}


def moment(query_id: str, start: float = 0.0, end: float = 10.0) -> dict:
    return {"query_id": query_id, "video_id": f"video_of_{query_id}", "start_s": start, "end_s": end}


def episodes_of(moments: list[dict], predictions: list[dict]) -> Episodes:
    return load_episodes(moments_frame(moments), predictions_frame(predictions))


def ranked(ranks: Sequence[int | None]) -> Episodes:
    """One episode per rank, in which the right video has that rank first and last."""
    ids = [f"{i:04d}" for i in range(len(ranks))]
    rows = [prediction(i, [turn(1, "x", "unknown")], first_rank=r, rank=r) for i, r in zip(ids, ranks, strict=True)]
    return episodes_of([moment(i) for i in ids], rows)


def values_of(moments: list[dict], predictions: list[dict]) -> dict[str, float]:
    return values(score(episodes_of(moments, predictions)))


# Six queries whose metrics are worked out by hand below.
GOLDEN_MOMENTS = [moment(q) for q in "abcdef"]
GOLDEN_PREDICTIONS = [
    # a: right at once, IoU 0.8
    prediction("a", [turn(1, "video_of_a", "matched", span=(0, 8), probability=0.9)]),
    # b: a wrong video rejected, then right, IoU 0.4
    prediction(
        "b",
        [
            turn(1, "other", "not_matched", rank=4, probability=0.1),
            turn(2, "video_of_b", "matched", span=(6, 10), probability=0.8),
        ],
        first_rank=4,
        num_query_tokens=6,
    ),
    # c: a wrong video accepted
    prediction("c", [turn(1, "other", "matched", rank=7, span=(0, 10), probability=0.7)], first_rank=7),
    # d: right video rejected twice; third turn unknown; the best answer is the right video with a span of IoU 0.6
    prediction(
        "d",
        [
            turn(1, "video_of_d", "not_matched", probability=0.2),
            turn(2, "video_of_d", "not_matched", probability=0.45),
            turn(3, "other", "unknown", rank=12),
        ],
        best_video_id="video_of_d",
        best_start_s=0,
        best_end_s=6,
    ),
    # e: failed
    {"query_id": "e", "status": "failed", "error": "cannot decode", "rank": 1, "first_rank": 1},
    # f has no row at all
]
GOLDEN = {
    "first_recall_at_1": 2 / 6,
    "first_recall_at_5": 3 / 6,
    "first_recall_at_10": 4 / 6,
    "first_recall_at_100": 4 / 6,
    **dict.fromkeys(("segment_recall_at_1", "segment_recall_at_5", "segment_recall_at_10"), float("nan")),
    "recall_at_1": 2 / 6,
    "recall_at_5": 2 / 6,
    "recall_at_10": 3 / 6,
    "recall_at_100": 4 / 6,
    "mrr": (1 + 1 + 1 / 7 + 1 / 12) / 6,
    "median_rank": (7 + 12) / 2,
    "vcmr_0.3": 2 / 6,
    "vcmr_0.5": 1 / 6,
    "vcmr_0.7": 1 / 6,
    "miou": (0.8 + 0.4) / 6,
    "vcmr_best_0.3": 3 / 6,
    "vcmr_best_0.5": 2 / 6,
    "vcmr_best_0.7": 1 / 6,
    "verification_accuracy": 3 / 9,  # a, b twice; c and d wrong; e and f count as one wrong verification each
    "verification_accuracy_turn_1": 2 / 6,
    "matched_precision": 2 / 3,
    "matched_recall": 2 / 4,
    "grounding_0.5": 1 / 2,
    "grounding_0.7": 1 / 2,
    "num_text_tokens": (10 + 20 + 10 + 30) / 4,
    "num_latent_tokens": (8 + 16 + 8 + 24) / 4,
    "num_query_tokens": 6 / 4,
    **dict.fromkeys((metric.name for metric in metrics_of("probes")), math.nan),  # nothing was probed
}
