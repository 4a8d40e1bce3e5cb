"""The stages `metrics`, `refinement_curves` and `report`: what is scored, from which rows, and when it is out of date.

`vsr1_core.evaluation` defines the metrics (`.metrics`, `.curves`) and writes the text of the report (`.report`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import polars as pl

from vsr1_core.datasets.sources import FileVersions
from vsr1_core.evaluation.bootstrap import summarise
from vsr1_core.evaluation.curves import Point, score_soft_tokens, score_turns, soft_token_points, turn_points
from vsr1_core.evaluation.episodes import Episodes, load_episodes
from vsr1_core.evaluation.metrics import all_metrics, score
from vsr1_core.evaluation.probes import Probes, load_probes
from vsr1_core.evaluation.scores import Scores
from vsr1_core.input_form import InputForm
from vsr1_core.recipes import Configuration
from vsr1_core.rows.merged import is_among
from vsr1_core.rows.versions import fingerprint, fingerprint_of_all
from vsr1_core.stages import checks, methods
from vsr1_core.stages import columns as c
from vsr1_core.stages.base import Row, RowIds, Stage, View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.method_styles import STYLES
from vsr1_core.stages.model_folders import options_of
from vsr1_core.stages.moments import IS_TRAIN, TRAIN
from vsr1_core.stages.readings import Reading
from vsr1_core.stages.reads import every, found_by, of_split, row_ids_of_split

CHECKPOINTS = ("base_models", *methods.TRAINED)
PREDICTIONS = tuple(f"predictions.{name}" for name in methods.ALL)
PROBES = tuple(f"verification_probe.{name}" for name in methods.PROBED)


def _of_method(view: View, prefix: str, row: Row) -> RowIds:
    """All rows of the asset `<prefix>.<method>` in the row's split, for the method of the row."""
    asset = f"{prefix}.{row.known['method']}"
    return [(asset, row_ids_of_split(view, asset, row.known["split"]))] if asset in view.stages else []


def _of_all_methods(view: View, row_id: str, row: Row) -> RowIds:
    assets = [f"predictions.{method}" for method in view.config.evaluation.methods]
    return [(asset, row_ids_of_split(view, asset, row_id)) for asset in assets if asset in view.stages]


_SCORED = {
    "moments": of_split("moments"),
    "predictions": found_by(lambda view, _, row: _of_method(view, "predictions", row), *PREDICTIONS),
}
_RESULT = {
    "value": c.VALUE,
    "low": c.LOW,
    "high": c.HIGH,
    "num_queries": c.NUM_QUERIES,
    "seed": c.SEED,
    "split": c.SPLIT,
}


class ScoreStage(Stage):
    """A stage whose rows are values with bootstrap intervals over queries."""

    group = "evaluation"

    def recipe(self, config: Configuration) -> Any:
        return [config.evaluation.num_resamples, config.evaluation.seed]


def _scored_methods(view: View) -> Iterator[tuple[str, str, pl.DataFrame, dict[str, str]]]:
    """(split, method, the split's annotated queries, inputs of the method's scores) of all that can be scored."""
    for split in view.config.evaluation.splits:
        truth = annotated_queries(view, split)
        moments = _content(truth, _SPAN)
        for method in _methods(view, truth):
            yield split, method, truth, {"moments": moments, "predictions": _answers(view, method, truth)}


