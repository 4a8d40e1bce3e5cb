"""What builds did, kept for later comparisons: a line for each asset that a build changed, the settings that it was
built with, and the rows of some tables as each build left them.

Nothing here is read by a build except to see what is kept already, so that all of it may be deleted.
"""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from vsr1_core.rows.checkout import commit_of_checkout, version_of_package
from vsr1_core.rows.files import append_lines, atomic_path, write_jsonl
from vsr1_core.rows.increments import Outcome
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.table import Table
from vsr1_core.rows.unreadable import HISTORY_IS_DAMAGED, told
from vsr1_core.rows.versions import fingerprint

BUILDS, RECIPES = "builds", "recipes"
"""Names of the histories that are no table's."""
KEPT_COLUMNS: dict[str, Any] = {
    "built_at": pl.Datetime("us"),
    "run_id": pl.String,
    "is_gone": pl.Boolean,
    "row_version": pl.String,
    "status": pl.String,
}
"""The columns that a kept row has beside its key and the table's own columns. Times are UTC."""


@dataclass(frozen=True)
class BuildStep:
    """What one build did to one asset. Times are UTC. recipe: the id of the settings in the history of recipes."""

    run_id: str
    asset: str
    started_at: str
    ended_at: str
    seconds: float
    num_rows: int
    num_processed: int
    num_dropped: int
    num_failed: int
    config: str
    recipe: str
    commit: str
    version: str
    host: str


STEP_TYPES = {str: "VARCHAR", int: "BIGINT", float: "DOUBLE"}
"""Type of a field of BuildStep -> DuckDB's type."""


def folder_of(lake: Lake, what: str, dataset: str) -> Path:
    """The folder of one history of one dataset."""
    return lake.history(what) / f"dataset={dataset}"


def note_step(
    lake: Lake, table: Table, outcome: Outcome, run_id: str, settings: Mapping[str, Any], config: str
) -> None:
    """Append what a build did to an asset; nothing where it made and dropped no row."""
    if not outcome.num_processed and not outcome.num_dropped:
        return
    ended = datetime.now(UTC)
    step = BuildStep(
        run_id=run_id,
        asset=table.asset,
        started_at=_shown(ended - timedelta(seconds=outcome.seconds)),
        ended_at=_shown(ended),
        seconds=round(outcome.seconds, 3),
        num_rows=outcome.manifest["num_rows"],
        num_processed=outcome.num_processed,
        num_dropped=outcome.num_dropped,
        num_failed=outcome.num_failed,
        config=config,
        recipe=_kept_recipe(lake, table.dataset, settings),
        commit=commit_of_checkout(),
        version=version_of_package(),
        host=platform.node(),
    )
    path = folder_of(lake, BUILDS, table.dataset) / "steps.jsonl"
    append_lines(path, json.dumps(dataclasses.asdict(step)) + "\n")  # several processes of one run may do so at once


def _shown(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S.%f}"


def _kept_recipe(lake: Lake, dataset: str, settings: Mapping[str, Any]) -> str:
    """The id of these settings, which are written where they are new. settings: dotted key -> value."""
    values = {key: json.dumps(value, ensure_ascii=False, default=str) for key, value in settings.items()}
    recipe = fingerprint(values)[:16]
    path = folder_of(lake, RECIPES, dataset) / f"{recipe}.jsonl"
    if not path.exists():
        write_jsonl(path, ({"recipe": recipe, "key": key, "value": value} for key, value in values.items()))
    return recipe


def keep_changed_rows(table: Table, kept: Callable[[pl.DataFrame], pl.DataFrame], folder: Path, run_id: str) -> None:
    """Add the rows that changed since the last kept state to `folder`, and the ids of those that are gone.

    kept: the table's rows -> what is kept of them, with the key. Nothing is read where the table is as it was.
    """
    version, files = table.manifest()["data_version"], sorted(folder.glob("*.parquet"))
    if files and files[-1].stem.endswith(version):
        return
    same = [table.key, "row_version", "status"]
    now, known = table.rows(same), _known(files, same)
    changed = now.join(known, on=same, how="anti").select(same)
    gone = known.join(now, on=table.key, how="anti").select(table.key, is_gone=pl.lit(value=True))
    rows = pl.concat([changed.join(kept(table.rows()), on=table.key, how="left"), gone], how="diagonal")
    if rows.is_empty() and not files:
        return
    built_at = datetime.now(UTC).replace(tzinfo=None)
    stamped = rows.with_columns(
        pl.lit(built_at).cast(KEPT_COLUMNS["built_at"]).alias("built_at"),
        pl.lit(run_id).alias("run_id"),
        pl.col("is_gone").fill_null(value=False),
    )
    with atomic_path(folder / f"{built_at:%Y%m%dT%H%M%S.%f}-{version}.parquet") as temporary:
        stamped.write_parquet(temporary)


def _known(files: list[Path], columns: list[str]) -> pl.DataFrame:
    """The last kept state of each row that was not gone in it."""
    if not files:
        return pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
    read = []
    for path in files:
        with told(path, HISTORY_IS_DAMAGED):
            read.append(pl.read_parquet(path, columns=[*columns, "is_gone"], glob=False, hive_partitioning=False))
    last = pl.concat(read).unique(columns[0], keep="last")
    return last.filter(~pl.col("is_gone")).select(columns)
