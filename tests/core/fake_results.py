"""Made-up results that look like a run's: moments, episodes of methods of known strength, and a lake."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from vsr1_core.datasets import line_table
from vsr1_core.evaluation.spans import temporal_iou
from vsr1_core.recipes import MethodOptions
from vsr1_core.rows.lake import Lake
from vsr1_core.stages import predictions, probes
from vsr1_core.stages.base import Row, Stage, View
from vsr1_core.stages.columns import Column, dtypes
from vsr1_core.stages.model_folders import OPTIONS
from vsr1_core.stages.reporting import CHECKPOINTS, Metrics, RefinementCurves, Report

COLOURS = ("red", "crimson", "teal", "golden", "violet")
SHAPES = ("circle", "square", "triangle", "star")
MOTIONS = ("drifts left", "slides up", "spins in place", "falls")


@dataclass(frozen=True)
class Strength:
    """How good a fake method is. Probabilities, and the standard error of its spans as a share of their length."""

    first_right: float = 0.3
    refined_right: float = 0.6
    verdict_right: float = 0.8
    span_error: float = 0.2
    num_latent_tokens: int = 8


STRENGTHS = {
    "zero_shot": Strength(0.3, 0.3, 0.5, 0.8, 0),
    "fine_tuned": Strength(0.3, 0.3, 0.75, 0.25, 0),
    "sqr_sft": Strength(0.3, 0.55, 0.8, 0.2),
    "videosearch_r1": Strength(0.3, 0.7, 0.85, 0.15),
}


def fake_moments(num_queries: int, seed: int = 0, split: str = "test") -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(num_queries):
        start = float(np.round(rng.uniform(0, 6), 1))
        length = float(np.round(rng.uniform(2, 6), 1))
        text = f"a {rng.choice(COLOURS)} {rng.choice(SHAPES)} {rng.choice(MOTIONS)} before a {rng.choice(SHAPES)}"
        rows.append(
            {
                "query_id": f"{i:05d}_fig",
                "split": split,
                "query": text,
                "plain_query": text.partition(" before")[0],
                "video_id": f"v_{i:05d}",
                "start_s": start,
                "end_s": start + length,
                "duration_s": 14.0,
                "clamped": False,
            }
        )
    return rows


def fake_prediction(moment: dict[str, Any], strength: Strength, rng: Any, num_turns: int = 3) -> dict[str, Any]:
    """One episode: turns until the policy says matched."""
    turns: list[dict[str, Any]] = []
    for turn in range(1, num_turns + 1):
        is_right = bool(rng.random() < (strength.first_right if turn == 1 else strength.refined_right))
        turns.append(_fake_turn(moment, strength, rng, turn, is_right))
        if turns[-1]["decision"] == "matched":
            break
    last = turns[-1]
    shared = {name: last[name] for name in ("video_id", "rank", "decision", "start_s", "end_s", "matched_probability")}
    gt = {f"gt_{name}": moment[name] for name in ("video_id", "start_s", "end_s")}
    return {
        "query_id": moment["query_id"],
        "split": moment["split"],
        "query": moment["query"],
        **gt,
        **shared,
        "first_rank": turns[0]["rank"],
        "iou": _iou(moment, last),
        **_fake_best(moment, turns),
        "num_turns": len(turns),
        "checkpoint": "sft_checkpoint",
        "num_text_tokens": sum(t["num_text_tokens"] for t in turns),
        "num_latent_tokens": sum(t["num_latent_tokens"] for t in turns),
        "prefix_ranks": _fake_prefix_ranks(turns, strength),
        "turns": turns,
    }


def _fake_prefix_ranks(turns: list[dict[str, Any]], strength: Strength) -> list[int] | None:
    """The first rank without soft tokens, the last one with more than half of them."""
    if len(turns) == 1 or not strength.num_latent_tokens:
        return None
    first, last = turns[0]["rank"], turns[-1]["rank"]
    return [first if 2 * k < strength.num_latent_tokens else last for k in range(strength.num_latent_tokens + 1)]


def _fake_best(moment: dict[str, Any], turns: list[dict[str, Any]]) -> dict[str, Any]:
    """The surest turn; where it was not matched, the video's first half is its span."""
    best = turns[-1] if turns[-1]["decision"] == "matched" else max(turns, key=lambda t: t["matched_probability"])
    span = (best["start_s"], best["end_s"]) if best["decision"] == "matched" else (0.0, moment["duration_s"] / 2)
    shown = {"video_id": best["video_id"], "start_s": span[0], "end_s": span[1]}
    return {**{f"best_{k}": v for k, v in shown.items()}, "best_turn": best["turn"], "best_iou": _iou(moment, shown)}


def _iou(moment: dict[str, Any], turn: dict[str, Any]) -> float:
    is_right = turn["video_id"] == moment["video_id"]
    return float(temporal_iou(turn["start_s"], turn["end_s"], moment["start_s"], moment["end_s"])) if is_right else 0.0


