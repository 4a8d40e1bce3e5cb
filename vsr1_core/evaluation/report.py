"""The written report of one split: Markdown with tables, plots and examples, from frames that were read elsewhere.

It says what was measured, on how many queries, with which uncertainty, and what is missing. Published numbers are
shown as published and marked as such. Nothing is scored here that `vsr1_core.evaluation.metrics` does not score.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from vsr1_core.evaluation import metrics as m
from vsr1_core.evaluation import plots
from vsr1_core.evaluation.curves import SOFT_TOKENS, TURNS
from vsr1_core.evaluation.published import PUBLISHED, SOURCE, PublishedRow
from vsr1_core.rows.files import atomic_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEW_QUERIES = 50
NUM_WORST = 10
COMPARED = ("recall_at_1", "vcmr_0.5", "verification_accuracy", "num_text_tokens")
"""What is compared between two methods, with paired intervals."""


NO_CURVES = pl.DataFrame(
    schema={"method": pl.String, "curve": pl.String, "x": pl.Int64, "metric": pl.String}
    | dict.fromkeys(("value", "low", "high"), pl.Float64)
)
NO_FAILURES = pl.DataFrame(schema={"asset": pl.String, "row_id": pl.String, "error": pl.String})


@dataclass(frozen=True)
class ReportInputs:
    """All that the report reads.

    moments: the split's annotated queries. predictions: method -> all rows, failed ones too. metrics, refinement: the
    split's rows of `metrics` and `refinement_curves`. curves: model or checkpoint -> (step, name, value). failures:
    (asset, row_id, error) of the whole dataset. num_videos: size of the split's index, None where there is none.
    """

    dataset: str
    kind: str
    split: str
    config: str
    moments: pl.DataFrame
    predictions: Mapping[str, pl.DataFrame]
    metrics: pl.DataFrame
    refinement: pl.DataFrame = field(default_factory=NO_CURVES.clone)
    curves: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    failures: pl.DataFrame = field(default_factory=NO_FAILURES.clone)
    models_from: str = ""
    num_videos: int | None = None
    num_resamples: int = 1000
    seed: int = 42

    @property
    def methods(self) -> list[str]:
        """Methods with predictions, the weakest design first."""
        return plots.in_method_order(list(self.predictions))


def write_report(inputs: ReportInputs, folder: Path) -> Path:
    """Write `report.md` and its plots into `folder` (replaced as a whole). Returns the Markdown file's path."""
    analysis = Analysis.of(inputs)
    with atomic_folder(folder) as temporary:
        drawn = []
        for name, figure in _figures(inputs, analysis):
            plots.save(figure, temporary / f"{name}.png")
            drawn.append(name)
        text = markdown(inputs, replace(analysis, drawn=tuple(drawn)))
        (temporary / "report.md").write_text(text, encoding="utf-8")
    return folder / "report.md"


@dataclass(frozen=True)
class Analysis:
    """Per method: episodes and where they ended, worked out once for tables, plots and examples. `drawn` names the
    plots that lie beside the text."""

    episodes: Mapping[str, m.Episodes]
    outcomes: Mapping[str, dict[str, str]]
    drawn: tuple[str, ...] = ()

    @staticmethod
    def of(inputs: ReportInputs) -> Analysis:
        if inputs.moments.is_empty():
            return Analysis({}, {})
        episodes = {name: m.load_episodes(inputs.moments, inputs.predictions[name]) for name in inputs.methods}
        return Analysis(episodes, {name: dict(m.outcomes(e).iter_rows()) for name, e in episodes.items()})


def markdown(inputs: ReportInputs, analysis: Analysis) -> str:
    """The report's text."""
    sections: list[Section] = [_failures, _training, _missing]
    if analysis.episodes:
        scored = [_overview, _retrieval, _moment_retrieval, _verification, _balanced, _turns, _soft_tokens]
        scored += [_differences, _ablations, _tokens, _published]
        sections = [*scored, _endings, _failures, _training, _worst, _examples, _missing, _reading]
    blocks = [_opening(inputs), *("\n".join(section(inputs, analysis)) for section in sections)]
    return "\n\n".join(block for block in blocks if block) + "\n"


