"""Checks that tables must pass before anything is built on them. Each stage names its own checks.

Blocking checks catch what a later stage would silently get wrong. A share of failed rows gives a warning and stops
nothing.
"""

from __future__ import annotations

import polars as pl

from vsr1_core.datasets.benchmarks import BENCHMARKS, wrong_row_count
from vsr1_core.evaluation.metrics import metrics_shown
from vsr1_core.evaluation.refinement import warnings_by_split
from vsr1_core.stages.base import Check, Stage, View
from vsr1_core.stages.corrections import corrected_moments, corrections_file

MAX_FAILED_SHARE = 0.05
MIN_RECALL = 0.9
UNIT_TOLERANCE = 1e-3
MAX_DROP = 0.02
"""Drop of a share beyond which a metric warns. The same rows give the same value, so each drop has a cause."""


def unsound_ids(view: View, asset: str) -> str:
    """Check that ids are unique and never null, and that every failed row says why it failed."""
    table = view.table(asset)
    frame = table.rows([table.key, "status", "error"])
    if frame[table.key].null_count() or frame[table.key].n_unique() != frame.height:
        return f"ids of {asset} are null or not unique"
    silent = frame.filter((pl.col("status") != "ok") & pl.col("error").is_null()).height
    return f"{silent} failed rows do not say why" if silent else ""


def many_failures(view: View, asset: str) -> str:
    """Check that at most 5 % of the rows failed."""
    frame = view.table(asset).rows(["status", "error"])
    failed = frame.filter(pl.col("status") != "ok")
    if failed.height <= MAX_FAILED_SHARE * frame.height:
        return ""
    return f"{failed.height:,} of {frame.height:,} rows failed, e.g. {failed['error'][0]}"


def nothing_readable(view: View, asset: str) -> str:
    """Check that at least one row is ok, where the table has rows: nothing can be built on unusable rows."""
    frame = view.table(asset).rows(["status", "error"])
    if frame.is_empty() or (frame["status"] == "ok").any():
        return ""
    return f"none of the {frame.height:,} rows of {asset} is usable, e.g. {frame['error'][0]}"


def not_unit_vectors(view: View, asset: str) -> str:
    """Check that every vector is finite and of length 1, and that all vectors have the same size."""
    vectors = view.rows(asset, ["vector"])["vector"]
    if vectors.is_empty():
        return ""
    sizes = vectors.list.len().unique().to_list()
    if len(sizes) > 1:
        return f"vectors of {asset} have different sizes: {sizes}"
    values = pl.element().cast(pl.Float64).fill_null(float("nan"))  # a sum would skip nulls
    lengths = vectors.list.eval(values**2).list.sum().sqrt()
    wrong = int((~((lengths - 1).abs() <= UNIT_TOLERANCE)).sum())
    return f"{wrong:,} vectors of {asset} are not of length 1" if wrong else ""


def missing_neighbours(view: View, asset: str) -> str:
    """Check that each approximate index finds nine tenths of what an exact search finds."""
    low = view.rows(asset, ["split", "recall_at_10"]).filter(pl.col("recall_at_10") < MIN_RECALL)
    kind = view.config.retrieval.index
    shares = [f"that of split {split} {recall:.0%}" for split, recall in low.iter_rows()]
    advice = "retrieval.index=flat finds all"
    return f"{kind} indexes find too few of the ten nearest videos: {', '.join(shares)} ({advice})" if shares else ""


def unknown_videos(view: View, asset: str) -> str:
    """Check that every annotated video has a row in `videos`, which may be a failed one."""
    if not view.table("videos").exists():
        return ""
    known = view.table("videos").rows(["video_id"])
    strange = view.rows(asset, ["video_id"]).join(known, on="video_id", how="anti")["video_id"].unique().sort()
    return f"{len(strange):,} videos of {asset} are not in videos, e.g. {strange[0]}" if len(strange) else ""


def open_conflicts(view: View, asset: str) -> str:
    """Check that every correction that was not undone is applied."""
    judged = corrected_moments(view).judged if (path := corrections_file(view)) and path.is_file() else []
    open_ones = [one for one in judged if one.state == "conflict"]
    if not open_ones:
        return ""
    first = f"that of {open_ones[0].correction.query_id}: {open_ones[0].detail}"
    listing = f"vsr1 corrections list --dataset {view.entry.name}"
    return f"{len(open_ones):,} corrections are not applied, e.g. {first} ({listing})"


