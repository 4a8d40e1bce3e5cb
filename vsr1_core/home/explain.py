"""Which upstream rows a row was made from, and why it is due: one row followed back to its source files.

`LINEAGE` says, for each input of a row, the rows its version stands for. The versions themselves are made in
`vsr1_core.stages`, the plan in `vsr1_core.stages.graph`; nothing is written here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import polars as pl

from vsr1_core.datasets import sources
from vsr1_core.rows.increments import changed_inputs
from vsr1_core.rows.versions import Inputs
from vsr1_core.stages.base import NotYetKnown, Row, Stage, View
from vsr1_core.stages.graph import StagePlan, plan_graph
from vsr1_core.stages.methods import METHODS
from vsr1_core.stages.model_folders import IN_TRAIN
from vsr1_core.stages.moments import IS_TRAIN, same_text_videos
from vsr1_core.stages.reporting import CHECKPOINTS

RowIds = list[tuple[str, list[str]]]
"""(asset, row ids) pairs."""

Origin = Callable[[View, str, Row], RowIds]
"""(the planned tables, row id, row) -> the upstream rows that an input's version stands for."""

NO_ROWS = ("stage", "recipe")
"""Inputs that come from the code and the configuration, not from rows."""


def same(asset: str) -> Origin:
    """The row with the same id."""
    return lambda view, row_id, row: [(asset, [row_id])]


def one(asset: str, row_id: str) -> Origin:
    return lambda view, _, row: [(asset, [row_id])]


def known(asset: str, column: str) -> Origin:
    """The row whose id is a known column of this one."""
    return lambda view, row_id, row: [(asset, [row.known[column]])]


def every(asset: str, where: pl.Expr | None = None) -> Origin:
    """All ok rows that fit."""
    return lambda view, row_id, row: [(asset, _ids(view, asset, where))]


def of_split(asset: str) -> Origin:
    """All ok rows of this row's split."""
    return lambda view, row_id, row: [(asset, _ids(view, asset, pl.col("split") == _split(view, row_id, row)))]


def _ids(view: View, asset: str, where: pl.Expr | None = None) -> list[str]:
    frame = view.rows(asset)
    frame = frame if where is None else frame.filter(where)
    return sorted(frame[view.stages[asset].key].to_list())


def _split(view: View, row_id: str, row: Row) -> str:
    """A row's split: its own column, or that of the query it is named after."""
    if "split" in row.known:
        return str(row.known["split"])
    of_query = view.rows("moments", ["query_id", "split"]).filter(pl.col("query_id") == row_id)["split"]
    return str(of_query[0]) if len(of_query) else row_id


def _annotation_file(view: View, row_id: str, row: Row) -> RowIds:
    place = sources.place_of(view.entry, view.config, row_id)
    return [("annotation_files", [place.rsplit(":", 1)[0]])] if place else []


def _indexed_videos(view: View, row_id: str, row: Row) -> RowIds:
    return [("video_embeddings", _ids(view, "video_embeddings", pl.col("splits").list.contains(row_id)))]


def _with_the_same_text(view: View, row_id: str, row: Row) -> RowIds:
    """The query, and those that ask the same of other videos, which are then never its negatives."""
    videos = list(same_text_videos(view)[row_id])
    moments = view.rows("moments", ["query_id", "query"])
    text = pl.col("query").str.strip_chars().str.to_lowercase()
    own = moments.filter(pl.col("query_id") == row_id).select(text).item()
    return [("moments", _ids(view, "moments", IS_TRAIN & (text == own) & pl.col("video_id").is_in(videos)))]


def _told_to_the_teacher(view: View, row_id: str, row: Row) -> RowIds:
    shown = pl.col("video_id") == row.known["shown_video_id"]
    return [("moments", _ids(view, "moments", IS_TRAIN & (shown | (pl.col("query_id") == row_id))))]


def _parent(view: View, row_id: str, row: Row) -> RowIds:
    asset, parent = view.stages[row_id].parent  # type: ignore[attr-defined]
    return [(asset, [parent])]


