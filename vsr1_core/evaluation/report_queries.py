"""The sections of the report about single queries and rows: how queries ended, what failed, the worst queries, and what
is missing."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields

import polars as pl

from vsr1_core.evaluation.episodes import OUTCOMES
from vsr1_core.evaluation.markdown import code, markdown_table, text_cell, three_digits
from vsr1_core.evaluation.metrics import all_metrics
from vsr1_core.evaluation.report_data import Analysis, ReportInputs, answers_of, plot_lines
from vsr1_core.evaluation.row_types import AnswerRow, TurnRow, typed_rows
from vsr1_core.input_form import InputForm
from vsr1_core.segments import is_right

NUM_WORST = 10


def endings(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    counts = {method: Counter(ends.values()) for method, ends in analysis.outcomes.items()}
    rows = [[method, *(str(counts[method][name]) for name in OUTCOMES)] for method in inputs.methods]
    table = markdown_table(["queries", *OUTCOMES.values()], rows)
    return ["## How queries ended", "", *table, *plot_lines(analysis, "outcomes")]


def failures(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    lines = ["## Failures", ""]
    for method in inputs.methods:
        frame = inputs.predictions[method]
        failed = frame.filter(pl.col("status") == "failed").height if "status" in frame.columns else 0
        ran = int(analysis.episodes[method].has_prediction.sum()) if method in analysis.episodes else 0
        absent = max(0, inputs.moments.height - ran - failed)
        lines.append(
            f"* `{method}`: failed: {failed}, without a prediction: {absent}. These queries are counted, and score 0."
        )
    if inputs.failures.is_empty():
        return [*lines, "* No asset has a failed row."]
    rows = []
    for asset, count in inputs.failures.group_by("asset", maintain_order=True).len().iter_rows():
        row_id, error = inputs.failures.filter(pl.col("asset") == asset).select("row_id", "error").row(0)
        rows.append([asset, f"{count:,}", text_cell(f"{row_id}: {error}", 240)])
    return [*lines, "", *markdown_table(["asset", "failed rows", "for example"], rows)]


def training(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    if not inputs.curves:
        return []
    rows = []
    for checkpoint, frame in inputs.curves.items():
        for name in frame["name"].unique(maintain_order=True).to_list():
            points = frame.filter(pl.col("name") == name).sort("step")
            tail = points.tail(max(1, points.height // 10)).select(pl.col("value").mean()).item()
            first = points["value"][0]
            rows.append([checkpoint, name, str(points["step"].max()), three_digits(first), three_digits(tail)])
    header = ["checkpoint", "logged value", "last step", "first", "mean of the last tenth"]
    where = [f"The models are borrowed from `{inputs.models_from}`.", ""] if inputs.models_from else []
    return ["## Training", "", *where, *markdown_table(header, rows), *plot_lines(analysis, "curves")]


def worst_queries(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    """The unanswered queries of the last method whose right video has the worst rank."""
    method = inputs.methods[-1]
    ends = analysis.outcomes[method]
    unanswered = [query_id for query_id, end in ends.items() if end != "found"]
    frame = answers_of(inputs, method).filter(pl.col("query_id").is_in(unanswered))
    frame = frame.sort("rank", "query_id", descending=[True, False], nulls_last=True).head(NUM_WORST)
    if frame.is_empty():
        return []
    rows = [
        [
            code(row["query_id"]),
            text_cell(row["query"], 120),
            code(row["gt_video_id"]),
            f"{_rank(row['first_rank'])} → {_rank(row['rank'])}",
            OUTCOMES[ends[row["query_id"]]],
        ]
        for row in typed_rows(frame, AnswerRow)
    ]
    header = ["query", "text", "right video", "rank, first → last", "how it ended"]
    note = f"The {len(rows)} unanswered queries of `{method}` whose right video has the worst rank in the last ranking."
    return ["## Worst queries", "", note, "", *markdown_table(header, rows)]


def _rank(rank: int | None) -> str:
    """The rank as text; a dash if the right video is in no ranking, because it failed or was rejected and excluded."""
    return "-" if rank is None else f"{rank:,}"


def example_episodes(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    """For each way in which queries of the last method ended, the longest of these episodes."""
    method = inputs.methods[-1]
    ends = analysis.outcomes[method]
    answers = answers_of(inputs, method).sort("num_turns", "query_id", descending=[True, False])
    lines = ["## Episodes", "", f"For each way in which queries of `{method}` ended, the longest episode."]
    for outcome, words in OUTCOMES.items():
        ids = [query_id for query_id, end in ends.items() if end == outcome]
        for row in typed_rows(answers.filter(pl.col("query_id").is_in(ids)).head(1), AnswerRow):
            lines += _episode(row, words)
    return lines if len(lines) > 3 else []


def _episode(row: AnswerRow, ending: str) -> list[str]:
    where = f"{code(row['gt_video_id'])}, {row['gt_start_s']:.1f} to {row['gt_end_s']:.1f} s"
    lines = ["", f"**{text_cell(row['query'], 300)}** ({code(row['query_id'])}; right: {where}): {ending}.", ""]
    for turn in row["turns"] or []:
        is_shown = is_right(turn["video_id"], row["gt_video_id"], row["gt_start_s"], row["gt_end_s"])
        shown = "the right video" if is_shown else code(turn["video_id"])
        ranked = f"right video at rank {turn['rank'] or '-'}"
        lines.append(f"{turn['turn']}. Shown: {shown} ({ranked}). Decision: {_decision(turn)}.")
        if turn["reasoning"]:
            lines.append(f"   > {text_cell(turn['reasoning'], 600)}")
    return lines


def _decision(turn: TurnRow) -> str:
    sure = turn["matched_probability"]
    decision = turn["decision"] + (f", match probability {sure:.2f}" if sure is not None else "")
    if turn["decision"] == "matched" and turn["start_s"] is not None and turn["end_s"] is not None:
        decision += f", {turn['start_s']:.1f} to {turn['end_s']:.1f} s"
    return decision


def input_forms(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    """How the policies were asked, one row per form; no lines if no form is known."""
    asked: dict[InputForm, list[str]] = {}
    for method in inputs.methods:
        if method in inputs.forms:
            asked.setdefault(inputs.forms[method], []).append(method)
    if not asked:
        return []
    names = [f.name for f in fields(InputForm) if f.name != "sft_prompt"]
    rows = [[", ".join(methods), *(str(getattr(form, name)) for name in names)] for form, methods in asked.items()]
    note = "What each policy was asked with, as its checkpoint records it; 0 means the limit of the configuration."
    return ["## Input forms", "", note, "", *markdown_table(["methods", *(n.replace("_", " ") for n in names)], rows)]


def missing(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    """What a reader might expect in the report and will not find."""
    items = []
    if inputs.moments.is_empty():
        items.append("Scores, because they need annotated queries.")
    else:
        absent = [name for name in inputs.styles.basic if name not in inputs.methods]
        reported = {inputs.styles.get(name).option for name in inputs.methods}
        options = [f"+{option}" for option in inputs.styles.options if option not in reported]
        items += _listed("Methods without predictions", absent) + _listed("Variants without predictions", options)
    if not inputs.curves:
        borrowed = f"the models were trained on `{inputs.models_from}`"
        items.append(f"Training curves, because {borrowed if inputs.models_from else 'nothing has been trained yet'}.")
    return ["## What is missing here", "", *(f"* {item}" for item in items)] if items else []


def _listed(what: str, names: list[str]) -> list[str]:
    return [f"{what}: {', '.join(f'`{name}`' for name in names)}."] if names else []


def reading(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    known = set(inputs.metrics["metric"]) | {
        metric.name for metric in all_metrics().values() if metric.section != "windows"
    }
    meanings = [[f"`{m.name}`", m.better, m.says] for m in all_metrics().values() if m.name in known]
    return [
        "## How to read the numbers",
        "",
        "* Every annotated query counts. A query that failed has no rank and no answer: it scores 0, and counts as one "
        "wrong verification.",
        "* Verification: each decision is judged against the video that was actually shown; any decision other than "
        "matched or not_matched is wrong. Grounding is measured on accepted right videos only.",
        "* An interval without width is not certainty: where all queries agree, so do all resamples. A share of 0 % of "
        f"these {inputs.moments.height:,} queries still allows a true share of up to "
        f"{100 * min(1.0, 3 / inputs.moments.height):.1f} % (3 / queries).",
        "* A dash means that there is nothing to judge or, for the median rank, that more than half of the queries "
        "have no rank.",
        "",
        *markdown_table(["metric", "better", "what it says"], meanings),
    ]