Section = Callable[[ReportInputs, Analysis], list[str]]

CAPTIONS = {
    "recall": "Queries whose right video is among the first k: by the query's own text, and in the last ranking.",
    "vcmr": "Share of queries answered with the right video and a span of at least this IoU.",
    "turns": "The same episodes, cut after the given number of shown videos. Bands are 95 % intervals.",
    "soft_tokens": "The last ranking, had every turn brought only its first soft tokens. Bands are 95 % intervals.",
    "tokens": "Tokens the policy generated, mean over the queries that ran.",
    "outcomes": "How each query ended.",
    "ranks": "Rank of the right video before and after refinement, one dot a query (dots are jittered by up to 7 %).",
    "iou": "Span IoU of right videos that were accepted.",
    "curves": "Logged training values by step; bold is the running mean over 4 % of the points.",
}


def _plot(analysis: Analysis, name: str) -> list[str]:
    return ["", f"![{CAPTIONS[name]}]({name}.png)", "", f"*{CAPTIONS[name]}*"] if name in analysis.drawn else []


def _figures(inputs: ReportInputs, analysis: Analysis) -> Iterator[tuple[str, Figure]]:
    if inputs.curves:
        yield "curves", plots.loss_curves(inputs.curves)
    if not analysis.episodes or inputs.metrics.is_empty():
        return
    yield "recall", plots.recall_before_after(inputs.metrics)
    yield "vcmr", plots.vcmr_by_method(inputs.metrics, PUBLISHED.get(inputs.dataset, ()))
    for name, draw in (("turns", plots.turns), ("soft_tokens", plots.soft_tokens)):
        if (inputs.refinement["curve"] == name).any():
            yield name, draw(inputs.refinement)
    yield "tokens", plots.tokens_per_query(inputs.metrics)
    yield "outcomes", plots.outcome_bars(outcome_shares(analysis), m.OUTCOMES)
    ranks = [
        pl.DataFrame({"first_rank": e.first_rank, "rank": e.rank}).select(pl.lit(name).alias("method"), pl.all())
        for name, e in analysis.episodes.items()
    ]
    is_ranked = pl.all_horizontal(pl.col("first_rank", "rank").is_finite())
    yield "ranks", plots.rank_changes(pl.concat(ranks).filter(is_ranked))
    accepted = [(name, e.iou[e.is_matched & e.is_right_video]) for name, e in analysis.episodes.items()]
    spans = [pl.DataFrame({"iou": iou}).with_columns(method=pl.lit(name)) for name, iou in accepted if iou.size]
    if spans:
        yield "iou", plots.iou_histogram(pl.concat(spans))


