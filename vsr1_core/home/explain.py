"""Which upstream rows a row was made from, and why it has to be made: one row is followed back to its source files.

The stages declare which rows an input's version stands for (`Stage.reads`), and `stages.graph` makes the plan. This
module writes nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vsr1_core.rows.increments import STATES, changed_inputs
from vsr1_core.rows.texts import did_you_mean
from vsr1_core.rows.versions import Inputs
from vsr1_core.stages.base import Row, Stage, View
from vsr1_core.stages.corrections import annotated_at
from vsr1_core.stages.graph import StagePlan, plan_graph
from vsr1_core.stages.model_folders import BORROWED
from vsr1_core.stages.readings import NotYetKnown


@dataclass(frozen=True)
class ExplainedInput:
    """One input of a row.

    version: its version now. was: its version when the row was made; None where the row was not made from it. num_rows:
    number of upstream rows that it stands for. num_due: how many of them a build would change. rows: some of them,
    those that a build would change first. waits_for: the asset that has to run before they are known.
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
    """A row as the plan sees it.

    state: new, stale, failed, unchanged, orphaned, or `unknown` before `waits_for` has run. version, error: those of
    the committed row. causes: why the row has to be made. source: the file, or the line of a file, that it was read
    from. is_shown_above: whether the tree has the row before; `inputs` is empty then.
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
        """The row and everything below it as JSON text."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=2)


def explain(view: View, asset: str, row_id: str, max_rows: int = 2) -> ExplainedRow:
    """Follow one row back to its sources, through at most `max_rows` upstream rows per input.

    Raises:
        LookupError: There is no such asset or row; the message names some that exist.
    """
    if asset not in view.stages:
        meant = did_you_mean(asset, view.stages)
        raise LookupError(f"no asset {asset!r}{meant or ';'} there are: {', '.join(view.stages)}")
    return _Explainer(view, max_rows).row(asset, row_id)


class _Explainer:
    """Explains rows of one dataset by its plan. Each row is followed once, where the tree reaches it first."""

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
        """The inputs of a row, changed ones first; those that it was made from where the plan does not have the row."""
        old: Inputs = json.loads(stored["row_inputs"]) if stored else {}
        stage = self.view.stages[asset]
        new = stage.inputs_of(self.view, {row_id: wanted})[row_id] if wanted is not None else old
        changed = changed_inputs(old, new)
        names = [*changed, *(name for name in new if name not in changed)]
        return tuple(
            self._input(stage, name, row_id, wanted, ExplainedInput(name, new.get(name), old.get(name)))
            for name in names
        )

    def _input(self, stage: Stage, name: str, row_id: str, wanted: Row | None, facts: ExplainedInput) -> ExplainedInput:
        if name == BORROWED and self._models_explainer is not None:
            return dataclasses.replace(facts, num_rows=1, rows=(self._models_explainer.row(stage.name, row_id),))
        read = stage.reads.get(name)
        if wanted is None or read is None:
            return facts
        try:
            found = [(asset, i) for asset, ids in read.rows(self.view, row_id, wanted) for i in ids]
        except NotYetKnown as reason:
            return dataclasses.replace(facts, waits_for=reason.asset)
        there = [(a, i) for a, i in found if i in self.states(a) or i in self.stored(a)]
        due = [(a, i) for a, i in there if self.states(a).get(i) != "unchanged"]
        shown = [*due, *(pair for pair in there if pair not in set(due))][: self.max_rows]
        rows = tuple(self.row(a, i) for a, i in shown)
        return dataclasses.replace(facts, num_rows=len(there), num_due=len(due), rows=rows)

    @cached_property
    def _models_explainer(self) -> _Explainer | None:
        models = self.view.models_view()
        return None if models is None else _Explainer(models, self.max_rows)

    def wanted(self, asset: str) -> Mapping[str, Row]:
        """Row id -> planned row; empty where the plan is not known yet."""
        if asset not in self._wanted:
            is_known = self.plans[asset].plan is not None
            self._wanted[asset] = self.view.stages[asset].planned_rows(self.view) if is_known else {}
        return self._wanted[asset]

    def states(self, asset: str) -> dict[str, str]:
        """Row id -> state (new, stale, ...); empty where the plan is not known yet."""
        if asset not in self._states:
            plan = self.plans[asset].plan
            self._states[asset] = {i: state for state in STATES for i in getattr(plan, state, ())}
        return self._states[asset]

    def stored(self, asset: str) -> dict[str, dict[str, Any]]:
        """Row id -> version, inputs and error of the committed row."""
        if asset not in self._stored:
            table = self.view.table(asset)
            rows = table.rows([table.key, "row_version", "row_inputs", "error"]).to_dicts()
            self._stored[asset] = {row[table.key]: row for row in rows}
        return self._stored[asset]

    def _source(self, asset: str, row_id: str, wanted: Row | None) -> str:
        """The file that a source's row was read from, or the folder that a row was imported from; empty for others."""
        if wanted is not None and wanted.is_imported and self.view.imported is not None:
            return str(self.view.imported.record["source"])
        if asset == "moments":
            return annotated_at(self.view, row_id) or ""
        if self.view.stages[asset].upstream or wanted is None:
            return ""
        return self.view.lake.places.placed(wanted.inputs.get("path", wanted.inputs.get("clash", "")))

    def _no_row(self, asset: str, row_id: str) -> str:
        some = sorted({*self.wanted(asset), *self.stored(asset)})
        waits = self.plans[asset].waits_for
        if not some:
            return f"{asset} has no rows yet" + (f"; its rows are known after {waits} has run" if waits else "")
        return f"{asset} has no row {row_id!r}; it has {len(some):,}, e.g. {', '.join(some[:5])}"
