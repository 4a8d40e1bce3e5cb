"""What each view of `vsr1.duckdb` selects, as SQL text. Nothing is run here; `home.warehouse` does that. The views
of assets follow from their stages; the others join and count what people ask for most.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from pathlib import Path

from vsr1_core.rows.lake import Lake
from vsr1_core.rows.table import HISTORY_COLUMNS
from vsr1_core.stages.base import Stage

PREDICTIONS = "predictions."
PREDICTION_COLUMNS = (
    *("dataset", "method", "query_id", "split", "query", "gt_video_id", "gt_start_s", "gt_end_s", "video_id", "rank"),
    *("first_rank", "decision", "start_s", "end_s", "iou", "num_turns", "num_text_tokens", "num_latent_tokens"),
    *("status", "error", "checkpoint"),
)
PROBES = "verification_probe."
EPISODE_KEY = ("step", "sample", "query_id")
METRICS = "metrics"
OUTCOME_COLUMNS = (
    *("split", "query", "outcome", "gt_video_id", "video_id", "is_right_video", "decision", "iou", "first_rank"),
    *("rank", "rank_gain", "num_turns", "num_text_tokens", "num_latent_tokens", "error"),
)
TURN_COLUMNS = ("turn", "video_id", "score", "rank", "decision", "reasoning", "start_s", "end_s")
COMMENTS = {
    "annotation_files": "The annotation files of a dataset, with their digests",
    "raw_videos": "The video files as found on disk, with their digests",
    "videos": "One row a video: duration, frame rate, size, codec. A missing or unreadable one has status failed",
    "moments": "One row an annotated query: its text, its video, and its span in seconds",
    "base_models": "The embedder and the policy to start from: where they lie, and what they were made from",
    "fine_tuned_checkpoint": "The baseline: where it lies, what it was trained from, and its loss curve",
    "sft_checkpoint": "Stage 1: where it lies, what it was trained from, and its loss curve",
    "grpo_checkpoint": "Stage 2: where it lies, what it was trained from, and its curves",
    "top1_pool": "The train queries of stage 1 with the video that is shown, and whether that is right",
    "reasoning_traces": "What the teacher wrote about each shown video. An unusable one has status failed",
    "sft_examples": "The rows of stage 1: what is shown, and the answer that is learned",
    "grpo_prompts": "The queries of stage 2, with their negatives",
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
    "outcomes": "One row a query and method: where it ended, and how far refinement lifted the right video",
    "verifications": "One row a turn: what was decided of the shown video, and whether that is right",
    "metrics_history": "The metrics as each build left them, so that two builds can be compared",
    "failures": "Every failed row of every asset, with the reason",
    "lake": "The folder that these views read",
    "report": "Where the written report of a split lies",
}


def view_bodies(root: Path, stages: Mapping[str, Stage]) -> dict[str, str]:
    """View -> its SQL over the lake at `root`; one that reads another stands behind it."""
    of_methods = (PREDICTIONS, PROBES)
    views = {name: _asset_view(root, stage) for name, stage in stages.items() if not name.startswith(of_methods)}
    prediction_stages = [stage for name, stage in stages.items() if name.startswith(PREDICTIONS)]
    if prediction_stages:
        views["predictions"] = _predictions_view(root, prediction_stages[0])
        views["turns"] = _turns_view(root, prediction_stages[0])
        views["verifications"] = _VERIFICATIONS
        if "moments" in stages:
            views["outcomes"] = _outcomes_view(root)
    probe_stages = [stage for name, stage in stages.items() if name.startswith(PROBES)]
    if probe_stages:
        columns = _names(["dataset", "method", *probe_stages[0].columns, "status", "error", probe_stages[0].key])
        views["verification_probes"] = f"SELECT {columns} FROM {_with_method(root, PROBES)}"
    views |= _training_views(root, stages)
    if METRICS in stages:
        views["metrics_history"] = _history_view(root, stages[METRICS])
    views["failures"] = _failures_view(root, stages)
    views["lake"] = f"SELECT {quoted_text(root)} AS path"
    return views


def _asset_view(root: Path, stage: Stage) -> str:
    columns = [stage.key, *stage.columns]
    if stage.name in (METRICS, "refinement_curves"):  # the id only repeats other columns
        columns = [*columns[1:], columns[0]]
    return f"SELECT {_names(['dataset', *columns, 'status', 'error', 'row_version'])} FROM {_newest(root, stage.name)}"


def _predictions_view(root: Path, stage: Stage) -> str:
    rest = [name for name in stage.columns if name not in (*PREDICTION_COLUMNS, "turns")]
    return f"SELECT {_names([*PREDICTION_COLUMNS, *rest])} FROM {_with_method(root, PREDICTIONS)}"


def _turns_view(root: Path, stage: Stage) -> str:
    """`is_right_video` comes with the turn: a join with `predictions` would read the table once more, and find another
    state of it while a run writes."""
    fields = [field.name for field in stage.columns["turns"].inner.fields]
    ordered = [*TURN_COLUMNS, *(name for name in fields if name not in TURN_COLUMNS)]
    turns = f"SELECT dataset, method, query_id, gt_video_id, unnest(turns) AS t FROM {_with_method(root, PREDICTIONS)}"
    right = "t.video_id IS NOT DISTINCT FROM gt_video_id AS is_right_video"
    return f"SELECT dataset, method, query_id, {_fields('t', ordered)}, {right} FROM ({turns} WHERE status = 'ok')"


_VERIFICATIONS = """
    SELECT dataset, method, query_id, turn, video_id, is_right_video, decision, matched_probability,
           coalesce(decision = CASE WHEN is_right_video THEN 'matched' ELSE 'not_matched' END, false) AS is_correct
    FROM turns