def _shown_in_probe(view: View, row_id: str, row: Row) -> RowIds:
    """The right video is the moment's, the wrong one the ranking's."""
    asset = "moments" if row.known["label"] == "matched" else "first_ranking"
    return [(asset, [row.known["query_id"]])]


def _of_method(prefix: str) -> Origin:
    """All rows of a method's asset, of the row's split."""

    def rows(view: View, row_id: str, row: Row) -> RowIds:
        asset = f"{prefix}.{row.known['method']}"
        return [(asset, _ids_of_split(view, asset, row.known["split"]))] if asset in view.stages else []

    return rows


def _ids_of_split(view: View, asset: str, split: str) -> list[str]:
    """By their queries: a prediction's own column is not known before it is made."""
    return _ids(view, asset, pl.col("query_id").is_in(_ids(view, "moments", pl.col("split") == split)))


def _of_all_methods(view: View, row_id: str, row: Row) -> RowIds:
    assets = [f"predictions.{method}" for method in view.config.evaluation.methods]
    return [(asset, _ids_of_split(view, asset, row_id)) for asset in assets if asset in view.stages]


_EMBEDDER = one("base_models", "embedder")
_TRAINED: dict[str, Origin] = {
    "parent": _parent,
    "embedder": _EMBEDDER,
    "corpus": every("frame_tensors", IN_TRAIN),
    **{asset: every(asset) for asset in ("sft_examples", "hard_refine_examples", "grpo_prompts")},
}
_EXAMPLE_INPUTS = {a: same(a) for a in ("top1_pool", "reasoning_traces", "hard_negatives", "moments")}
_METRIC_INPUTS = {
    "moments": of_split("moments"),
    "predictions": _of_method("predictions"),
    "probes": _of_method("verification_probe"),
    "train_moments": every("moments", IS_TRAIN),
}
_REPORT_INPUTS = {
    "moments": of_split("moments"),
    "predictions": _of_all_methods,
    "metrics": of_split("metrics"),
    "refinement_curves": of_split("refinement_curves"),
    "video_index": of_split("video_index"),
    **{asset: every(asset) for asset in CHECKPOINTS},
}

LINEAGE: dict[str, dict[str, Origin]] = {
    "videos": {"raw_videos": same("raw_videos"), "splits": every("annotation_files")},
    "moments": {"annotation": _annotation_file, "video": known("videos", "video_id")},
    "frame_tensors": {"video": same("videos"), "splits": same("videos")},
    "base_models": {"captions": every("moments", IS_TRAIN), "frames": every("frame_tensors", IN_TRAIN)},
    "query_embeddings": {"query": same("moments"), "embedder": _EMBEDDER},
    "video_embeddings": {
        "frames": same("frame_tensors"),
        "splits": same("frame_tensors"),
        "embedder": _EMBEDDER,
    },
    "video_index": {"video_embeddings": _indexed_videos},
    "first_ranking": {"query_embeddings": same("query_embeddings"), "video_index": known("video_index", "split")},
    "hard_negatives": {"first_ranking": same("first_ranking"), "moments": _with_the_same_text},
    "top1_pool": {"first_ranking": same("first_ranking")},
    "reasoning_traces": {
        "top1_pool": same("top1_pool"),
        "moments": _told_to_the_teacher,
        "frames": known("frame_tensors", "shown_video_id"),
    },
    "sft_examples": _EXAMPLE_INPUTS,
    "hard_refine_examples": {**_EXAMPLE_INPUTS, "plain_query": same("moments")},
    "grpo_prompts": {a: same(a) for a in ("first_ranking", "hard_negatives", "moments")},
    "fine_tuned_checkpoint": _TRAINED,
    "hard_refine_checkpoint": _TRAINED,
    "sft_checkpoint": _TRAINED,
    "drop_above_positive_checkpoint": _TRAINED,
    "grpo_checkpoint": _TRAINED,
    "predictions": {
        "query": same("moments"),
        "moment": same("moments"),
        "video_index": of_split("video_index"),
        "embedder": _EMBEDDER,
    },
    "verification_probe": {
        "query": known("moments", "query_id"),
        "moment": known("moments", "query_id"),
        "shown": _shown_in_probe,
        "frames": known("frame_tensors", "shown_video_id"),
    },
    "metrics": _METRIC_INPUTS,
    "refinement_curves": _METRIC_INPUTS,
    "report": _REPORT_INPUTS,
}
"""Asset (`predictions` for all of `predictions.*`) -> input -> its rows. `stage`, `recipe` and what comes straight from
a file or the configuration are not listed."""