def _fake_turn(moment: dict[str, Any], strength: Strength, rng: Any, turn: int, is_right: bool) -> dict[str, Any]:
    verdict_is_right = bool(rng.random() < strength.verdict_right)
    matched = is_right == verdict_is_right
    length = moment["end_s"] - moment["start_s"]
    start, end = (moment[k] + rng.normal(0, strength.span_error * length) for k in ("start_s", "end_s"))
    wrong = f"v_{int(rng.integers(0, 10_000)):05d}x"
    return {
        "turn": turn,
        "video_id": moment["video_id"] if is_right else wrong,
        "score": float(rng.uniform(0.3, 0.9)),
        "rank": 1 if is_right else 2 + int(rng.exponential(12)),
        "decision": "matched" if matched else "not_matched",
        "matched_probability": float(np.clip(rng.normal(0.75 if matched else 0.25, 0.15), 0.01, 0.99)),
        "reasoning": f"The video shows {moment['query']} from {start:.1f} s to {end:.1f} s.",
        "start_s": float(max(start, 0)) if matched else None,
        "end_s": float(max(end, 0)) if matched else None,
        "num_text_tokens": 30 + int(rng.integers(0, 15)),
        "num_latent_tokens": 0 if matched else strength.num_latent_tokens,
    }


PREDICTION_COLUMNS = dtypes(predictions.Predictions.columns)
PROBE_COLUMNS = dtypes(probes.VerificationProbe.columns)
PROBED = [method for method in STRENGTHS if method != "zero_shot"]
MOMENT_COLUMNS = {name: line_table.SCHEMA[name] for name in line_table.FIELDS if name != "query_id"}


def moments_frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"query_id": pl.String, **MOMENT_COLUMNS})


def predictions_frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """A predictions table; rows may lack columns (null) and have a status."""
    schema = {"query_id": pl.String, **PREDICTION_COLUMNS, "status": pl.String, "error": pl.String}
    full = [{"status": "ok", **row} for row in rows]
    return pl.DataFrame([{name: row.get(name) for name in schema} for row in full], schema=schema)


def fake_predictions(moments: list[dict[str, Any]], strength: Strength, seed: int = 1) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [fake_prediction(moment, strength, rng) for moment in moments]


CHECKPOINT_COLUMNS: dict[str, Any] = {
    "path": pl.String,
    "options": OPTIONS,
    "curve": pl.List(pl.Struct({"step": pl.Int64, "name": pl.String, "value": pl.Float64})),
}


OPTIONS_OF_ALL = asdict(MethodOptions())
"""What the policies of all methods were made with."""


def table_stage(name: str, key: str, columns: dict[str, Any]) -> Stage:
    """A stage that is only a table: it wants what is committed."""

    def plan(self: Stage, view: View) -> dict[str, Row]:
        return {row_id: Row({}) for row_id in view.table(name).rows([key])[key]}

    def make(self: Stage, view: View, rows: Any, run: Any) -> Any:
        raise AssertionError(f"{name} is never built here")

    described = {column: Column(dtype, "given") for column, dtype in columns.items()}
    body = {"name": name, "key": key, "group": "evaluation", "says": "A table that the test gives."}
    body |= {"columns": described, "plan": plan, "make": make}
    stage: Stage = type(f"Fake_{name}", (Stage,), body)()
    return stage


def fake_stages() -> dict[str, Stage]:
    """The tables that scoring reads, as stages, and the real stages behind them."""
    tables = [table_stage("moments", "query_id", MOMENT_COLUMNS)]
    tables.append(table_stage("videos", "video_id", {"path": pl.String}))
    tables.append(table_stage("video_index", "split", {"num_videos": pl.Int64}))
    for name in CHECKPOINTS:
        tables.append(table_stage(name, "model_id" if name == "base_models" else "checkpoint", CHECKPOINT_COLUMNS))
    tables += [table_stage(f"predictions.{method}", "query_id", PREDICTION_COLUMNS) for method in STRENGTHS]
    tables += [table_stage(f"verification_probe.{method}", "probe_id", PROBE_COLUMNS) for method in PROBED]
    return {stage.name: stage for stage in (*tables, Metrics(), RefinementCurves(), Report())}


def commit_rows(
    lake: Lake, asset: str, dataset: str, key: str, columns: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    """Write rows as a built table; a row with `error` is a failed one."""
    table = lake.table(asset, dataset, key, columns)
    stamped = [
        {"row_version": f"v{i}", "row_inputs": "{}", "status": "failed" if row.get("error") else "ok", **row}
        for i, row in enumerate(rows)
    ]
    table.commit(table.frame(stamped), {})


def commit_results(root: Path, dataset: str, num_queries: int = 60, num_failed: int = 2) -> list[dict[str, Any]]:
    """A lake with moments and the predictions of four methods; the first `num_failed` of each failed."""
    lake, moments = Lake(root), fake_moments(num_queries)
    commit_rows(lake, "moments", dataset, "query_id", MOMENT_COLUMNS, moments)
    for name in ("sft_checkpoint", "grpo_checkpoint"):
        row = {"checkpoint": name, "path": "x", "options": OPTIONS_OF_ALL}
        commit_rows(lake, name, dataset, "checkpoint", CHECKPOINT_COLUMNS, [row])
    for i, (method, strength) in enumerate(STRENGTHS.items()):
        rows = fake_predictions(moments, strength, seed=i)
        failed = [{"query_id": r["query_id"], "split": "test", "error": "frames of v_0 are missing"} for r in rows]
        rows = [*failed[:num_failed], *rows[num_failed:]]
        commit_rows(lake, f"predictions.{method}", dataset, "query_id", PREDICTION_COLUMNS, rows)
    return moments
