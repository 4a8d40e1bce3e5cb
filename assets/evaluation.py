"""The evaluation: what each method answered, the scores, and the report."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import dagster as dg
import polars as pl

from assets._factory import GPU, AssetInfo
from assets._metadata import drawn, fitting, markdown_table, picture, with_pictures
from vsr1_core.evaluation.metrics import all_metrics, metrics_shown
from vsr1_core.home.metrics_grid import metrics_grid
from vsr1_core.home.running import running_server
from vsr1_core.stages.base import View
from vsr1_core.stages.method_styles import STYLES


def prediction_extras(view: View, asset: str) -> dict[str, Any]:
    """How often the answer is the right video, and how many turns a query took."""
    frame = view.rows(asset, ["split", "video_id", "gt_video_id", "num_turns"])
    right = (pl.col("video_id") == pl.col("gt_video_id")).fill_null(value=False).mean().alias("right video")
    table = frame.group_by("split").agg(pl.len().alias("queries"), right, pl.col("num_turns").mean()).sort("split")
    answers = dg.MetadataValue.md(markdown_table(table.columns, table.rows()))
    return {"answers": answers, "each query": each_query(view, asset.partition(".")[2])}


def each_query(view: View, method: str) -> dg.MetadataValue[Any]:
    """Where the page shows each query that a method answered: an address, or how to start the page's server."""
    server = running_server(view.home) if view.home is not None else None
    place = f"/#/queries?{urlencode({'d': view.entry.name, 'm': method})}"
    if server is not None:
        return dg.MetadataValue.url(server.url + place)
    return dg.MetadataValue.md(f"run `vsr1 serve`, and open `{place}` there")


def probe_extras(view: View, asset: str) -> dict[str, Any]:
    """How often the verdict is right, on right and on wrong videos."""
    frame = view.rows(asset, ["split", "label", "decision", "iou"])
    right = (pl.col("decision") == pl.col("label")).mean().alias("right verdict")
    table = frame.group_by("split", "label").agg(pl.len().alias("probes"), right, pl.col("iou").mean())
    return {"verdicts": dg.MetadataValue.md(markdown_table(table.columns, table.sort("split", "label").rows()))}


def metrics_extras(view: View, asset: str) -> dict[str, Any]:
    """A table with one row per metric and one column per method, the meaning of each metric, and numbers that the UI
    plots over builds."""
    frame = view.rows(asset)
    shown = [metric.name for metric in metrics_shown("history")]
    plotted = frame.filter(pl.col("metric").is_in(shown) & pl.col("method").is_in(STYLES.basic))
    values = plotted.drop_nulls("value").sort("split", "metric", "method").select("split", "metric", "method", "value")
    numbers = {f"{split}/{metric}/{method}": value for split, metric, method, value in values.iter_rows()}
    meanings = [(metric.name, metric.better, metric.says) for metric in all_metrics().values()]
    said = markdown_table(["metric", "better", "what it says"], meanings, max_cell=200)
    return {"metrics": dg.MetadataValue.md(metrics_table(frame)), "meanings": dg.MetadataValue.md(said), **numbers}


def metrics_table(frame: pl.DataFrame) -> str:
    """Rows of `metrics` as a Markdown table whose cells are `value [low, high]`."""
    header, rows = metrics_grid(frame)
    return markdown_table(header, rows)


def report_extras(view: View, asset: str) -> dict[str, Any]:
    """The report of each split, with its plots."""
    listed = view.rows(asset, ["split", "path"]).sort("split").iter_rows()
    return {
        f"report/{split}": with_pictures(view.lake, Path(path).read_text(encoding="utf-8"), Path(path).parent)
        for split, path in listed
    }


def curves_extras(view: View, asset: str) -> dict[str, Any]:
    """The curves as pictures."""
    rows = view.rows(asset)
    pictures = {}
    for (split,), frame in rows.partition_by("split", as_dict=True).items():
        values = sorted(frame["row_version"])
        for curve in sorted(frame["curve"].unique()):
            png = drawn(view.lake, [curve, values], functools.partial(_fitting_plot, curve, frame))
            pictures[f"curves/{split}/{curve}"] = picture(png, f"{split}: metrics by number of {curve}")
    return pictures


def _fitting_plot(curve: str, frame: pl.DataFrame) -> bytes:
    from vsr1_core.evaluation import plots

    draw = {"turns": plots.turns, "soft_tokens": plots.soft_tokens}[curve]
    return fitting(plots.png(draw(frame, STYLES)))


ASSETS = (
    AssetInfo("verification_probe", frozenset({"pytorch", "parquet"}), probe_extras, GPU),
    AssetInfo("predictions", frozenset({"pytorch", "parquet"}), prediction_extras, GPU),
    AssetInfo("metrics", extras=metrics_extras),
    AssetInfo("refinement_curves", frozenset({"parquet", "matplotlib"}), curves_extras),
    AssetInfo("report", frozenset({"markdown"}), report_extras),
)