def origin_of(stage: Stage, name: str) -> Origin | None:
    """Where an input of a stage's rows comes from; None where it is no row."""
    method = getattr(stage, "method", "")
    if name == "checkpoint" and method in METHODS:
        return one(METHODS[method].asset, METHODS[method].row_id)
    return LINEAGE.get(stage.name.split(".")[0], {}).get(name)


@dataclass(frozen=True)
class ExplainedInput:
    """One input of a row. was: its version when the row was made; None where the row has not been made from it.

    num_rows, num_due: how many upstream rows it stands for, and how many of those are not as committed. rows: some of
    them, due ones first. waits_for: the asset that has to run before they are known.
    """

    name: str
    version: str | None
    was: str | None
    num_rows: int = 0
    num_due: int = 0
    rows: tuple[ExplainedRow, ...] = ()
    waits_for: str = ""

    @property
    def is_changed(self) -> bool:
        return self.version != self.was


@dataclass(frozen=True)
class ExplainedRow:
    """A row as the plan sees it. state: new, stale, failed, unchanged, orphaned, or `unknown` before `waits_for` has
    run. error: of the committed row. source: the file, or the line of a file, that it was read from. `inputs` is empty
    where `is_shown_above`.
    """

    dataset: str
    asset: str
    row_id: str
    state: str
    version: str | None
    causes: tuple[str, ...] = ()
    error: str | None = None
    source: str = ""
    waits_for: str = ""
    is_shown_above: bool = False
    inputs: tuple[ExplainedInput, ...] = field(default=())

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=2)


def explain(view: View, asset: str, row_id: str, max_rows: int = 2) -> ExplainedRow:
    """Follow one row back to its sources, over at most `max_rows` rows an input.

    LookupError when there is no such asset or row, with what there is.
    """
    if asset not in view.stages:
        raise LookupError(f"no asset {asset!r}; there are: {', '.join(view.stages)}")
    return _Explainer(view, max_rows).row(asset, row_id)