def unknown_queries(view: View, asset: str) -> str:
    """Check that every row belongs to a row of `moments`."""
    strange = view.rows(asset, ["query_id"]).join(view.rows("moments", ["query_id"]), on="query_id", how="anti")
    return f"{strange.height:,} queries of {asset} are not in moments" if strange.height else ""


def unpublished_row_counts(view: View, asset: str) -> str:
    """Check that every annotation file of a public dataset has as many rows as its published version."""
    rows = view.rows(asset, ["file_id", "num_rows"]).iter_rows() if view.entry.corpus in BENCHMARKS else ()
    return "; ".join(problem for file_id, num_rows in rows if (problem := wrong_row_count(file_id, num_rows)))


def worse_metrics(view: View, asset: str) -> str:
    """Check that no metric that warns is more than 2 points worse than in the last good state, over the same queries.

    A state is good when it is not worse than the last good state before it, so that a slow decline is noticed as well.
    """
    states = view.table(asset).kept_states(view.lake.history(asset) / f"dataset={view.entry.name}")
    if not states:
        return ""
    good = states[0]
    for state in states[1:-1]:
        good = good if dropped(state, good) else state
    return "; ".join(dropped(states[-1], good))


def dropped(now: pl.DataFrame, before: pl.DataFrame) -> list[str]:
    """Sentences about the metrics that got worse from one state of `metrics` to another, the largest drop first."""
    key = ["method", "metric", "split", "num_queries"]
    signs = {metric.name: 1.0 if metric.better == "higher" else -1.0 for metric in metrics_shown("warning")}
    both = now.filter(pl.col("metric").is_in(list(signs))).join(before, on=key, suffix="_before")
    sign = pl.col("metric").replace_strict(signs, default=1.0, return_dtype=pl.Float64)
    both = both.with_columns(drop=sign * (pl.col("value_before") - pl.col("value")))
    fallen = both.filter(pl.col("drop") > MAX_DROP).sort("drop", descending=True)
    changes = fallen.select("metric", "method", "value_before", "value").iter_rows()
    return [
        f"{metric} of {method} {'fell' if signs[metric] > 0 else 'rose'} from {old:.3f} to {new:.3f}"
        for metric, method, old, new in changes
    ]


def harmful_refinement(view: View, asset: str) -> str:
    """Check that no method finds fewer right videos among the first ten after refinement than before."""
    return "; ".join(warnings_by_split(view.rows(asset)))


EVERY = (
    Check("ids_are_sound", "Ids are unique and not null, and every failed row says why it failed.", unsound_ids),
    Check("few_rows_failed", "At most 5 % of the rows failed.", many_failures, blocking=False),
)
"""The checks of every table."""


def checks_of(stage: Stage) -> tuple[Check, ...]:
    """All checks of a stage's table."""
    return (*EVERY, *stage.checks)


SOME_USABLE = Check("some_rows_are_usable", "At least one row is ok, where the table has rows.", nothing_readable)
SOME_READABLE = Check(
    "some_videos_are_readable",  # a check of frames, not of videos: moments are made even where every video is missing
    "At least one video can be read, where the dataset has videos.",
    lambda view, _: nothing_readable(view, "videos"),
    needs=("videos",),
)
VIDEOS_KNOWN = Check(
    "videos_are_known", "Every annotated video has a row in `videos`.", unknown_videos, needs=("videos",)
)
CORRECTIONS_APPLY = Check(
    "corrections_apply", "Every correction fits what is annotated by now.", open_conflicts, blocking=False
)
QUERIES_KNOWN = Check(
    "queries_are_known", "Every row belongs to a row of `moments`.", unknown_queries, needs=("moments",)
)
UNIT_VECTORS = Check("vectors_are_unit", "All vectors are finite, of length 1 and of the same size.", not_unit_vectors)
INDEX_FINDS = Check(
    "index_finds_neighbours",
    "An approximate index finds at least 90 % of the ten nearest videos of its own videos.",
    missing_neighbours,
    blocking=False,
)
PUBLISHED_ROW_COUNTS = Check(
    "row_counts_are_the_published_ones",
    "Annotation files of a public dataset have as many rows as their published versions.",
    unpublished_row_counts,
    blocking=False,
)
METRICS_HELD = Check(
    "metrics_did_not_fall", "No metric that warns got worse by more than 2 points.", worse_metrics, blocking=False
)
REFINEMENT_HELPS = Check(
    "refinement_does_not_harm",
    "R@10 of the last ranking is not lower than that of the first, for any method.",
    harmful_refinement,
    blocking=False,
)
