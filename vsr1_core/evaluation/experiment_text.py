"""Writes the result of an experiment to files: Markdown for people, JSON and Parquet for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vsr1_core.evaluation.claims import Claim
from vsr1_core.evaluation.experiment import Experiment, differences, results
from vsr1_core.evaluation.markdown import markdown_table
from vsr1_core.evaluation.metrics import metrics_shown
from vsr1_core.evaluation.row_types import ResultRow, typed_rows
from vsr1_core.rows.files import atomic_folder, write_json


def markdown(experiment: Experiment, found: Sequence[Claim], split: str = "test") -> str:
    """The tables of results and claims as Markdown. split: the split whose queries were evaluated."""
    table = {(row["method"], row["metric"]): row for row in typed_rows(results(experiment), ResultRow)}
    rows = [
        [metric.label, *(_cell(table.get((method, metric.name)), metric.scale) for method in experiment.methods)]
        for metric in metrics_shown("experiment")
    ]
    lines = [
        f"Configuration `{experiment.config}`, {_runs_text(experiment)}, {experiment.num_queries:,} {split} queries. "
        "Mean over the seeds in % (tokens as they are) ± half of the 95 % interval over seeds (Student's t).",
        "",
        *markdown_table(["metric", *experiment.methods], rows),
        "",
        *_range_lines(experiment, table),
        "Claims, by the means; brackets are paired 95 % bootstrap intervals over queries.",
        "",
        *markdown_table(["claim", "found", "holds"], [[c.text, _found(c), _VERDICTS[c.holds]] for c in found]),
    ]
    return "\n".join(lines) + "\n"


def _runs_text(experiment: Experiment) -> str:
    seeds = "seeds " + ", ".join(str(seed) for seed in experiment.seeds)
    num_noises = len(experiment.runs) // len(experiment.seeds)
    return f"{seeds}, each with {num_noises} draws of noise" if num_noises > 1 else seeds


def _range_lines(experiment: Experiment, table: Mapping[tuple[str, str], ResultRow]) -> list[str]:
    """The range of each metric over all runs; no lines for a single run."""
    if len(experiment.runs) < 2:
        return []
    rows = [
        [metric.label, *(_range_cell(table.get((method, metric.name)), metric.scale) for method in experiment.methods)]
        for metric in metrics_shown("experiment")
    ]
    note = f"Lowest to highest of the {len(experiment.runs)} runs, and in brackets the spread between them:"
    return [note, "", *markdown_table(["metric", *experiment.methods], rows), ""]


def _range_cell(row: ResultRow | None, scale: float) -> str:
    if row is None or row["lowest"] is None or row["highest"] is None:
        return "-"
    lowest, highest = scale * row["lowest"], scale * row["highest"]
    return f"{lowest:.1f} to {highest:.1f} ({highest - lowest:.1f})"


_VERDICTS = {True: "yes", False: "**no**", None: "not known"}


def _cell(row: ResultRow | None, scale: float) -> str:
    if row is None or row["mean"] is None:
        return "-"
    half = "" if row["high"] is None else f" ± {scale * (row['high'] - row['mean']):.1f}"
    return f"{scale * row['mean']:.1f}{half}"


def _found(claim: Claim) -> str:
    if claim.holds is None:
        return "-"
    scale, sign = (1.0, "") if claim.unit == "tokens" else (100.0, " %" if claim.unit == "gain" else "")
    value, low, high = (scale * number for number in (claim.value, claim.low, claim.high))
    return f"{value:.1f}{sign} [{low:.1f}, {high:.1f}]"


def write_experiment(
    experiment: Experiment,
    found: Sequence[Claim],
    folder: Path,
    facts: Mapping[str, Any],
    ranges: Mapping[str, Any] | None = None,
) -> Path:
    """Write results.md, results.parquet, differences.parquet, results.json and ranges.json as one folder.

    Args:
        experiment: The runs.
        found: Whether the paper's claims hold in them.
        folder: Where it is written; the folder is replaced as a whole.
        facts: What results.json holds beside the results, as JSON values.
        ranges: What ranges.json holds (`expected.measured_ranges`); without it, the file is left out.

    Returns:
        The path of results.md.
    """
    tables = {"results": results(experiment), "differences": differences(experiment)}
    with atomic_folder(folder) as temporary:
        for name, frame in tables.items():
            frame.write_parquet(temporary / f"{name}.parquet")
        (temporary / "results.md").write_text(markdown(experiment, found, facts.get("split", "test")), encoding="utf-8")
        if ranges is not None:
            write_json(temporary / "ranges.json", ranges)
        record = {"config": experiment.config, "seeds": experiment.seeds, "num_queries": experiment.num_queries}
        record["runs"] = [run._asdict() for run in experiment.runs]
        record |= {name: json.loads(frame.write_json()) for name, frame in tables.items()}
        write_json(temporary / "results.json", {**record, "claims": [_json_claim(c) for c in found], **facts})
    return folder / "results.md"


def _json_claim(claim: Claim) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in asdict(claim).items()}