"""


def _outcomes_view(root: Path) -> str:
    """The same cases, in the same order, as `vsr1_core.evaluation.metrics.outcomes`. A failed row knows its id only;
    what was asked is in `moments`."""
    return f"""
        WITH judged AS (
            SELECT p.* REPLACE (coalesce(p.split, m.split) AS split, coalesce(p.query, m.query) AS query,
                                coalesce(p.gt_video_id, m.video_id) AS gt_video_id),
                   p.first_rank - p.rank AS rank_gain,
                   coalesce(p.video_id = p.gt_video_id, false) AS is_right_video,
                   coalesce(p.decision = 'matched', false) AS is_matched,
                   list_contains([turn.video_id FOR turn IN p.turns], p.gt_video_id) AS was_shown
            FROM {_with_method(root, PREDICTIONS)} p
            LEFT JOIN {_newest(root, "moments")} m ON m.dataset = p.dataset AND m.query_id = p.query_id
        )
        SELECT dataset, method, query_id, {", ".join(OUTCOME_COLUMNS)}
        FROM (
            SELECT *, CASE WHEN status <> 'ok' THEN 'no_prediction'
                           WHEN is_matched AND is_right_video AND iou >= 0.5 THEN 'found'
                           WHEN is_matched AND is_right_video THEN 'wrong_span'
                           WHEN is_matched THEN 'wrong_video_accepted'
                           WHEN was_shown THEN 'right_video_rejected'
                           ELSE 'never_shown' END AS outcome
            FROM judged
        )
    """


def _history_view(root: Path, stage: Stage) -> str:
    pattern = f"{glob.escape(str(Lake(root).history(METRICS)))}/dataset=*/*.parquet"
    columns = _names(["dataset", *HISTORY_COLUMNS, *stage.columns])
    age = "dense_rank() OVER (PARTITION BY dataset ORDER BY built_at DESC) - 1 AS builds_ago"
    return f"SELECT {columns}, {age} FROM {_scan(pattern)}"


def _training_views(root: Path, stages: Mapping[str, Stage]) -> dict[str, str]:
    """What trainings logged, under the dataset that ran them: rows of a borrowed model repeat its lender's."""
    is_own = "status = 'ok' AND coalesce(source, '') NOT LIKE 'lent by %'"
    logged = [
        f"SELECT dataset, {quoted_name(stage.key)} AS checkpoint, unnest(curve) AS c "
        f"FROM {_newest(root, name)} WHERE {is_own}"
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
            episodes = f"SELECT dataset, unnest(episodes) AS e FROM {_newest(root, name)} WHERE {is_own}"
            turns = f"SELECT dataset, e, unnest(e.turns) AS t FROM ({episodes})"
            views["grpo_episodes"] = f"SELECT dataset, {_fields('e', fields)} FROM ({episodes})"
            views["grpo_turns"] = (
                f"SELECT dataset, {_fields('e', EPISODE_KEY)}, {_fields('t', of_turns)} FROM ({turns})"
            )
    return views


def _failures_view(root: Path, stages: Mapping[str, Stage]) -> str:
    parts = [
        f"SELECT dataset, {quoted_text(name)} AS asset, {quoted_name(stage.key)} AS row_id, error "
        f"FROM {_newest(root, name)} WHERE status = 'failed'"
        for name, stage in stages.items()
    ]
    return " UNION ALL ".join(parts)


def _newest(root: Path, asset: str) -> str:
    """All datasets' rows of an asset (`asset` may be a glob), and the empty file that gives the columns.

    The newest files are chosen by a scan of its own, which stands on the left because DuckDB lists files when it
    binds, left before right: what was newest then is still there when the rows are listed. With a window function
    DuckDB lists twice in the other order, and one query in ten that ran through a commit found no rows.
    """
    scan = _scan(f"{glob.escape(str(root))}/*/{asset}/dataset=*/rows*.parquet")
    newest = f"SELECT max(filename) AS newest FROM {scan} GROUP BY parse_dirpath(filename)"
    return f"(SELECT found.* FROM ({newest}) JOIN {scan} AS found ON found.filename = newest)"


def _with_method(root: Path, prefix: str) -> str:
    """All rows of the assets `<prefix><method>`, with the method."""
    name = prefix.replace(".", r"\.")
    method = rf"regexp_extract(filename, '.*/{name}([^/]+)/dataset=[^/]+/[^/]+\.parquet$', 1)"
    return f"(SELECT *, {method} AS method FROM {_newest(root, prefix + '*')})"


def _scan(pattern: str) -> str:
    return (
        f"read_parquet({quoted_text(pattern)}, union_by_name = true, hive_partitioning = true, "
        "hive_types = {'dataset': VARCHAR}, filename = true)"
    )


def _fields(of: str, names: Iterable[str]) -> str:
    return ", ".join(f"{of}.{quoted_name(name)}" for name in names)


def _names(names: Iterable[str]) -> str:
    return ", ".join(quoted_name(name) for name in names)


def quoted_name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def quoted_text(value: str | Path) -> str:
    return "'" + str(value).replace("'", "''") + "'"
