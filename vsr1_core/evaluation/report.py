"""Writes the report of one split: Markdown with tables, plots and examples, from frames that were read elsewhere.

The report says what was measured, on how many queries, with which uncertainty, and what is missing. Published numbers
are shown as published and marked as such. All scores come from `vsr1_core.evaluation.metrics`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from vsr1_core.evaluation import plots
from vsr1_core.evaluation import report_queries as queries
from vsr1_core.evaluation import report_sections as scores
from vsr1_core.evaluation.episodes import OUTCOMES
from vsr1_core.evaluation.markdown import counted
from vsr1_core.evaluation.published import PUBLISHED
from vsr1_core.evaluation.refinement import refinement_warnings
from vsr1_core.evaluation.report_data import Analysis, ReportInputs, Section, outcome_shares
from vsr1_core.rows.files import atomic_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEW_QUERIES = 50
SCORED: tuple[Section, ...] = (
    scores.overview,
    scores.retrieval,
    scores.moment_retrieval,
    scores.verification,
    scores.balanced_set,
    scores.further_metrics,
    scores.by_turns,
    scores.by_soft_tokens,
    scores.differences,
    scores.ablations,
    scores.tokens,
    scores.published,
    queries.input_forms,
    queries.endings,
    queries.failures,
    queries.training,
    queries.worst_queries,
    queries.example_episodes,
    queries.missing,
    queries.reading,
)
"""The sections after the opening, in order."""
UNSCORED: tuple[Section, ...] = (queries.failures, queries.training, queries.missing)
"""The sections of a report that has nothing to score."""


def write_report(inputs: ReportInputs, folder: Path) -> Path:
    """Write `report.md` and its plots.

    Args:
        inputs: All that the report reads.
        folder: Where it is written; the folder is replaced as a whole.

    Returns:
        The path of the Markdown file.

    Raises:
        ValueError: A query has two moments or two predictions.
    """
    analysis = Analysis.of(inputs)
    with atomic_folder(folder) as temporary:
        drawn = []
        for name, figure in _figures(inputs, analysis):
            plots.save(figure, temporary / f"{name}.png")
            drawn.append(name)
        text = markdown(inputs, replace(analysis, drawn=tuple(drawn)))
        (temporary / "report.md").write_text(text, encoding="utf-8")
    return folder / "report.md"


def markdown(inputs: ReportInputs, analysis: Analysis) -> str:
    """The report's text."""
    sections = SCORED if analysis.episodes else UNSCORED
    blocks = [_opening(inputs), *("\n".join(section(inputs, analysis)) for section in sections)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _opening(inputs: ReportInputs) -> str:
    lines = [f"# Results on `{inputs.dataset}`, split `{inputs.split}`", ""]
    num_queries = inputs.moments.height
    if not num_queries:
        reason = f"`{inputs.dataset}` has no annotated queries in this split."
        return "\n".join([*lines, f"There is nothing to score: {reason}"])
    corpus = f"{inputs.num_videos:,} videos" if inputs.num_videos else "a corpus whose index is not built"
    trained = ", trained once (one seed)" if inputs.curves else ""
    lines.append(
        f"{num_queries:,} queries about {inputs.moments['video_id'].n_unique():,} videos, searched in {corpus}. "
        f"The configuration is `{inputs.config}`{trained}. Shares are in percent; brackets are 95 % "
        f"bootstrap intervals over queries ({inputs.num_resamples:,} resamples, seed {inputs.seed}): they say how much "
        "the choice of queries matters, not how much another training run would differ."
    )
    if num_queries < FEW_QUERIES:
        step = f"one query more or less moves a share by {100 / num_queries:.1f} percentage points"
        few = f"**Only {counted(num_queries, 'query', 'queries')}:** {step}."
        lines += ["", f"{few} These numbers only show that the graph runs."]
    lines += [line for warning in refinement_warnings(inputs.metrics) for line in ("", f"**Warning:** {warning}.")]
    if not inputs.methods:
        lines += ["", "No method has predictions for these queries, so there are no scores. See the failures below."]
    return "\n".join(lines)


def _figures(inputs: ReportInputs, analysis: Analysis) -> Iterator[tuple[str, Figure]]:
    """Each plot with the name of its file."""
    styles = inputs.styles
    if inputs.curves:
        yield "curves", plots.loss_curves(inputs.curves, styles)
    if not analysis.episodes or inputs.metrics.is_empty():
        return
    yield "recall", plots.recall_before_after(inputs.metrics, styles)
    yield "vcmr", plots.vcmr_by_method(inputs.metrics, styles, PUBLISHED.get(inputs.dataset, ()))
    for name, draw in (("turns", plots.turns), ("soft_tokens", plots.soft_tokens)):
        if (inputs.refinement["curve"] == name).any():
            yield name, draw(inputs.refinement, styles)
    yield "tokens", plots.tokens_per_query(inputs.metrics, styles)
    yield "outcomes", plots.outcome_bars(outcome_shares(analysis), styles, OUTCOMES)
    ranks = [
        pl.DataFrame({"first_rank": e.first_rank, "rank": e.rank}).select(pl.lit(name).alias("method"), pl.all())
        for name, e in analysis.episodes.items()
    ]
    is_ranked = pl.all_horizontal(pl.col("first_rank", "rank").is_finite())
    yield "ranks", plots.rank_changes(pl.concat(ranks).filter(is_ranked), styles)
    accepted = [(name, e.iou[e.is_matched & e.is_right_video]) for name, e in analysis.episodes.items()]
    spans = [pl.DataFrame({"iou": iou}).with_columns(method=pl.lit(name)) for name, iou in accepted if iou.size]
    if spans:
        yield "iou", plots.iou_histogram(pl.concat(spans), styles)