def outcome_shares(analysis: Analysis) -> pl.DataFrame:
    """(method, outcome, num_queries, share) of every method and outcome."""
    rows = []
    for method, ends in analysis.outcomes.items():
        found = list(ends.values())
        rows += [(method, o, found.count(o), found.count(o) / max(1, len(found))) for o in m.OUTCOMES]
    schema = {"method": pl.String, "outcome": pl.String, "num_queries": pl.Int64, "share": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


# ---- sections ----------------------------------------------------------------------------------------------------


def _opening(inputs: ReportInputs) -> str:
    lines = [f"# Results on `{inputs.dataset}`, split `{inputs.split}`", ""]
    num_queries = inputs.moments.height
    if not num_queries:
        reason = f"`{inputs.dataset}` has no annotated queries in this split."
        return "\n".join([*lines, f"There is nothing to score: {reason}"])
    corpus = f"{inputs.num_videos:,} videos" if inputs.num_videos else "a corpus whose index is not built"
    lines.append(
        f"{num_queries:,} queries about {inputs.moments['video_id'].n_unique():,} videos, searched in {corpus}. "
        f"Configuration `{inputs.config}`, one training run (one seed). Shares are in percent; brackets are 95 % "
        f"bootstrap intervals over queries ({inputs.num_resamples:,} resamples, seed {inputs.seed}): they say how much "
        "the choice of queries matters, not how much another training run would differ."
    )
    if num_queries < FEW_QUERIES:
        step = f"one query more or less moves a share by {100 / num_queries:.1f} points"
        few = f"**Only {num_queries} {_plural(num_queries, 'query', 'queries')}:** {step}."
        lines += ["", f"{few} Read these numbers as a check that the graph runs."]
    if not inputs.methods:
        lines += ["", "No method has predictions for these queries, so there are no scores. See the failures below."]
    return "\n".join(lines)


def _overview(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    columns = {
        "R@1, first": "first_recall_at_1", "R@1, last": "recall_at_1", "VCMR, IoU ≥ 0.5": "vcmr_0.5",
        "verification": "verification_accuracy", "grounding, IoU ≥ 0.5": "grounding_0.5",
    }  # fmt: skip
    return ["## At a glance", "", *_metric_table(inputs, columns)]


def _retrieval(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    columns = {f"R@{k}": f"recall_at_{k}" for k in m.RECALL_KS}
    first = {f"R@{k}": f"first_recall_at_{k}" for k in m.RECALL_KS}
    last = "In the last ranking made (that of the matched turn, or the one after the last refinement):"
    lines = ["## Video retrieval", "", last, ""]
    lines += _metric_table(inputs, {**columns, "MRR": "mrr", "median rank": "median_rank"})
    lines += ["", "By the query's own text, before any refinement:", "", *_metric_table(inputs, first)]
    if inputs.num_videos:
        chance = ", ".join(f"R@{k} {100 * min(1, k / inputs.num_videos):.1f}" for k in m.RECALL_KS)
        lines += ["", f"Chance among {inputs.num_videos:,} videos: {chance}."]
    return [*lines, *_plot(analysis, "recall"), *_plot(analysis, "ranks")]


def _moment_retrieval(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    strict = {f"IoU ≥ {t}": f"vcmr_{t}" for t in m.IOU_THRESHOLDS}
    best = {f"IoU ≥ {t}": f"vcmr_best_{t}" for t in m.IOU_THRESHOLDS}
    lines = ["## Moment retrieval (VCMR, R@1)", ""]
    lines += ["Strict, the headline: a query that was never matched is a miss.", ""]
    lines += [*_metric_table(inputs, {**strict, "mIoU": "miou"}), ""]
    lines += [
        "Best: such a query answers with the shown video of the highest match probability, made to ground it.",
        "",
    ]
    return [*lines, *_metric_table(inputs, best), *_plot(analysis, "vcmr")]


def _verification(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    columns = {
        "accuracy": "verification_accuracy", "accuracy, turn 1": "verification_accuracy_turn_1",
        "precision of matched": "matched_precision", "recall of matched": "matched_recall",
        "grounding, IoU ≥ 0.5": "grounding_0.5", "grounding, IoU ≥ 0.7": "grounding_0.7",
    }  # fmt: skip
    lines = ["## Verification and grounding", "", *_metric_table(inputs, columns)]
    if "duration_s" in inputs.moments.columns:
        start, end, share = m.best_constant_span(inputs.moments)
        lines += [
            "",
            f"For comparison: answering {100 * start:.0f} % to {100 * end:.0f} % of every right video, the best "
            f"constant span chosen with hindsight on these queries, reaches IoU ≥ 0.5 on {100 * share:.1f} % of them.",
        ]
    return [*lines, *_plot(analysis, "iou")]


def _balanced(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    """As many right as wrong videos, without search; nothing where no method was probed."""
    columns = {
        "accuracy": "balanced_verification_accuracy", "grounding, IoU ≥ 0.5": "balanced_grounding_0.5",
        "of the matched": "grounding_given_matched_0.5", "constant span": "constant_span_grounding_0.5",
    }  # fmt: skip
    judged = inputs.metrics.filter(pl.col("metric").is_in(list(m.PROBE_METRICS))).drop_nulls("value")
    if judged.is_empty():
        return []
    note = (
        "Each query shown its right video once, and once the wrong one that ranks first, without any search: guessing "
        "reaches an accuracy of 50 %. Grounding: share of the right videos that were matched with such a span. "
        "Constant span: what the span of best fit on the train split reaches on the same videos without looking."
    )
    methods = [name for name in inputs.methods if name in judged["method"].to_list()]
    rows = [[name, *(_number(inputs, name, metric) for metric in columns.values())] for name in methods]
    return ["## Verification on a balanced set", "", note, "", *markdown_table(["method", *columns], rows)]


def _turns(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    shown = {"recall_at_1": "R@1", "vcmr_0.5": "VCMR 0.5"}
    table = _curve_table(inputs, TURNS, shown, lambda x: f"{x} {_plural(x, 'turn', 'turns')}")
    return ["## By number of turns allowed", "", *table, *_plot(analysis, "turns")] if table else []


def _soft_tokens(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    table = _curve_table(inputs, SOFT_TOKENS, {"recall_at_1": "R@1"}, lambda x: f"{x}")
    note = (
        "R@1 of the last ranking, had every turn brought only its first soft tokens; at 0 it is that of the plain "
        "query. The videos shown are those of the search with all tokens."
    )
    if not table:
        return []
    return ["## By number of soft tokens", "", note, "", *table, *_plot(analysis, "soft_tokens")]


def _curve_table(
    inputs: ReportInputs, curve: str, shown: Mapping[str, str], name_of: Callable[[int], str]
) -> list[str]:
    """A line a method, a column a metric and x; nothing where no method has this curve."""
    points = inputs.refinement.filter((pl.col("curve") == curve) & pl.col("metric").is_in(list(shown)))
    numbers = points["x"].unique().sort().to_list()
    cells = {(r["method"], r["metric"], r["x"]): _share(r) for r in points.iter_rows(named=True)}
    columns = [(metric, x) for metric in shown for x in numbers]
    header = ["method", *(f"{shown[metric]}, {name_of(x)}" for metric, x in columns)]
    methods = [method for method in inputs.methods if method in set(points["method"])]
    rows = [[method, *(cells.get((method, *column), "-") for column in columns)] for method in methods]
    return markdown_table(header, rows) if rows else []


def _differences(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    """Each method against the one before it."""
    methods = [name for name in inputs.methods if "+" not in name]
    table = _paired_table(inputs, analysis, list(itertools.pairwise(methods)))
    return ["## Differences between methods", "", *table] if table else []


def _ablations(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    """Each method with an option against the same without."""
    bases = {name: name.partition("+")[0] for name in inputs.methods if "+" in name}
    table = _paired_table(inputs, analysis, [(base, name) for name, base in bases.items() if base in inputs.methods])
    return ["## Ablations", "", *table] if table else []


def _paired_table(inputs: ReportInputs, analysis: Analysis, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Differences (before, after) on the same queries, with paired intervals."""
    rows = []
    for before, after in pairs:
        ours, theirs = (m.score(analysis.episodes[name]) for name in (after, before))
        table = m.paired_differences(ours, theirs, inputs.num_resamples, inputs.seed)
        found = {row["metric"]: row for row in table.iter_rows(named=True)}
        rows.append([f"{after} − {before}", *(_difference(found[name], name) for name in COMPARED)])
    if not rows:
        return []
    header = ["", *(name.replace("_", " ") for name in COMPARED)]
    note = "Paired 95 % intervals over the same queries; in bold where the interval leaves out zero."
    return [note, "", *markdown_table(header, rows)]


def _tokens(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    rows = []
    for method in inputs.methods:
        counts = [_number(inputs, method, name) for name in m.TOKEN_COUNTS]
        e = analysis.episodes[method]
        turns = len(e.verifications.turn) / max(1, int(e.has_prediction.sum()))
        rows.append([method, *counts, f"{turns:.2f}"])
    header = ["method", "text tokens", "latent tokens", "of the text: new queries", "turns"]
    note = (
        "Means per query, over the queries that ran. The paper counts 8 latent tokens a refinement, 26.8 if it is text."
    )
    return ["## Tokens", "", *markdown_table(header, rows), "", note, *_plot(analysis, "tokens")]


def _published(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    """Ours and the paper's side by side; for the toy corpus the paper's alone, for orientation."""
    header = ["", *(f"VCMR {t}" for t in m.IOU_THRESHOLDS), "VER", *(f"R@{k}" for k in m.RECALL_KS)]
    if inputs.dataset in PUBLISHED:
        rows = [_published_cells(row, "published") for row in PUBLISHED[inputs.dataset]]
        rows += [[f"{method} (ours)", *_our_cells(inputs, method)] for method in inputs.methods]
        note = f"Published numbers: {SOURCE}. Ours were made with configuration `{inputs.config}`"
        return ["## Beside the published results", "", f"{note}.", "", *markdown_table(header, rows)]
    if inputs.kind != "toy":
        return []
    rows = [_published_cells(row, name) for name, lines in PUBLISHED.items() for row in lines[2:]]
    note = (
        f"For orientation only ({SOURCE}): other data, other models, another corpus size. "
        "Nothing in this report is comparable with them."
    )
    return ["## Published results on the real datasets", "", note, "", *markdown_table(header, rows)]


def _endings(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    shares = outcome_shares(analysis)
    rows = []
    for method in inputs.methods:
        counts = dict(shares.filter(pl.col("method") == method).select("outcome", "num_queries").iter_rows())
        rows.append([method, *(str(counts[name]) for name in m.OUTCOMES)])
    table = markdown_table(["queries", *m.OUTCOMES.values()], rows)
    return ["## Where queries end", "", *table, *_plot(analysis, "outcomes")]


def _failures(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    lines = ["## Failures", ""]
    for method in inputs.methods:
        frame = inputs.predictions[method]
        failed = frame.filter(pl.col("status") == "failed").height if "status" in frame.columns else 0
        ran = int(analysis.episodes[method].has_prediction.sum()) if method in analysis.episodes else 0
        absent = max(0, inputs.moments.height - ran - failed)
        lines.append(f"* `{method}`: {failed} failed, {absent} without a prediction; they score 0 and are counted.")
    if inputs.failures.is_empty():
        return [*lines, "* No asset has a failed row."]
    counts = inputs.failures.group_by("asset", maintain_order=True).len()
    rows = []
    for asset, count in counts.iter_rows():
        row = inputs.failures.filter(pl.col("asset") == asset).row(0, named=True)
        rows.append([asset, f"{count:,}", _cell(f"{row['row_id']}: {row['error']}", 240)])
    return [*lines, "", *markdown_table(["asset", "failed rows", "for example"], rows)]


def _training(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    if not inputs.curves:
        return []
    rows = []
    for checkpoint, frame in inputs.curves.items():
        for name in frame["name"].unique(maintain_order=True).to_list():
            points = frame.filter(pl.col("name") == name).sort("step")
            tail = points.tail(max(1, points.height // 10))["value"].mean()
            first = points["value"][0]
            rows.append([checkpoint, name, str(points["step"].max()), _short(first), _short(tail)])
    header = ["checkpoint", "logged value", "last step", "first", "mean of the last tenth"]
    where = [f"The models are those of `{inputs.models_from}`.", ""] if inputs.models_from else []
    return ["## Training", "", *where, *markdown_table(header, rows), *_plot(analysis, "curves")]


def _worst(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    """The queries furthest from an answer under the last method."""
    method = inputs.methods[-1]
    ends = analysis.outcomes[method]
    frame = _answers(inputs, method).filter(pl.col("query_id").is_in([q for q, end in ends.items() if end != "found"]))
    frame = frame.sort("rank", "query_id", descending=[True, False], nulls_last=True).head(NUM_WORST)
    if frame.is_empty():
        return []
    rows = [
        [
            f"`{r['query_id']}`",
            _cell(r["query"], 120),
            f"`{r['gt_video_id']}`",
            f"{_rank(r['first_rank'])} → {_rank(r['rank'])}",
            m.OUTCOMES[ends[r["query_id"]]],
        ]
        for r in frame.iter_rows(named=True)
    ]
    header = ["query", "text", "right video", "rank, first → last", "how it ended"]
    note = f"Of `{method}`: unanswered queries whose right video ends furthest down, {len(rows)} of them."
    return ["## Worst queries", "", note, "", *markdown_table(header, rows)]


def _rank(rank: int | None) -> str:
    """A dash where the right video is in no ranking: it failed, or was rejected and left out."""
    return "-" if rank is None else f"{rank:,}"


def _examples(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    """One episode for each way to end, of the last method; among the found ones the longest."""
    method = inputs.methods[-1]
    ends = analysis.outcomes[method]
    answers = _answers(inputs, method).sort("num_turns", "query_id", descending=[True, False])
    lines = ["## Episodes", "", f"One of `{method}` for each ending, the longest first."]
    for outcome in m.OUTCOMES:
        ids = [q for q, end in ends.items() if end == outcome]
        found = answers.filter(pl.col("query_id").is_in(ids)).head(1)
        lines += _episode(found.row(0, named=True), m.OUTCOMES[outcome]) if found.height else []
    return lines if len(lines) > 3 else []


def _episode(row: dict[str, Any], ending: str) -> list[str]:
    where = f"`{row['gt_video_id']}`, {row['gt_start_s']:.1f} to {row['gt_end_s']:.1f} s"
    lines = ["", f"**{_cell(row['query'], 300)}** (`{row['query_id']}`; right: {where}): {ending}.", ""]
    for turn in row["turns"] or []:
        shown = "the right video" if turn["video_id"] == row["gt_video_id"] else f"`{turn['video_id']}`"
        sure = turn["matched_probability"]
        decision = f"{turn['decision']}" + (f", match probability {sure:.2f}" if sure is not None else "")
        if turn["decision"] == "matched" and turn["start_s"] is not None and turn["end_s"] is not None:
            decision += f", {turn['start_s']:.1f} to {turn['end_s']:.1f} s"
        lines.append(f"{turn['turn']}. Shown {shown} (right video at rank {turn['rank'] or '-'}): {decision}.")
        if turn["reasoning"]:
            lines.append(f"   > {_cell(turn['reasoning'], 600)}")
    return lines


def _missing(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    """What a reader might expect and will not find."""
    absent = [name for name in plots.METHOD_ORDER if name not in inputs.methods]
    items = []
    if inputs.moments.is_empty():
        items.append("Scores: they need annotated queries.")
    elif absent:
        items.append(f"Methods without predictions: {', '.join(f'`{name}`' for name in absent)}.")
    if not inputs.moments.is_empty() and not any("+exclude_rejected" in name for name in inputs.methods):
        items.append("The variant that never shows a rejected video again (`+exclude_rejected`).")
    if not inputs.curves:
        borrowed = f"the models were trained on `{inputs.models_from}`"
        items.append(f"Training curves: {borrowed if inputs.models_from else 'nothing was trained yet'}.")
    return ["## What is missing here", "", *(f"* {item}" for item in items)] if items else []


def _reading(inputs: ReportInputs, analysis: Analysis) -> list[str]:
    return [
        "## How to read the numbers",
        "",
        "* Every annotated query counts. One that failed has no rank and no answer: it scores 0, and counts as one "
        "wrong verification.",
        "* Verification: each decision is judged against the video actually shown; anything but matched or "
        "not_matched is wrong. Grounding: over accepted right videos only.",
        "* A dash stands where nothing is judged, or where more than half of the queries have no rank.",
    ]


# ---- cells and tables --------------------------------------------------------------------------------------------


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table: the first column to the left, the others to the right where they are short."""
    long = [max((len(row[i]) for row in rows), default=0) > 40 for i in range(len(header))]
    rule = ["---" if i == 0 or long[i] else "---:" for i in range(len(header))]
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]


def _metric_table(inputs: ReportInputs, columns: Mapping[str, str]) -> list[str]:
    rows = [[method, *(_number(inputs, method, metric) for metric in columns.values())] for method in inputs.methods]
    return markdown_table(["method", *columns], rows)


_PLAIN = ("median_rank", *m.TOKEN_COUNTS)
"""Metrics that are numbers; all others are shares, shown in percent."""


def _number(inputs: ReportInputs, method: str, metric: str, *, interval: bool = True) -> str:
    rows = inputs.metrics.filter((pl.col("method") == method) & (pl.col("metric") == metric))
    if rows.is_empty() or rows["value"][0] is None:
        return "-"
    return _share(rows.row(0, named=True), 1.0 if metric in _PLAIN else 100.0, interval=interval)


def _share(row: Mapping[str, Any], scale: float = 100.0, *, interval: bool = True) -> str:
    """value [low, high] of a row, times `scale`."""
    value, low, high = (row[name] for name in ("value", "low", "high"))
    if value is None:
        return "-"
    if not interval or low is None:
        return f"{scale * value:.1f}"
    bounds = f"{scale * low:.1f}, " + (f"{scale * high:.1f}" if high is not None else "∞")
    return f"{scale * value:.1f} [{bounds}]"


def _difference(row: Mapping[str, Any], metric: str) -> str:
    if row["difference"] is None or row["low"] is None or row["high"] is None:
        return "-"
    scale = 1.0 if metric in _PLAIN else 100.0
    text = f"{scale * row['difference']:+.1f} [{scale * row['low']:+.1f}, {scale * row['high']:+.1f}]"
    return f"**{text}**" if row["low"] > 0 or row["high"] < 0 else text


def _published_cells(row: PublishedRow, label: str) -> list[str]:
    numbers = (*row.vcmr, row.verification_accuracy, *row.recall)
    return [f"{row.method} ({label})", *("-" if number is None else f"{number:.1f}" for number in numbers)]


def _our_cells(inputs: ReportInputs, method: str) -> list[str]:
    spans, recalls = (f"vcmr_{t}" for t in m.IOU_THRESHOLDS), (f"recall_at_{k}" for k in m.RECALL_KS)
    names = (*spans, "verification_accuracy", *recalls)
    return [_number(inputs, method, name) for name in names]


def _answers(inputs: ReportInputs, method: str) -> pl.DataFrame:
    """The ok predictions of a method for the split's queries, with text and truth from the annotations."""
    truth = inputs.moments.select("query_id", "query", gt_video_id="video_id", gt_start_s="start_s", gt_end_s="end_s")
    frame = inputs.predictions[method]
    frame = frame.filter(pl.col("status") == "ok") if "status" in frame.columns else frame
    return truth.join(frame.select("query_id", "first_rank", "rank", "num_turns", "turns"), on="query_id")


def _cell(text: str | None, limit: int) -> str:
    """Any text as one line that cannot break a table or carry markup."""
    line = " ".join((text or "").split())
    line = line if len(line) <= limit else line[: limit - 1] + "…"
    for character, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("`", "'")):
        line = line.replace(character, written)
    return line


def _short(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}"


def _plural(count: int, one: str, many: str) -> str:
    return one if count == 1 else many