class Metrics(ScoreStage):
    """One row per method and metric. A method is scored as soon as it has rows, even if all of them failed."""

    name = "metrics"
    key = "metric_id"
    key_says = "Id of the value: `<method>/<metric>`; all but the first evaluated split add `@<split>`."
    version = 4
    says = "One row per method and metric: its value and 95 % interval. Shares are in [0, 1]; null means undefined."
    reads = {
        **_SCORED,
        "probes": found_by(lambda view, _, row: _of_method(view, "verification_probe", row), *PROBES),
        "train_moments": every("moments", IS_TRAIN),
    }
    checks = (checks.METRICS_HELD, checks.REFINEMENT_HELPS)
    columns = {"method": c.SEARCHED_BY, "metric": c.METRIC, **_RESULT}

    def plan(self, view: View) -> Mapping[str, Row]:
        rows = {}
        train = _train_times(view)
        for split, method, truth, inputs in _scored_methods(view):
            of_probes = _probe_inputs(view, method, truth, train)
            for name, metric in all_metrics().items():
                if metric.section == "windows" and not view.config.segments.window_s:
                    continue
                known = {"method": method, "metric": name, "split": split}
                reads = of_probes if metric.source == "probes" else inputs
                rows[_metric_id(view, method, name, split)] = Row(reads, known)
        return rows

    def beside_tables(self, view: View, files: FileVersions) -> Any:
        """The metrics, which may be added at any time."""
        return [[name, metric.source, metric.section] for name, metric in all_metrics().items()]

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        recipe = view.config.evaluation
        for (split, method), wanted in _by_method(rows).items():
            truth = annotated_queries(view, split)
            episodes = load_episodes(truth, view.rows(f"predictions.{method}"))
            scores = score(episodes, _probes(view, method, truth))
            for row in summarise(scores, recipe.num_resamples, recipe.seed).iter_rows(named=True):
                metric_id = _metric_id(view, method, row["metric"], split)
                if metric_id in wanted:
                    yield {"metric_id": metric_id, "method": method, "split": split, **row}

    def after_build(self, view: View) -> None:
        """Keep a copy of each state of the table, so that builds can be compared (the view `metrics_history`)."""
        view.table(self.name).keep_state(view.lake.history(self.name) / f"dataset={view.entry.name}")


class RefinementCurves(ScoreStage):
    """One row per method and point of a curve: a metric by the number of turns, or of soft tokens per turn, allowed.

    Only methods that refine with soft tokens have curves over soft tokens.
    """

    name = "refinement_curves"
    key = "point_id"
    key_says = "Id of the point: `<method>/<curve>/<x>/<metric>`; all but the first evaluated split add `@<split>`."
    says = "One row per method and curve point: a metric if only so many turns, or soft tokens per turn, were allowed."
    reads = _SCORED
    uses = CHECKPOINTS
    is_planned_from_tables = True
    columns = {
        "method": c.SEARCHED_BY,
        "curve": c.text("What the curve varies: the number of `turns`, or of `soft_tokens` per turn."),
        "x": c.integer("Number of turns or of soft tokens per turn that were allowed."),
        "metric": c.METRIC,
        **_RESULT,
    }

    def plan(self, view: View) -> Mapping[str, Row]:
        rows = {}
        for split, method, _, inputs in _scored_methods(view):
            for point in _points(view, method):
                known = {"method": method, "split": split, **asdict(point)}
                rows[_metric_id(view, method, point.name, split)] = Row(inputs, known, facts=point.name)
        return rows

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        recipe = view.config.evaluation
        for (split, method), wanted in _by_method(rows).items():
            episodes = load_episodes(annotated_queries(view, split), view.rows(f"predictions.{method}"))
            values = summarise(_curve_scores(view, method, episodes), recipe.num_resamples, recipe.seed)
            of_name = {row["metric"]: row for row in values.to_dicts()}
            for point_id, row in wanted.items():
                yield {"point_id": point_id, **of_name[row.facts], **row.known}


def scores_of(view: View, split: str) -> dict[str, Scores]:
    """Method -> its metrics and curve points per query, from the committed tables, to compare several runs."""
    truth, found = annotated_queries(view, split), {}
    for method in _methods(view, truth):
        episodes = load_episodes(truth, view.rows(f"predictions.{method}"))
        parts = [score(episodes, _probes(view, method, truth)), _curve_scores(view, method, episodes)]
        found[method] = Scores.joined(parts)
    return found


def _curve_scores(view: View, method: str, episodes: Episodes) -> Scores:
    parts = [score_turns(episodes, view.config.evaluation.num_turns)]
    if num_tokens := num_soft_tokens_of(view, method):
        parts.append(score_soft_tokens(episodes, view.rows(f"predictions.{method}"), num_tokens))
    return Scores.joined(parts)


def _by_method(rows: Mapping[str, Row]) -> dict[tuple[str, str], dict[str, Row]]:
    """(split, method) -> the rows of both, by row id."""
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row_id, row in rows.items():
        found.setdefault((row.known["split"], row.known["method"]), {})[row_id] = row
    return found


def _points(view: View, method: str) -> list[Point]:
    num_tokens = num_soft_tokens_of(view, method)
    return [*turn_points(view.config.evaluation.num_turns), *(soft_token_points(num_tokens) if num_tokens else [])]