class _Explainer:
    """The plan of one dataset, asked row by row. Each row is followed once, where it is met first."""

    def __init__(self, view: View, max_rows: int) -> None:
        self.view, self.max_rows = view, max_rows
        self.plans: dict[str, StagePlan] = {plan.asset: plan for plan in plan_graph(view)}
        self._wanted: dict[str, Mapping[str, Row]] = {}
        self._states: dict[str, dict[str, str]] = {}
        self._stored: dict[str, dict[str, dict[str, Any]]] = {}
        self._met: set[tuple[str, str]] = set()

    def row(self, asset: str, row_id: str) -> ExplainedRow:
        stored = self.stored(asset).get(row_id)
        wanted = self.wanted(asset).get(row_id)
        if stored is None and wanted is None:
            raise LookupError(self._no_row(asset, row_id))
        shown = (asset, row_id) in self._met
        self._met.add((asset, row_id))
        plan = self.plans[asset].plan
        facts = ExplainedRow(
            dataset=self.view.entry.name,
            asset=asset,
            row_id=row_id,
            state=self.states(asset).get(row_id, "unknown"),
            version=stored["row_version"] if stored else None,
            causes=plan.causes.get(row_id, ()) if plan else (),
            error=stored["error"] if stored else None,
            source=self._source(asset, row_id, wanted),
            waits_for=self.plans[asset].waits_for,
            is_shown_above=shown,
        )
        if shown:
            return facts
        return dataclasses.replace(facts, inputs=self._inputs(asset, row_id, wanted, stored))

    def _inputs(
        self, asset: str, row_id: str, wanted: Row | None, stored: Mapping[str, Any] | None
    ) -> tuple[ExplainedInput, ...]:
        """Changed ones first. Where the row is not wanted, or not known to be, those it was made from."""
        old: Inputs = json.loads(stored["row_inputs"]) if stored else {}
        stage = self.view.stages[asset]
        new = stage.wanted_inputs(self.view, {row_id: wanted})[row_id] if wanted is not None else old
        changed = changed_inputs(old, new)
        names = [*changed, *(name for name in new if name not in changed)]
        return tuple(
            self._input(stage, name, row_id, wanted, ExplainedInput(name, new.get(name), old.get(name)))
            for name in names
        )

    def _input(self, stage: Stage, name: str, row_id: str, wanted: Row | None, facts: ExplainedInput) -> ExplainedInput:
        if name == "lent" and self._lender is not None:
            return dataclasses.replace(facts, num_rows=1, rows=(self._lender.row(stage.name, row_id),))
        origin = origin_of(stage, name)
        if wanted is None or origin is None:
            return facts
        try:
            found = [(asset, i) for asset, ids in origin(self.view, row_id, wanted) for i in ids]
        except NotYetKnown as reason:
            return dataclasses.replace(facts, waits_for=reason.asset)
        there = [(a, i) for a, i in found if i in self.states(a) or i in self.stored(a)]
        due = [(a, i) for a, i in there if self.states(a).get(i) != "unchanged"]
        shown = [*due, *(pair for pair in there if pair not in set(due))][: self.max_rows]
        rows = tuple(self.row(a, i) for a, i in shown)
        return dataclasses.replace(facts, num_rows=len(there), num_due=len(due), rows=rows)

    @cached_property
    def _lender(self) -> _Explainer | None:
        lender = self.view.lender()
        return None if lender is None else _Explainer(lender, self.max_rows)

    def wanted(self, asset: str) -> Mapping[str, Row]:
        """Empty where the plan does not know yet."""
        if asset not in self._wanted:
            is_known = self.plans[asset].plan is not None
            self._wanted[asset] = self.view.stages[asset].wanted_rows(self.view) if is_known else {}
        return self._wanted[asset]

    def states(self, asset: str) -> dict[str, str]:
        """Row id -> new, stale, ...; empty where the plan does not know yet."""
        if asset not in self._states:
            plan = self.plans[asset].plan
            groups = ("new", "stale", "orphaned", "failed", "unchanged")
            self._states[asset] = {i: group for group in groups for i in getattr(plan, group, ())}
        return self._states[asset]

    def stored(self, asset: str) -> dict[str, dict[str, Any]]:
        """Row id -> bookkeeping of the committed row."""
        if asset not in self._stored:
            table = self.view.table(asset)
            rows = table.rows([table.key, "row_version", "row_inputs", "error"]).to_dicts()
            self._stored[asset] = {row[table.key]: row for row in rows}
        return self._stored[asset]

    def _source(self, asset: str, row_id: str, wanted: Row | None) -> str:
        """Where on disk a row of a source was read, or an imported one; empty for rows that were made from rows."""
        if wanted is not None and wanted.is_imported and self.view.imported is not None:
            return str(self.view.imported.record["source"])
        if asset == "moments":
            return sources.place_of(self.view.entry, self.view.config, row_id) or ""
        if self.view.stages[asset].upstream or wanted is None:
            return ""
        return str(wanted.inputs.get("path", wanted.inputs.get("clash", "")))

    def _no_row(self, asset: str, row_id: str) -> str:
        some = sorted({*self.wanted(asset), *self.stored(asset)})
        waits = self.plans[asset].waits_for
        if not some:
            return f"{asset} has no rows yet" + (f"; they are known after {waits} has run" if waits else "")
        return f"{asset} has no row {row_id!r}; it has {len(some):,}, e.g. {', '.join(some[:5])}"
