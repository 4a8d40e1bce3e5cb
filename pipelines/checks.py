"""Asset checks: what must hold of a table before anything is built on it.

All are partitioned: an unpartitioned blocking check would let one bad dataset block all others. Blocking ones guard
what a later stage would silently get wrong; a share of failed rows is worth a warning, not a stop.
"""

# No `from __future__ import annotations` here: Dagster reads the annotation of `context` as a class.

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import dagster as dg
import polars as pl

from assets._factory import Workplace, asset_key
from vsr1_core.datasets.benchmarks import BENCHMARKS, wrong_row_count
from vsr1_core.stages.base import Stage, View

MAX_FAILED_SHARE = 0.05
UNIT_TOLERANCE = 1e-3
HEADLINE = ("first_recall_at_1", "recall_at_1", "recall_at_10", "vcmr_0.5", "verification_accuracy")
MAX_DROP = 0.02
"""Of a headline metric, all of which are shares: the same rows give the same value, so any drop has a cause."""

Problem = str
"""What is wrong, in one sentence; empty when nothing is."""


@dataclass(frozen=True)
class Check:
    """`find` looks at one dataset's tables. A blocking check stops what is downstream."""

    name: str
    description: str
    find: Callable[[View, str], Problem]
    blocking: bool = True


def unsound_ids(view: View, asset: str) -> Problem:
    """Ids are unique and never null, and every failed row says why."""
    table = view.table(asset)
    frame = table.rows([table.key, "status", "error"])
    if frame[table.key].null_count() or frame[table.key].n_unique() != frame.height:
        return f"ids of {asset} are null or not unique"
    silent = frame.filter((pl.col("status") != "ok") & pl.col("error").is_null()).height
    return f"{silent} failed rows do not say why" if silent else ""


def many_failures(view: View, asset: str) -> Problem:
    """At most 5 % of the rows failed."""
    frame = view.table(asset).rows(["status", "error"])
    failed = frame.filter(pl.col("status") != "ok")
    if failed.height <= MAX_FAILED_SHARE * frame.height:
        return ""
    return f"{failed.height:,} of {frame.height:,} rows failed, e.g. {failed['error'][0]}"


def nothing_readable(view: View, asset: str) -> Problem:
    """At least one row is ok, where there are any: nothing can be built on none."""
    frame = view.table(asset).rows(["status", "error"])
    if frame.is_empty() or (frame["status"] == "ok").any():
        return ""
    return f"none of the {frame.height:,} rows of {asset} is usable, e.g. {frame['error'][0]}"


def not_unit_vectors(view: View, asset: str) -> Problem:
    """Every vector is finite and of length 1, and all have one size."""
    vectors = view.rows(asset, ["vector"])["vector"]
    if vectors.is_empty():
        return ""
    sizes = vectors.list.len().unique().to_list()
    if len(sizes) > 1:
        return f"vectors of {asset} have different sizes: {sizes}"
    values = pl.element().cast(pl.Float64).fill_null(float("nan"))  # a sum would leave a null out
    lengths = vectors.list.eval(values**2).list.sum().sqrt()
    wrong = int((~((lengths - 1).abs() <= UNIT_TOLERANCE)).sum())
    return f"{wrong:,} vectors of {asset} are not of length 1" if wrong else ""


def unknown_videos(view: View, asset: str) -> Problem:
    """Every annotated video is listed in `videos`, if only as a failed row."""
    if not view.table("videos").exists():
        return ""
    known = view.table("videos").rows(["video_id"])
    strange = view.rows(asset, ["video_id"]).join(known, on="video_id", how="anti")["video_id"].unique().sort()
    return f"{len(strange):,} videos of {asset} are not in videos, e.g. {strange[0]}" if len(strange) else ""


def unknown_queries(view: View, asset: str) -> Problem:
    """Every row belongs to a moment."""
    strange = view.rows(asset, ["query_id"]).join(view.rows("moments", ["query_id"]), on="query_id", how="anti")
    return f"{strange.height:,} queries of {asset} are not in moments" if strange.height else ""


def unpublished_row_counts(view: View, asset: str) -> Problem:
    """Every file of a public dataset has as many rows as it was published with."""
    rows = view.rows(asset, ["file_id", "num_rows"]).iter_rows() if view.entry.name in BENCHMARKS else ()
    return "; ".join(problem for file_id, num_rows in rows if (problem := wrong_row_count(file_id, num_rows)))