def num_soft_tokens_of(view: View, method: str) -> int:
    """Number of soft tokens that the policy of `method` was made for; 0 where the method does not refine with them."""
    how = methods.ALL[method]
    options = options_of(view, how.model, how.row_id) if how.refine == "soft" else None
    return int(options["num_soft_tokens"]) if options else 0


class Report(Stage):
    """One row per split: the path of the Markdown file, which has its plots in the same folder."""

    name = "report"
    key = "split"
    group = "evaluation"
    version = 3
    says = "One written report per split: Markdown with plots, and the published numbers next to the measured ones."
    reads = {
        "moments": of_split("moments"),
        "predictions": found_by(_of_all_methods, *PREDICTIONS),
        "metrics": of_split("metrics"),
        "refinement_curves": of_split("refinement_curves"),
        "video_index": of_split("video_index"),
        **{asset: every(asset) for asset in CHECKPOINTS},
    }
    is_planned_from_tables = True
    columns = {"path": c.PATH}

    def recipe(self, config: Configuration) -> Any:
        return [config.name, config.evaluation.num_resamples, config.evaluation.seed]

    def plan(self, view: View) -> Mapping[str, Row]:
        shared = {"failures": fingerprint(_failures(view).select("asset", "row_id").rows())}
        shared["dataset"] = fingerprint([view.entry.kind, view.entry.models_from])
        shared |= {asset: _versions(view, asset) for asset in CHECKPOINTS if asset in view.stages}
        rows = {}
        for split in view.config.evaluation.splits:
            truth = annotated_queries(view, split)
            of_split = pl.col("split") == split
            rows[split] = Row(
                {
                    **shared,
                    "moments": _content(truth, ("query", "duration_s", *_SPAN)),
                    "predictions": fingerprint([[m, _answers(view, m, truth)] for m in _methods(view, truth)]),
                    "metrics": _versions(view, "metrics", of_split),
                    "refinement_curves": _versions(view, "refinement_curves", of_split),
                    "video_index": _versions(view, "video_index", of_split),
                }
            )
        return rows

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        from vsr1_core.evaluation.report import write_report
        from vsr1_core.evaluation.report_data import ReportInputs

        recipe, curves, failures = view.config.evaluation, _curves(view), _failures(view)
        for split in rows:
            truth = annotated_queries(view, split)
            in_split = pl.col("query_id").is_in(truth["query_id"].to_list())
            inputs = ReportInputs(
                dataset=view.entry.name,
                kind=view.entry.kind,
                split=split,
                config=view.config.name,
                styles=STYLES,
                moments=truth,
                predictions={m: view.table(f"predictions.{m}").rows().filter(in_split) for m in _methods(view, truth)},
                metrics=view.rows("metrics").filter(pl.col("split") == split),
                refinement=view.rows("refinement_curves").filter(pl.col("split") == split),
                curves=curves,
                failures=failures,
                forms=_forms(view),
                models_from=view.entry.models_from,
                num_videos=_num_videos(view, split),
                num_resamples=recipe.num_resamples,
                seed=recipe.seed,
            )
            yield {"split": split, "path": str(write_report(inputs, view.files("report") / split).absolute())}


_SPAN = ("video_id", "start_s", "end_s")
_TIMES = ("start_s", "end_s", "duration_s")


def _metric_id(view: View, method: str, metric: str, split: str) -> str:
    """`<method>/<metric>`, with `@<split>` appended for all but the first split of the recipe."""
    return f"{method}/{metric}" + ("" if split == view.config.evaluation.splits[0] else f"@{split}")


def _all_rows(view: View, asset: str, columns: Sequence[str]) -> pl.DataFrame:
    """All rows of an upstream table, failed ones included, as planned. Raises NotYetKnown where the plan is unknown."""
    return view.read(Reading.of(asset, "all", columns))


def annotated_queries(view: View, split: str) -> pl.DataFrame:
    """The annotated queries of a split, sorted by id."""
    columns = ["query_id", "split", "query", "video_id", "start_s", "end_s", "duration_s", "status"]
    return view.rows("moments", columns, [split]).sort("query_id")


def _content(truth: pl.DataFrame, columns: Sequence[str]) -> str:
    """A fingerprint of these columns of the annotated queries: other columns may change without changing it."""
    return fingerprint_of_all(truth.select("query_id", *columns).iter_rows())


