"""`vsr1.duckdb`: DuckDB views over the lake's Parquet, for people, notebooks and `vsr1 sql`.

The file holds views and no data. A view globs over all datasets of an asset, so it shows what is committed at the
moment of the query and need not be rebuilt after a run. Beside the tables lies one empty Parquet file an asset
(`<lake>/schemas/`), which the same glob matches: an asset that was never built answers with no rows and the right
columns. A refresh writes a new file and renames it over the old one: readers and writers never wait for each other.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from vsr1_core.lake import BASE_COLUMNS, atomic_path
from vsr1_core.stages.base import Stage

if TYPE_CHECKING:
    import duckdb

PREDICTIONS = "predictions."
PREDICTION_COLUMNS = (
    *("dataset", "method", "query_id", "split", "query", "gt_video_id", "gt_start_s", "gt_end_s", "video_id", "rank"),
    *("first_rank", "decision", "start_s", "end_s", "iou", "num_turns", "num_text_tokens", "num_latent_tokens"),
    *("status", "error", "checkpoint"),
)
PROBES = "verification_probe."
EPISODE_KEY = ("step", "sample", "query_id")
TURN_COLUMNS = ("turn", "video_id", "score", "rank", "decision", "reasoning", "start_s", "end_s")
COMMENTS = {
    "annotation_files": "The annotation files of a dataset, with their digests",
    "raw_videos": "The video files as found on disk, with their digests",
    "videos": "One row a video: duration, frame rate, size, codec. A missing or unreadable one has status failed",
    "moments": "One row an annotated query: its text, its video, and its span in seconds",
    "frame_tensors": "One row a video: where its sampled frames lie, and their true times in seconds",
    "query_embeddings": "One unit vector a query",
    "video_embeddings": "One unit vector a video",
    "video_index": "The search index of each split",
    "first_ranking": "The ranking by the query's own text: rank of the right video, best ids and scores",
    "hard_negatives": "Wrong videos that rank high, per train query",
    "predictions": "One row a query and method: the answer, the right video's rank, the tokens spent",
    "verification_probes": "One row a query, method and shown video, one right and one wrong: the verdict and the span",
    "turns": "One row a turn of an episode: what was shown, what was decided, and the reasoning",
    "curves": "One row a logged value of a training: the checkpoint, the step, the value's name",
    "grpo_episodes": "One row an episode that stage 2 sampled in training (some of them): rewards, advantage, ranks",
    "grpo_turns": "One row a turn of these episodes: what was shown and all that the policy wrote",
    "metrics": "One row a method and metric with its 95 % interval; shares are in [0, 1], null is undefined",
    "refinement_curves": "Metrics by the number of turns, or of soft tokens a turn, allowed; with 95 % intervals",
    "failures": "Every failed row of every asset, with the reason",
    "lake": "The folder that these views read",
    "report": "Where the written report of a split lies",
}


def database_path(home: Path) -> Path:
    """The file that plain `duckdb` opens."""
    return home / "vsr1.duckdb"


def connect(home: Path, read_only: bool = True) -> duckdb.DuckDBPyConnection:
    """A connection on the views of a home; made first where they are missing or belong to another folder.

    The file is attached, not opened: DuckDB keeps one instance per opened path in a process, which would go on
    showing the views from before a refresh.
    """
    import duckdb

    path = database_path(home)
    if not path.exists():
        refresh(home)
    connection = _attach(duckdb.connect(), path, read_only)
    if not _reads_from(connection, home):
        connection.close()
        connection = _attach(duckdb.connect(), refresh(home), read_only)
    return connection


def query(home: Path, sql: str) -> pl.DataFrame:
    """The result of one SQL statement on the views. Raises duckdb.Error for bad SQL, ValueError for none."""
    with connect(home) as connection:
        connection.execute("SET python_enable_replacements = false")
        relation = connection.sql(sql)
        if relation is None:
            raise ValueError("there is no SQL to run; for example: select * from metrics where dataset = 'toy'")
        return relation.pl()


def refresh(home: Path, stages: Mapping[str, Stage] | None = None) -> Path:
    """Make the views of all stages anew and put them in place of the old ones. Returns the database's path."""
    import duckdb

    from vsr1_core.graph import all_stages

    stages = all_stages() if stages is None else stages
    root = (home / "lake").absolute()
    _write_schemas(root, stages.values())
    with atomic_path(database_path(home)) as temporary, duckdb.connect(str(temporary)) as connection:
        for statement in _statements(root, stages):
            connection.execute(statement)
    return database_path(home)


def _attach(connection: duckdb.DuckDBPyConnection, path: Path, read_only: bool) -> duckdb.DuckDBPyConnection:
    connection.execute(f"ATTACH {_text(path)} AS vsr1{' (READ_ONLY)' if read_only else ''}")
    connection.execute("USE vsr1")
    return connection


def _reads_from(connection: duckdb.DuckDBPyConnection, home: Path) -> bool:
    """False after the home was moved or copied: its views would show the old place's rows."""
    views = "SELECT sql FROM duckdb_views() WHERE database_name = 'vsr1' AND view_name = 'lake'"
    found = connection.execute(views).fetchone()
    return found is not None and _text((home / "lake").absolute()) in found[0]


def _write_schemas(root: Path, stages: Iterable[Stage]) -> None:
    for stage in stages:
        schema = {stage.key: pl.String, **BASE_COLUMNS, **stage.columns}
        with atomic_path(root / "schemas" / stage.name / "dataset=none" / "rows.parquet") as temporary:
            pl.DataFrame(schema=schema).write_parquet(temporary)


