"""The views of `vsr1.duckdb` that show earlier builds: what each of them did, with which settings, and what they left.

`rows.build_history` writes what these views read, and `rows.table` the states of `metrics`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_type_hints

import polars as pl

from vsr1_core.home.row_sql import fields_of, name_list, pattern_of, quoted_text, scan_of
from vsr1_core.home.segment_sql import is_right
from vsr1_core.home.warehouse_views import (
    JUDGED,
    METRICS,
    OF_TURNS,
    OUTCOME,
    PREDICTIONS,
    SAYS_OUTCOME,
    Tables,
    sql_view,
)
from vsr1_core.rows.build_history import BUILDS, KEPT_COLUMNS, RECIPES, STEP_TYPES, BuildStep
from vsr1_core.rows.table import BASE_COLUMNS, HISTORY_COLUMNS
from vsr1_core.stages.base import Stage
from vsr1_core.stages.predictions import KEPT_OF_PREDICTIONS
from vsr1_core.stages.turns import KEPT_OF_TURNS

STEP_COLUMNS = {name: STEP_TYPES[kind] for name, kind in get_type_hints(BuildStep).items()}
RECIPE_COLUMNS = dict.fromkeys(("recipe", "key", "value"), "VARCHAR")
OF_BUILD = {
    "run_id": "Id of the build: that of the Dagster run, or one of its own where `Home.build` made it.",
    "config": "Name of the configuration that the build used.",
    "recipe": "Id of all settings that the build used; the view `recipes` has them.",
    "commit": "Git commit of the checkout that built; empty for an installed package.",
    "version": "Version of the package that built.",
    "host": "Name of the machine that built.",
}

OF_STATE = {
    "states_ago": "How many states of this prediction ago: 0 for the present one, 1 for the one before it.",
    "built_at": "Time (UTC) at which a build left the prediction in this state.",
    "run_id": OF_BUILD["run_id"],
}


@sql_view(
    "metrics_history",
    "The metrics after each build that changed them, so that builds can be compared.",
    {
        "builds_ago": "How many states ago this one was: 0 for the present state, 1 for the one before it, and so on.",
        "built_at": "Time (UTC) at which a build left the metrics in this state.",
        "data_version": "Hash of all rows of `metrics` in this state.",
    },
    like=METRICS,
)
def metrics_history(tables: Tables) -> str | None:
    if METRICS not in tables.stages:
        return None
    pattern = pattern_of(f"lake/history/{METRICS}/dataset=*/*.parquet")
    columns = name_list(["dataset", *HISTORY_COLUMNS, *tables.stages[METRICS].columns])
    age = "dense_rank() OVER (PARTITION BY dataset ORDER BY built_at DESC) - 1 AS builds_ago"
    return f"SELECT {columns}, {age} FROM {scan_of(pattern)}"


@sql_view(
    "builds",
    "One row per build that made or dropped rows, newest first.",
    {
        **OF_BUILD,
        "builds_ago": "How many builds of the dataset ago: 0 for the last one.",
        "started_at": "Time (UTC) at which the first asset of the build began.",
        "ended_at": "Time (UTC) at which the last asset of the build was finished.",
        "seconds": "Seconds of work on all assets of the build.",
        "assets": "The assets that the build changed, in their order.",
        "num_processed": "Number of rows that the build made.",
        "num_dropped": "Number of rows that the build dropped.",
        "num_failed": "Number of rows that failed in the build.",
    },
)
def builds(tables: Tables) -> str:
    sums = ", ".join(f"sum({name})::BIGINT AS {name}" for name in ("num_processed", "num_dropped", "num_failed"))
    last = ", ".join(
        f"arg_max({name}, ended_at) AS {name}" for name in ("config", "recipe", "commit", "version", "host")
    )
    return f"""
        SELECT *, row_number() OVER (PARTITION BY dataset ORDER BY ended_at DESC) - 1 AS builds_ago
        FROM (SELECT dataset, run_id, min(started_at)::TIMESTAMP AS started_at, max(ended_at)::TIMESTAMP AS ended_at,
                     round(sum(seconds), 3) AS seconds, {sums}, list(asset ORDER BY ended_at) AS assets, {last}
              FROM {_lines(BUILDS, STEP_COLUMNS)} WHERE run_id IS NOT NULL GROUP BY dataset, run_id)
        ORDER BY dataset, builds_ago
    """


@sql_view(
    "recipes",
    "One row per setting of each recipe that builds used.",
    {
        "recipe": OF_BUILD["recipe"],
        "key": "Dotted key of the setting, as in a file of configurations.",
        "value": "The setting's value as JSON.",
    },
)
def recipes(tables: Tables) -> str:
    return f"SELECT dataset, recipe, key, value FROM {_lines(RECIPES, RECIPE_COLUMNS)}"


def kept_schema(stage: Stage) -> dict[str, Any] | None:
    """Name -> type of the columns that are kept of a stage's rows; None for a stage of which nothing is kept."""
    if not stage.keeps_rows:
        return None
    nothing = pl.DataFrame(schema={stage.key: pl.String, **BASE_COLUMNS, **stage.dtypes})
    return {**stage.kept_rows(nothing).schema, **KEPT_COLUMNS}


