"""What each view of `vsr1.duckdb` selects, as SQL text; `home.warehouse` runs it.

The view of an asset is derived from its stage. Every other view is one function below, declared with its name, one
sentence, and the meanings of the columns that are not a stage's. A view stands after the views that it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from vsr1_core.home.row_sql import HOME, committed, fields_of, name_list, quoted_name, quoted_text
from vsr1_core.home.segment_sql import is_right, segments_of
from vsr1_core.rows.places import INSIDE, PATH_COLUMNS
from vsr1_core.stages import columns as c
from vsr1_core.stages.base import Stage
from vsr1_core.stages.columns import BOOKKEEPING, meanings
from vsr1_core.stages.trained import EPISODE_COLUMNS
from vsr1_core.stages.turns import RANKED_TURN_COLUMNS, TURN_COLUMNS

PREDICTIONS = "predictions."
PROBES = "verification_probe."
METRICS = "metrics"
ID_LAST = (METRICS, "refinement_curves")
"""Tables whose id only repeats other columns, so it comes last in their views."""
PREDICTION_COLUMNS = (
    *("dataset", "method", "query_id", "split", "query", "gt_video_id", "gt_start_s", "gt_end_s", "video_id", "rank"),
    *("first_rank", "decision", "start_s", "end_s", "iou", "num_turns", "num_text_tokens", "num_latent_tokens"),
    *("status", "error", "checkpoint"),
)
OUTCOME_COLUMNS = (
    *("split", "query", "outcome", "gt_video_id", "video_id", "is_right_video", "decision", "iou", "first_rank"),
    *("rank", "rank_gain", "num_turns", "num_text_tokens", "num_latent_tokens", "error"),
)
TURN_ORDER = ("turn", "video_id", "score", "rank", "decision", "reasoning", "start_s", "end_s")
OUTCOME = """
    CASE WHEN status <> 'ok' THEN 'no_prediction'
         WHEN is_matched AND is_right_video AND iou >= 0.5 THEN 'found'
         WHEN is_matched AND is_right_video THEN 'wrong_span'
         WHEN is_matched THEN 'wrong_video_accepted'
         WHEN was_shown THEN 'right_video_rejected'
         ELSE 'never_shown' END AS outcome"""
"""SQL with the same cases, in the same order, as `vsr1_core.evaluation.episodes.outcomes`."""
JUDGED = """
    coalesce(p.video_id = p.gt_video_id, false) AS is_right_video,
    coalesce(p.decision = 'matched', false) AS is_matched"""
SAYS_OUTCOME = (
    "How the search ended: `found` (right video matched, IoU at least 0.5), `wrong_span`, "
    "`wrong_video_accepted`, `right_video_rejected`, `never_shown`, or `no_prediction` (the row failed)."
)
EPISODE_KEY = ("step", "sample", "query_id")


@dataclass(frozen=True)
class Tables:
    """What a view can read: the stages whose tables are in the lake."""

    stages: Mapping[str, Stage]

    def first(self, prefix: str) -> Stage | None:
        """A stage whose name begins with `prefix`; all of them have the same columns. None where there is none."""
        return next((stage for name, stage in self.stages.items() if name.startswith(prefix)), None)

    def key(self, prefix: str) -> str:
        """The key of the tables whose name begins with `prefix`."""
        return next(stage.key for name, stage in self.stages.items() if name.startswith(prefix))


@dataclass(frozen=True)
class SqlView:
    """A view that is not the view of one asset.

    says: one sentence about it. sql: tables -> SQL text, or None where a stage that it reads does not exist. means:
    column -> sentence, for columns that are neither the stage's nor common. like: prefix of the stage whose columns it
    shows.
    """

    name: str
    says: str
    sql: Callable[[Tables], str | None]
    means: Mapping[str, str] = field(default_factory=dict)
    like: str = ""

    def meaning(self, column: str, tables: Tables) -> str:
        """One sentence about a column; empty where none is declared."""
        stage = tables.first(self.like) if self.like else None
        return self.means.get(column) or (stage.meaning(column) if stage else "") or COMMON.get(column, "")


COMMON: Mapping[str, str] = {**c.IDS, **BOOKKEEPING, "method": c.SEARCHED_BY.says}
"""Meanings of columns that neither the view nor its stage declares."""
VIEWS: list[SqlView] = []
"""The views, in the order in which they are made."""


def sql_view(
    name: str, says: str, means: Mapping[str, str] | None = None, like: str = ""
) -> Callable[[Callable[[Tables], str | None]], Callable[[Tables], str | None]]:
    """A decorator that adds the view `name`; the decorated function returns its SQL."""

    def add(sql: Callable[[Tables], str | None]) -> Callable[[Tables], str | None]:
        VIEWS.append(SqlView(name, says, sql, means or {}, like))
        return sql

    return add


@dataclass(frozen=True)
class MadeView:
    """A view as it is put into the database: its SQL, its comment, and the comment of any of its columns."""

    name: str
    sql: str
    says: str
    meaning: Callable[[str], str]


def made_views(stages: Mapping[str, Stage]) -> Iterator[MadeView]:
    """All views, each one after the views that it reads."""
    tables = Tables(stages)
    for name, stage in stages.items():
        if not name.startswith((PREDICTIONS, PROBES)):
            yield MadeView(name, _asset_sql(stage), stage.says, stage.meaning)
    for view in VIEWS:
        sql = view.sql(tables)
        if sql is not None:
            yield MadeView(view.name, sql, view.says, partial(view.meaning, tables=tables))


def _asset_sql(stage: Stage) -> str:
    columns = [stage.key, *stage.columns]
    if stage.name in ID_LAST:
        columns = [*columns[1:], columns[0]]
    shown = ["dataset", *columns, "status", "error", "row_version"]
    return f"SELECT {', '.join(map(_shown, shown))} FROM {committed(stage.name, stage.key)}"


def _shown(column: str) -> str:
    """A column of a table; one of paths as they are where the home is now."""
    name = quoted_name(column)
    if column not in PATH_COLUMNS:
        return name
    inside = f"{HOME} || substring({name}, {len(INSIDE) + 1})"
    return f"CASE WHEN starts_with({name}, {quoted_text(INSIDE)}) THEN {inside} ELSE {name} END AS {name}"


@sql_view(
    "predictions",
    "One row per query and method: the answer, the rank of the right video, and the tokens that were spent.",
    like=PREDICTIONS,
)
def predictions(tables: Tables) -> str | None:
    stage = tables.first(PREDICTIONS)
    if stage is None:
        return None
    rest = [name for name in stage.columns if name not in (*PREDICTION_COLUMNS, "turns")]
    return f"SELECT {name_list([*PREDICTION_COLUMNS, *rest])} FROM {_with_method(tables, PREDICTIONS)}"


OF_TURNS = meanings(RANKED_TURN_COLUMNS) | {
    "is_right_video": "Whether the right video is shown; of a long one, a window that holds enough of the moment."
}


@sql_view(
    "turns",
    "One row per turn of an episode: the shown video, the decision, and the reasoning.",
    OF_TURNS,
)
def turns(tables: Tables) -> str | None:
    """The SQL adds `is_right_video` here: a join with `predictions` would read the table twice, and could see two
    states of it while a run writes."""
    if tables.first(PREDICTIONS) is None:
        return None
    ordered = [*TURN_ORDER, *(name for name in RANKED_TURN_COLUMNS if name not in TURN_ORDER)]
    source = _with_method(tables, PREDICTIONS)
    truth = "gt_video_id, gt_start_s, gt_end_s"
    unnested = f"SELECT dataset, method, query_id, {truth}, unnest(turns) AS t FROM {source} WHERE status = 'ok'"
    right = f"{is_right('t.video_id', '')} AS is_right_video"
    return f"SELECT dataset, method, query_id, {fields_of('t', ordered)}, {right} FROM ({unnested})"


@sql_view(
    "verifications",
    "One row per turn: the decision about the shown video, and whether it is right.",
    OF_TURNS
    | {"is_correct": "Whether the decision is right: `matched` for the right video, `not_matched` for another."},
)
def verifications(tables: Tables) -> str | None:
    if tables.first(PREDICTIONS) is None:
        return None
    return """
        SELECT dataset, method, query_id, turn, video_id, is_right_video, decision, matched_probability,
               coalesce(decision = CASE WHEN is_right_video THEN 'matched' ELSE 'not_matched' END, false) AS is_correct
        FROM turns
    """


@sql_view(
    "outcomes",
    "One row per query and method: how the search ended, and how many places refinement lifted the right video.",
    {
        "rank_gain": "Number of places that refinement lifted the right video: `first_rank` - `rank`.",
        "is_right_video": "Whether the answered video is the right one.",
        "outcome": SAYS_OUTCOME,
    },
    like=PREDICTIONS,
)
def outcomes(tables: Tables) -> str | None:
    """A failed row has only its id, so the query is read from `moments`."""
    if tables.first(PREDICTIONS) is None or "moments" not in tables.stages:
        return None
    return f"""
        WITH judged AS (
            SELECT p.* REPLACE (coalesce(p.split, m.split) AS split, coalesce(p.query, m.query) AS query,
                                coalesce(p.gt_video_id, m.video_id) AS gt_video_id),
                   p.first_rank - p.rank AS rank_gain,
                   {JUDGED},
                   list_contains([{is_right("turn.video_id", "p.")} FOR turn IN p.turns], true) AS was_shown
            FROM {_with_method(tables, PREDICTIONS)} p
            LEFT JOIN {committed("moments", "query_id")} m ON m.dataset = p.dataset AND m.query_id = p.query_id
        )
        SELECT dataset, method, query_id, {", ".join(OUTCOME_COLUMNS)}
        FROM (
            SELECT *, {OUTCOME}
            FROM judged
        )
    """


@sql_view(
    "segments",
    "One row per segment that is indexed and shown: a whole video, or a window of a long one.",
    {
        "segment_id": c.SEGMENT_SAYS,
        "video_id": "Id of the video that the segment belongs to.",
        "start_s": "Start of the segment, in seconds from the video's first frame.",
        "end_s": "End of the segment, in seconds from the video's first frame.",
    },
    like="frame_tensors",
)
def segments(tables: Tables) -> str | None:
    if "frame_tensors" not in tables.stages:
        return None
    return segments_of(committed("frame_tensors", "video_id"))


@sql_view(
    "verification_probes",
    "One row per query, method and shown video (one right, one wrong): the decision and the span.",
    like=PROBES,
)
def verification_probes(tables: Tables) -> str | None:
    stage = tables.first(PROBES)
    if stage is None:
        return None
    columns = name_list(["dataset", "method", *stage.columns, "status", "error", stage.key])
    return f"SELECT {columns} FROM {_with_method(tables, PROBES)}"


_IS_OWN = "status = 'ok' AND coalesce(source, '') NOT LIKE 'borrowed from %'"
"""Condition for rows of models that the dataset made itself: rows of borrowed models repeat those of their owner."""


@sql_view(
    "curves",
    "One row per value that a training logged: the checkpoint, the step, and the name of the value.",
    {"step": "Training step of the logged value.", "name": "Name of the logged value.", "value": "The logged value."},
)
def curves(tables: Tables) -> str | None:
    logged = [
        f"SELECT dataset, {quoted_name(stage.key)} AS checkpoint, unnest(curve) AS c "
        f"FROM {committed(name, stage.key)} WHERE {_IS_OWN}"
        for name, stage in tables.stages.items()
        if {"curve", "source"} <= set(stage.columns)
    ]
    if not logged:
        return None
    return f"SELECT dataset, checkpoint, c.step, c.name, c.value FROM ({' UNION ALL '.join(logged)})"


def _sampled_episodes(tables: Tables) -> str | None:
    found = [name for name, stage in tables.stages.items() if "episodes" in stage.columns]
    if not found:
        return None
    sources = [committed(name, tables.stages[name].key) for name in found]
    return " UNION ALL ".join(f"SELECT dataset, unnest(episodes) AS e FROM {t} WHERE {_IS_OWN}" for t in sources)


@sql_view(
    "grpo_episodes",
    "One row per stored episode that stage 2 sampled in training: its rewards, advantage and ranks.",
    meanings(EPISODE_COLUMNS),
)
def grpo_episodes(tables: Tables) -> str | None:
    episodes = _sampled_episodes(tables)
    names = [name for name in EPISODE_COLUMNS if name != "turns"]
    return None if episodes is None else f"SELECT dataset, {fields_of('e', names)} FROM ({episodes})"


@sql_view(
    "grpo_turns",
    "One row per turn of the episodes in `grpo_episodes`: the shown video and everything that the policy wrote.",
    meanings({**EPISODE_COLUMNS, **TURN_COLUMNS}),
)
def grpo_turns(tables: Tables) -> str | None:
    episodes = _sampled_episodes(tables)
    if episodes is None:
        return None
    unnested = f"SELECT dataset, e, unnest(e.turns) AS t FROM ({episodes})"
    return f"SELECT dataset, {fields_of('e', EPISODE_KEY)}, {fields_of('t', TURN_COLUMNS)} FROM ({unnested})"


@sql_view(
    "failures",
    "One row per failed row of any asset, with the reason.",
    {"asset": "Name of the asset that the failed row belongs to.", "row_id": "Id of the failed row in its asset."},
)
def failures(tables: Tables) -> str | None:
    parts = [
        f"SELECT dataset, {quoted_text(name)} AS asset, {quoted_name(stage.key)} AS row_id, error "
        f"FROM {committed(name, stage.key)} WHERE status = 'failed'"
        for name, stage in tables.stages.items()
    ]
    return " UNION ALL ".join(parts)


@sql_view("lake", "One row: the folder of the lake that all views read.", {"path": "Path of the folder on disk."})
def lake(tables: Tables) -> str | None:
    return f"SELECT {HOME} || 'lake' AS path"


def _with_method(tables: Tables, prefix: str) -> str:
    """SQL of all rows of the assets `<prefix><method>`, with the column `method`."""
    name = prefix.replace(".", r"\.")
    method = rf"regexp_extract(file, '.*/{name}([^/]+)/dataset=[^/]+/[^/]+\.parquet$', 1)"
    return committed(prefix + "*", tables.key(prefix), method)