def _train_times(view: View) -> str:
    """`_content` of the annotated times of the train split, few of which are in memory at a time."""
    read = Reading.of("moments", "ok", ["query_id", *_TIMES], TRAIN)
    return fingerprint_of_all(row for rows in view.read_batches(read) for row in rows.iter_rows())


def _methods(view: View, truth: pl.DataFrame) -> list[str]:
    """The recipe's methods that have a row for one of these queries."""
    found = []
    for method in view.config.evaluation.methods:
        asset = f"predictions.{method}"
        if asset in view.stages and not truth.is_empty():
            rows = _all_rows(view, asset, ["query_id"])
            if rows["query_id"].is_in(truth["query_id"].implode()).any():
                found.append(method)
    return found


def _answers(view: View, method: str, truth: pl.DataFrame) -> str:
    """One version for the rows of a method and these queries; it covers which rows exist and which failed."""
    rows = _all_rows(view, f"predictions.{method}", ["query_id", "row_version", "status"])
    return _of_rows(rows.filter(is_among("query_id", truth["query_id"])))


def _of_rows(rows: pl.DataFrame) -> str:
    """A fingerprint of rows in the order of their ids, which are in the first column."""
    return fingerprint_of_all(rows.sort(rows.columns[0]).iter_rows())


def _probe_inputs(view: View, method: str, truth: pl.DataFrame, train: str) -> dict[str, str]:
    """The inputs of the metrics of probes; `none` for a method that has no probes. train: version of the train split's
    times, by which spans are guessed."""
    asset = f"verification_probe.{method}"
    if asset not in view.stages:
        return {"probes": "none"}
    probes = _all_rows(view, asset, ["probe_id", "query_id", "row_version", "status"])
    return {
        "probes": _of_rows(probes.filter(is_among("query_id", truth["query_id"]))),
        "moments": _content(truth, _TIMES),
        "train_moments": train,
    }


def _probes(view: View, method: str, truth: pl.DataFrame) -> Probes | None:
    asset = f"verification_probe.{method}"
    return load_probes(truth, view.rows(asset), annotated_queries(view, "train")) if asset in view.stages else None


def _versions(view: View, asset: str, predicate: pl.Expr | None = None) -> str:
    stage = view.stages[asset]
    names = list(dict.fromkeys([stage.key, "row_version", "status", *(["split"] if predicate is not None else [])]))
    rows = _all_rows(view, asset, names)
    rows = rows if predicate is None else rows.filter(predicate)
    return _of_rows(rows) if rows.height else "none"


def _failures(view: View) -> pl.DataFrame:
    """(asset, row_id, error) of every failed row of the dataset, in the order in which the assets are built."""
    schema = {"asset": pl.String, "row_id": pl.String, "error": pl.String}
    frames = [pl.DataFrame(schema=schema)]
    for name, stage in view.stages.items():
        if name != Report.name:
            table = view.planned.get(name, view.table(name))
            rows = table.rows([stage.key, "error"], where=pl.col("status") == "failed")
            frames.append(rows.select(pl.lit(name).alias("asset"), pl.col(stage.key).alias("row_id"), "error"))
    return pl.concat(frames)


def _curves(view: View) -> dict[str, pl.DataFrame]:
    """Name of the model or checkpoint -> its logged values (step, name, value); no entry where none were logged."""
    curves = {}
    for asset in CHECKPOINTS:
        if asset in view.stages:
            key = view.stages[asset].key
            points = view.rows(asset, [key, "curve"]).explode("curve").drop_nulls("curve")
            for (row_id,), frame in points.partition_by(key, as_dict=True, maintain_order=True).items():
                curves[str(row_id)] = frame.select("curve").unnest("curve").drop_nulls("value")
    return curves


def _forms(view: View) -> dict[str, InputForm]:
    """Method -> the input form of its policy; no entry where the policy records no options."""
    found = {}
    for name in view.config.evaluation.methods:
        options = options_of(view, methods.ALL[name].model, methods.ALL[name].row_id)
        if options:
            found[name] = InputForm.recorded(options["form"])
    return found


def _num_videos(view: View, split: str) -> int | None:
    rows = view.rows("video_index", ["split", "num_videos"]).filter(pl.col("split") == split)
    return int(rows["num_videos"][0]) if rows.height else None


STAGES: tuple[type[Stage], ...] = (Metrics, RefinementCurves, Report)