@sql_view(
    "prediction_history",
    "One row per query, method and build that changed its prediction, so that builds can be compared query by query.",
    {
        **OF_STATE,
        "is_gone": "Whether the build dropped the prediction; all other columns are null then.",
        "outcome": SAYS_OUTCOME,
        "is_right_video": "Whether the answered video is the right one.",
    },
    like=PREDICTIONS,
)
def prediction_history(tables: Tables) -> str | None:
    states = _states(tables)
    if states is None:
        return None
    right = f"[{is_right('shown', 'p.')} FOR shown IN p.shown_video_ids]"
    shown = f"coalesce(list_contains({right}, true), false) AS was_shown"
    kept = name_list([*KEPT_OF_PREDICTIONS, "status", "error"])
    return f"""
        SELECT dataset, method, query_id, states_ago, built_at, run_id, is_gone,
               CASE WHEN is_gone THEN NULL ELSE outcome END AS outcome, is_right_video, {kept}
        FROM (SELECT *, {OUTCOME} FROM (SELECT p.*, {JUDGED}, {shown} FROM {states} p))
    """


@sql_view(
    "turn_history",
    "One row per turn of each state that `prediction_history` has, so that traces of two builds can be compared.",
    {**OF_STATE, **OF_TURNS},
)
def turn_history(tables: Tables) -> str | None:
    states = _states(tables)
    if states is None:
        return None
    return f"""
        SELECT dataset, method, query_id, states_ago, built_at, run_id, {fields_of("t", KEPT_OF_TURNS)},
               {is_right("t.video_id", "")} AS is_right_video
        FROM (SELECT *, unnest(turns) AS t FROM {states})
    """


def _states(tables: Tables) -> str | None:
    """SQL of all kept states of predictions, with their method and age; None where there are none to keep."""
    stage = tables.first(PREDICTIONS)
    if stage is None or kept_schema(stage) is None:
        return None
    pattern = pattern_of(f"lake/history/{PREDICTIONS}*/dataset=*/*.parquet")
    method = r"regexp_extract(filename, '.*/predictions\.([^/]+)/dataset=[^/]+/[^/]+\.parquet$', 1) AS method"
    age = "row_number() OVER (PARTITION BY dataset, method, query_id ORDER BY built_at DESC) - 1 AS states_ago"
    return f"(SELECT *, {age} FROM (SELECT *, {method} FROM {scan_of(pattern)}))"


def _lines(what: str, columns: Mapping[str, str]) -> str:
    """SQL of the lines of one history of all datasets. A line that is cut off is left out."""
    pattern = pattern_of(f"lake/history/{what}/dataset=*/*.jsonl")
    types = ", ".join(f"{quoted_text(name)}: {quoted_text(kind)}" for name, kind in columns.items())
    return (
        f"read_json({pattern}, format = 'newline_delimited', columns = {{{types}}}, ignore_errors = true, "
        "hive_partitioning = true, hive_types = {'dataset': VARCHAR})"
    )