def worse_metrics(view: View, asset: str) -> Problem:
    """No headline metric is more than 2 points below the last good state, where the same queries were asked.

    A state is good when it is not worse than the last good one before it, so that a slow decline is seen too.
    """
    states = view.table(asset).kept_states(view.lake.history(asset) / f"dataset={view.entry.name}")
    if not states:
        return ""
    good = states[0]
    for state in states[1:-1]:
        good = good if dropped(state, good) else state
    return "; ".join(dropped(states[-1], good))


def dropped(now: pl.DataFrame, before: pl.DataFrame) -> list[str]:
    """What fell from one state of `metrics` to another, the furthest first."""
    key = ["method", "metric", "split", "num_queries"]
    both = now.filter(pl.col("metric").is_in(HEADLINE)).join(before, on=key, suffix="_before")
    fallen = both.filter(pl.col("value_before") - pl.col("value") > MAX_DROP)
    fallen = fallen.sort(pl.col("value_before") - pl.col("value"), descending=True)
    return [
        f"{row['metric']} of {row['method']} fell from {row['value_before']:.3f} to {row['value']:.3f}"
        for row in fallen.iter_rows(named=True)
    ]


EVERY = (
    Check("ids_are_sound", "Ids are unique; failed rows say why.", unsound_ids),
    Check("few_rows_failed", "At most 5 % of the rows failed.", many_failures, blocking=False),
)
SOME_USABLE = Check("some_rows_are_usable", "At least one row is ok, where there are any.", nothing_readable)
SOME_READABLE = Check(
    "some_videos_are_readable",  # here and not on videos: moments are wanted even where every video is missing
    "At least one video can be read, where there are any.",
    lambda view, _: nothing_readable(view, "videos"),
)
SPECIAL: dict[str, tuple[Check, ...]] = {
    "annotation_files": (
        Check(
            "row_counts_are_the_published_ones",
            "Files of a public dataset have as many rows as published.",
            unpublished_row_counts,
            blocking=False,
        ),
    ),
    "frame_tensors": (SOME_USABLE, SOME_READABLE),
    "base_models": (SOME_USABLE,),
    "moments": (
        SOME_USABLE,
        Check("videos_are_known", "Every annotated video is listed in videos.", unknown_videos),
    ),
    "query_embeddings": (
        Check("vectors_are_unit", "Vectors are finite and of length 1.", not_unit_vectors),
        Check("queries_are_known", "Every row belongs to a moment.", unknown_queries),
    ),
    "video_embeddings": (Check("vectors_are_unit", "Vectors are finite and of length 1.", not_unit_vectors),),
    "first_ranking": (Check("queries_are_known", "Every row belongs to a moment.", unknown_queries),),
    "metrics": (
        Check("metrics_did_not_fall", "No headline metric fell by more than 2 points.", worse_metrics, blocking=False),
    ),
    "hard_negatives": (Check("queries_are_known", "Every row belongs to a moment.", unknown_queries),),
}
NEEDS = {"some_videos_are_readable": ("videos",), "videos_are_known": ("videos",), "queries_are_known": ("moments",)}
"""Check name -> the other assets it reads."""


def build_checks(stages: Iterable[Stage], partitions_def: dg.PartitionsDefinition) -> list[dg.AssetChecksDefinition]:
    """The checks of every stage."""
    return [_checks_of(stage.name, partitions_def) for stage in stages]


def _checks_of(asset: str, partitions_def: dg.PartitionsDefinition) -> dg.AssetChecksDefinition:
    """All checks of one asset in one step: a step each would double the time of a build that has nothing to do."""
    checks = (*EVERY, *SPECIAL.get(asset, ()))
    key = asset_key(asset)
    specs = [
        dg.AssetCheckSpec(
            check.name,
            asset=key,
            description=check.description,
            blocking=check.blocking,
            partitions_def=partitions_def,
            additional_deps=[asset_key(name) for name in NEEDS.get(check.name, ())],
        )
        for check in checks
    ]

    @dg.multi_asset_check(name=f"{'__'.join(key.path)}_checks", specs=specs, required_resource_keys={"workplace"})
    def body(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        workplace: Workplace = context.resources.workplace
        view = workplace.view(context.partition_key)
        for check in checks:
            problem = check.find(view, asset)
            yield dg.AssetCheckResult(
                asset_key=key,
                check_name=check.name,
                passed=not problem,
                severity=dg.AssetCheckSeverity.ERROR if check.blocking else dg.AssetCheckSeverity.WARN,
                metadata={"problem": problem or "none"},
            )

    return body
