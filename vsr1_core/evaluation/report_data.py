"""The inputs of the report: frames that were read elsewhere, and what is computed from them once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from vsr1_core.evaluation.columns import ok_rows
from vsr1_core.evaluation.episodes import OUTCOMES, Episodes, load_episodes, outcomes
from vsr1_core.evaluation.markdown import markdown_table, with_interval
from vsr1_core.evaluation.method_style import MethodStyles
from vsr1_core.evaluation.metrics import Metric
from vsr1_core.evaluation.row_types import AnswerRow, MetricRow, typed_rows
from vsr1_core.input_form import InputForm

NO_CURVES = pl.DataFrame(
    schema={"method": pl.String, "curve": pl.String, "x": pl.Int64, "metric": pl.String}
    | dict.fromkeys(("value", "low", "high"), pl.Float64)
)
NO_FAILURES = pl.DataFrame(schema={"asset": pl.String, "row_id": pl.String, "error": pl.String})


@dataclass(frozen=True)
class ReportInputs:
    """All that the report reads."""

    dataset: str
    kind: str
    """The kind of dataset: a toy corpus is compared with nothing that was published."""
    split: str
    config: str
    """Name of the configuration."""
    styles: MethodStyles
    """How the methods are ordered, coloured and labelled, and which published rows they correspond to."""
    moments: pl.DataFrame
    """The split's annotated queries: rows of `moments`."""
    predictions: Mapping[str, pl.DataFrame]
    """Method -> all of its rows for these queries, failed ones too."""
    metrics: pl.DataFrame
    """The split's rows of `metrics`."""
    refinement: pl.DataFrame = field(default_factory=NO_CURVES.clone)
    """The split's rows of `refinement_curves`."""
    curves: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    """Model or checkpoint -> what its training logged: (step, name, value)."""
    failures: pl.DataFrame = field(default_factory=NO_FAILURES.clone)
    """(asset, row_id, error) of every failed row of the dataset."""
    forms: Mapping[str, InputForm] = field(default_factory=dict)
    """Method -> the input form of its policy."""
    models_from: str = ""
    """The dataset whose models are used; empty if they are the dataset's own."""
    num_videos: int | None = None
    """Size of the split's index; None if there is none."""
    num_resamples: int = 1000
    seed: int = 42

    @property
    def methods(self) -> list[str]:
        """Methods with predictions, the weakest design first."""
        return self.styles.ordered(list(self.predictions))


@dataclass(frozen=True)
class Analysis:
    """What is computed once and used by tables, plots and examples."""

    episodes: Mapping[str, Episodes]
    """Method -> its episodes; empty if there are no annotated queries."""
    outcomes: Mapping[str, dict[str, str]]
    """Method -> query id -> how the query ended, a key of `OUTCOMES`."""
    drawn: tuple[str, ...] = ()
    """Names of the plots that were written beside the text."""

    @staticmethod
    def of(inputs: ReportInputs) -> Analysis:
        if inputs.moments.is_empty():
            return Analysis({}, {})
        episodes = {name: load_episodes(inputs.moments, inputs.predictions[name]) for name in inputs.methods}
        return Analysis(episodes, {name: dict(outcomes(e).iter_rows()) for name, e in episodes.items()})


Section = Callable[[ReportInputs, Analysis], list[str]]
"""Returns the lines of a section; none if there is nothing to say."""


def outcome_shares(analysis: Analysis) -> pl.DataFrame:
    """(method, outcome, share) of every method and outcome."""
    rows = []
    for method, ends in analysis.outcomes.items():
        found = list(ends.values())
        rows += [(method, o, found.count(o) / max(1, len(found))) for o in OUTCOMES]
    schema = {"method": pl.String, "outcome": pl.String, "share": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def answers_of(inputs: ReportInputs, method: str) -> pl.DataFrame:
    """The ok predictions of a method with text and truth from the annotations; its columns are those of `AnswerRow`."""
    truth = inputs.moments.select("query_id", "query", gt_video_id="video_id", gt_start_s="start_s", gt_end_s="end_s")
    frame = ok_rows(inputs.predictions[method]).select("query_id", "first_rank", "rank", "num_turns", "turns")
    return truth.join(frame, on="query_id").select(list(AnswerRow.__annotations__))


def metric_table(inputs: ReportInputs, metrics: Sequence[Metric], methods: Sequence[str] | None = None) -> list[str]:
    """A table with one row per method and one column per metric. methods: None means all methods of the report."""
    return markdown_table(["method", *(metric.short for metric in metrics)], metric_rows(inputs, metrics, methods))


def metric_rows(
    inputs: ReportInputs, metrics: Sequence[Metric], methods: Sequence[str] | None = None
) -> list[list[str]]:
    """The rows of `metric_table`: a method, and one cell per metric."""
    cells = {(row["method"], row["metric"]): row for row in typed_rows(inputs.metrics, MetricRow)}
    return [
        [method, *(metric_cell(cells.get((method, metric.name)), metric) for metric in metrics)]
        for method in (inputs.methods if methods is None else methods)
    ]


def metric_cell(row: MetricRow | None, metric: Metric) -> str:
    """`value [low, high]` in the unit of the metric; a dash if there is no value."""
    return "-" if row is None else with_interval(row["value"], row["low"], row["high"], metric.scale)


def has_values(inputs: ReportInputs, metrics: Sequence[Metric]) -> list[str]:
    """The methods that have a value of at least one of these metrics."""
    names = [metric.name for metric in metrics]
    judged = inputs.metrics.filter(pl.col("metric").is_in(names)).drop_nulls("value")["method"].to_list()
    return [name for name in inputs.methods if name in judged]


CAPTIONS = {
    "recall": "Share of queries whose right video is among the first k, in the first ranking (by the query's own text) "
    "and in the last ranking.",
    "vcmr": "Share of queries answered with the right video and a span of at least this IoU.",
    "turns": "The same episodes, cut after the given number of shown videos. Bands are 95 % intervals.",
    "soft_tokens": "The last ranking if every turn had used only its first soft tokens. Bands are 95 % intervals.",
    "tokens": "Number of tokens that the policy generated per query, mean over the queries that ran.",
    "outcomes": "How each query ended.",
    "ranks": "Rank of the right video before and after refinement, one dot per query (jittered by up to 7 %).",
    "iou": "Span IoU in right videos that were accepted.",
    "curves": "Logged training values by step; the bold line is the running mean over 4 % of the points.",
}
"""Plot -> its caption."""


def plot_lines(analysis: Analysis, name: str) -> list[str]:
    """The lines of a plot with its caption; none if the plot was not drawn."""
    return ["", f"![{CAPTIONS[name]}]({name}.png)", "", f"*{CAPTIONS[name]}*"] if name in analysis.drawn else []