def _statements(root: Path, stages: Mapping[str, Stage]) -> list[str]:
    of_methods = (PREDICTIONS, PROBES)
    views = {name: _asset_view(root, stage) for name, stage in stages.items() if not name.startswith(of_methods)}
    prediction_stages = [stage for name, stage in stages.items() if name.startswith(PREDICTIONS)]
    if prediction_stages:
        views["predictions"] = _predictions_view(root, prediction_stages[0])
        views["turns"] = _turns_view(root, prediction_stages[0])
    probe_stages = [stage for name, stage in stages.items() if name.startswith(PROBES)]
    if probe_stages:
        columns = _names(["dataset", "method", *probe_stages[0].columns, "status", "error", probe_stages[0].key])
        views["verification_probes"] = f"SELECT {columns} FROM {_with_method(root, PROBES)}"
    views |= _training_views(root, stages)
    views["failures"] = _failures_view(root, stages)
    views["lake"] = f"SELECT {_text(root)} AS path"
    statements = []
    for name, body in views.items():
        statements.append(f"CREATE VIEW {_name(name)} AS {body}")
        comment = COMMENTS.get(name, f"The rows of the asset {name}")
        statements.append(f"COMMENT ON VIEW {_name(name)} IS {_text(comment)}")
    return statements


def _asset_view(root: Path, stage: Stage) -> str:
    columns = [stage.key, *stage.columns]
    if stage.name in ("metrics", "refinement_curves"):  # the id only repeats other columns
        columns = [*columns[1:], columns[0]]
    return f"SELECT {_names(['dataset', *columns, 'status', 'error', 'row_version'])} FROM {_scan(root, stage.name)}"


def _predictions_view(root: Path, stage: Stage) -> str:
    rest = [name for name in stage.columns if name not in (*PREDICTION_COLUMNS, "turns")]
    return f"SELECT {_names([*PREDICTION_COLUMNS, *rest])} FROM {_with_method(root, PREDICTIONS)}"


def _turns_view(root: Path, stage: Stage) -> str:
    fields = [field.name for field in stage.columns["turns"].inner.fields]
    ordered = [*TURN_COLUMNS, *(name for name in fields if name not in TURN_COLUMNS)]
    turns = f"SELECT dataset, method, query_id, unnest(turns) AS t FROM {_with_method(root, PREDICTIONS)}"
    return f"SELECT dataset, method, query_id, {_fields('t', ordered)} FROM ({turns} WHERE status = 'ok')"


def _training_views(root: Path, stages: Mapping[str, Stage]) -> dict[str, str]:
    """What trainings logged, under the dataset that ran them: rows of a borrowed model repeat its lender's."""
    is_own = "status = 'ok' AND coalesce(source, '') NOT LIKE 'lent by %'"
    logged = [
        f"SELECT dataset, {_name(stage.key)} AS checkpoint, unnest(curve) AS c FROM {_scan(root, name)} WHERE {is_own}"
        for name, stage in stages.items()
        if {"curve", "source"} <= set(stage.columns)
    ]
    if not logged:
        return {}
    views = {"curves": f"SELECT dataset, checkpoint, c.step, c.name, c.value FROM ({' UNION ALL '.join(logged)})"}
    for name, stage in stages.items():
        if "episodes" in stage.columns:
            fields = stage.columns["episodes"].inner.to_schema()
            of_turns = fields.pop("turns").inner.to_schema()
            episodes = f"SELECT dataset, unnest(episodes) AS e FROM {_scan(root, name)} WHERE {is_own}"
            turns = f"SELECT dataset, e, unnest(e.turns) AS t FROM ({episodes})"
            views["grpo_episodes"] = f"SELECT dataset, {_fields('e', fields)} FROM ({episodes})"
            views["grpo_turns"] = (
                f"SELECT dataset, {_fields('e', EPISODE_KEY)}, {_fields('t', of_turns)} FROM ({turns})"
            )
    return views


def _failures_view(root: Path, stages: Mapping[str, Stage]) -> str:
    parts = [
        f"SELECT dataset, {_text(name)} AS asset, {_name(stage.key)} AS row_id, error "
        f"FROM {_scan(root, name)} WHERE status = 'failed'"
        for name, stage in stages.items()
    ]
    return " UNION ALL ".join(parts)


def _scan(root: Path, asset: str) -> str:
    """All datasets' rows of an asset (`asset` may be a glob), and the empty file that gives the columns."""
    pattern = f"{glob.escape(str(root))}/*/{asset}/dataset=*/rows.parquet"
    return (
        f"read_parquet({_text(pattern)}, union_by_name = true, hive_partitioning = true, "
        "hive_types = {'dataset': VARCHAR}, filename = true)"
    )


def _with_method(root: Path, prefix: str) -> str:
    """All rows of the assets `<prefix><method>`, with the method."""
    name = prefix.replace(".", r"\.")
    method = rf"regexp_extract(filename, '.*/{name}([^/]+)/dataset=[^/]+/rows\.parquet$', 1)"
    return f"(SELECT *, {method} AS method FROM {_scan(root, prefix + '*')})"


def _fields(of: str, names: Iterable[str]) -> str:
    return ", ".join(f"{of}.{_name(name)}" for name in names)


def _names(names: Iterable[str]) -> str:
    return ", ".join(_name(name) for name in names)


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str | Path) -> str:
    return "'" + str(value).replace("'", "''") + "'"
