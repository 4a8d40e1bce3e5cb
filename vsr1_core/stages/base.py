"""What a stage is, what it reads through (`View`), and how its work runs (`Execution`). No stage is defined here."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import polars as pl

from vsr1_core.datasets.registry import DatasetEntry, models_owner, own_configuration
from vsr1_core.reasoning.tasks import EndpointSettings
from vsr1_core.recipes import Configuration
from vsr1_core.rows.imported import Imported, ImportedRow, current_import
from vsr1_core.rows.increments import Outcome, Plan, make_plan, run_plan, without_gc
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.table import Table
from vsr1_core.rows.versions import Inputs, fingerprint
from vsr1_core.rows.workers import Item, Result, Value, map_rows
from vsr1_core.stages.columns import BOOKKEEPING, IDS, Column, dtypes

TextWriterName = Literal["in-process", "vllm"]
Imports = Literal["none", "whole", "rows"]


@dataclass(frozen=True)
class Execution:
    """How the work runs. Nothing here changes a result, so nothing here bears a version."""

    device: str = "cpu"
    workers: int = field(default_factory=lambda: max(1, os.cpu_count() or 1))
    ray: str = ""
    """Address of a Ray cluster that does the row work in place of `workers`; empty for none."""
    batch_size: int = 32
    shard_rows: int = 256
    retry_failed: bool = False
    endpoint: EndpointSettings | None = None
    """Where the teacher's model is; None where none is set up."""
    processes: int = 1
    """Number of processes that train one model together, each on its own GPU."""
    micro_batch_size: int = 8
    """Episodes a backward pass of stage 2 takes: fewer need less memory."""
    text_writer: TextWriterName = "in-process"
    """Who writes text in a search: the decoding loop, or vLLM on a GPU (the extra `vllm`)."""
    cache_bytes: int = 20 << 30
    """What vision features and query vectors may take on disk, each; 0 keeps none there."""
    save_steps: int = 50
    """A training keeps its state every so many steps, to go on from when it is killed; 0 keeps none."""
    trackers: tuple[str, ...] = ()
    """Where trainings report to beside the lake, by TRL's names: trackio, tensorboard, wandb."""
    log: Callable[[str], None] = lambda line: None
    """A `Log` where steps are shown, too."""

    def map_rows(
        self, function: Callable[[Item], Value], items: Iterable[Item], view: View, deadline_s: float = 900.0
    ) -> Iterator[Result[Item, Value]]:
        """`workers.map_rows` where this work runs: in processes of this machine, or on a Ray cluster, whose nodes all
        have to see the lake and the videos."""
        if not self.ray:
            return map_rows(function, items, self.workers, deadline_s)
        from vsr1_core.rows.ray_workers import map_rows_on_ray

        folders = [view.lake.root, *([Path(view.entry.videos)] if view.entry.videos else [])]
        return map_rows_on_ray(function, items, self.ray, folders, deadline_s, self.log)


class NotYetKnown(Exception):
    """Which rows a stage wants depends on results that are not there yet; `asset` names whose."""

    def __init__(self, asset: str) -> None:
        super().__init__(f"depends on the results of {asset}, which has to run first")
        self.asset = asset


RowIds = list[tuple[str, list[str]]]
"""(asset, row ids) pairs."""


@dataclass(frozen=True)
class Row:
    """A row that a table should have: what it reads, and the columns whose values are known before the work is done.

    facts: what was found on the way and the work needs (a digest, a task, a moment); `make` gets it with the row. It
    bears no version of its own. basis: facts that decide, beside `inputs`, whether an imported row still holds; they
    bear no version. is_imported: this row is taken as it was imported.
    """

    inputs: Inputs
    known: Mapping[str, Any] = field(default_factory=dict)
    basis: Inputs = field(default_factory=dict)
    is_imported: bool = False
    facts: Any = None


@dataclass(frozen=True)
class Read:
    """What one input of a row stands for. assets: where its rows are; rows: (the planned tables, row id, row) -> which.

    `stages.reads` has the usual ones.
    """

    assets: tuple[str, ...]
    rows: Callable[[View, str, Row], RowIds]


@dataclass(frozen=True)
class Check:
    """What must hold of a table before anything is built on it.

    find: (the dataset's tables, asset) -> what is wrong, in one sentence; empty when nothing is. A blocking check stops
    what is downstream. needs: the other assets that it looks at.
    """

    name: str
    says: str
    find: Callable[[View, str], str]
    blocking: bool = True
    needs: tuple[str, ...] = ()


@dataclass
class View:
    """One dataset's tables, as a stage reads them.

    While planning, `planned` holds the tables as they will be: rows that are due have their new version, status
    `ok`, and only their known columns. `results` refuses such a table; `rows` gives it.
    """

    lake: Lake
    entry: DatasetEntry
    config: Configuration
    stages: Mapping[str, Stage]
    planned: dict[str, pl.DataFrame] = field(default_factory=dict)
    unsettled: set[str] = field(default_factory=set)
    home: Path | None = None
    _tables: dict[str, Table] = field(default_factory=dict, init=False, repr=False)

    def table(self, asset: str) -> Table:
        if asset not in self._tables:
            stage = self.stages[asset]
            self._tables[asset] = self.lake.table(asset, self.entry.name, stage.key, stage.dtypes)
        return self._tables[asset]

    def rows(self, asset: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """The ok rows of an upstream table. `row_version` is exact while planning; unknown columns are null then."""
        if asset not in self.planned:
            if asset in self.unsettled:  # which rows it wants is not known, so nothing is known of them
                raise NotYetKnown(asset)
            return self.table(asset).ok_rows(columns)
        frame = self.planned[asset].filter(pl.col("status") == "ok")
        return frame if columns is None else frame[list(columns)]

    def results(self, asset: str, columns: Sequence[str] | None = None, where: pl.Expr | None = None) -> pl.DataFrame:
        """The ok rows of an upstream table (that fit `where`) with all columns true.

        Raises NotYetKnown while one of them is still to be made; `where` may use columns that are known before.
        """
        if asset not in self.planned and columns is not None:  # committed: only what is asked for is read
            extra = [] if where is None else where.meta.root_names()
            frame = self.rows(asset, list(dict.fromkeys([*columns, *extra])))
            return (frame if where is None else frame.filter(where))[list(columns)]
        frame = self.rows(asset)
        frame = frame if where is None else frame.filter(where)
        # A row that is due has no `row_inputs` yet.
        if asset in self.planned and frame["row_inputs"].null_count():
            raise NotYetKnown(asset)
        return frame if columns is None else frame[list(columns)]

    def versions(self, asset: str) -> dict[str, str]:
        """Row id -> row version of an upstream table's ok rows."""
        key = self.stages[asset].key
        return dict(self.rows(asset, [key, "row_version"]).iter_rows())

    def version_of(self, asset: str, predicate: pl.Expr | None = None) -> str:
        """One version for many upstream rows: changes when any ok row (that fits `predicate`) does."""
        frame = self.rows(asset)
        frame = frame if predicate is None else frame.filter(predicate)
        return fingerprint(sorted(frame.select(self.stages[asset].key, "row_version").rows()))

    def files(self, asset: str) -> Path:
        """The folder for files that belong to `asset`'s rows."""
        return self.lake.files(asset, self.entry.name)

    @cached_property
    def imported(self) -> Imported | None:
        """What was imported for this dataset; None where nothing was."""
        return current_import(self.lake, self.entry.corpus)

    def imported_rows(self, asset: str) -> Mapping[str, ImportedRow]:
        """Row id -> the imported row of `asset`, whether or not it still holds."""
        return self.imported.rows(asset, self.stages[asset].key) if self.imported is not None else {}

    def models_view(self) -> View | None:
        """The committed tables of the dataset that made the models which this one uses, at the end of a chain of
        borrowing; None when it makes its own."""
        if not self.entry.models_from:
            return None
        if self.home is None:
            raise ValueError(f"dataset {self.entry.name!r} borrows models, so its view needs a home folder")
        entry = models_owner(self.home, self.entry)
        return View(self.lake, entry, own_configuration(self.home, entry), self.stages, home=self.home)


class Stage(ABC):
    """One asset: a table with one row per item. Everything that is to be known of it is declared here, in one place.

    name: the asset's and the table's name. key: the id column. group: the group in the UI. version: bumped by hand, in
    the commit that changes what the rows mean. says: one sentence for people. columns: the other columns. reads: input
    of a row -> the upstream rows that its version stands for. uses: assets that the work reads as well, whose content
    follows from `reads`. A stage has no state but what its constructor is given.
    """

    name: str
    key: str
    group: str
    says: str
    columns: Mapping[str, Column]
    version: int = 1
    key_says: str = ""
    """What the key is, where `columns.IDS` does not say it."""
    reads: Mapping[str, Read] = {}
    uses: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    """What must hold beside `checks.EVERY`."""
    imports: Imports = "none"
    """What an import of prepared data does here: nothing; it builds the stage, which costs no model; or it takes the
    rows that it brings."""
    kept_inputs: tuple[str, ...] = ()
    """Inputs that an imported row reads as well, beside what was imported."""
    unversioned_columns: tuple[str, ...] = ()
    """Known columns that no version covers: each build writes them anew into unchanged rows."""
    watches: str = ""
    """What on disk it reads, by the name of the observed asset; only of sources."""
    row_files: str = ""
    """Glob pattern of the files, in the asset's folder, that are a row's own (its `path`); empty for none."""
    is_known_before: bool = False
    """Whether a row is no more than its known columns, so that nothing is left to make."""

    @property
    def upstream(self) -> tuple[str, ...]:
        """The assets that it reads."""
        read = [asset for read in self.reads.values() for asset in read.assets]
        return tuple(dict.fromkeys([*read, *self.uses]))

    @property
    def dtypes(self) -> dict[str, Any]:
        """Column -> polars type, without the key."""
        return dtypes(self.columns)

    def meaning(self, column: str) -> str:
        """One sentence about a column of the table; empty where there is no such column."""
        if column == self.key:
            return self.key_says or IDS.get(column, "")
        return self.columns[column].says if column in self.columns else BOOKKEEPING.get(column, "")

    def recipe(self, config: Configuration) -> Any:
        """What of the configuration decides this stage's rows; None where nothing does."""
        return None

    @abstractmethod
    def plan(self, view: View) -> Mapping[str, Row]:
        """Id -> Row for every row that this table should have. Cheap: no decoding, no model. `inputs` names upstream
        versions only; stage version and recipe are added by `inputs_of`."""

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        """Make `rows`, as `plan` gave them: yield one dict per row with the key and the columns, or the key and
        `error`."""
        raise NotImplementedError(f"{self.name} neither knows its rows before nor makes them")

    def planned_rows(self, view: View) -> dict[str, Row]:
        """`plan`, with an imported row in place of each row that was imported and whose basis still holds."""
        imported = view.imported_rows(self.name)
        return {row_id: self._or_imported(row, imported.get(row_id)) for row_id, row in self.plan(view).items()}

    def _or_imported(self, row: Row, imported: ImportedRow | None) -> Row:
        facts = {**row.inputs, **row.basis}
        if imported is None or any(facts.get(name) != version for name, version in imported.basis.items()):
            return row
        inputs = {"imported": imported.digest, **{name: row.inputs[name] for name in self.kept_inputs}}
        known = {name: value for name, value in row.known.items() if name not in ("status", "error")}
        failure = {"status": "failed"} if imported.known.get("error") is not None else {}
        return Row(inputs, {**known, **imported.known, **failure}, is_imported=True)

    def inputs_of(self, view: View, rows: Mapping[str, Row]) -> dict[str, Inputs]:
        """Each row's full inputs: stage version, recipe, and what the row reads. An imported row owes nothing to this
        stage, so a new version or recipe of it leaves the row as it is."""
        base = {"stage": str(self.version)}
        recipe = self.recipe(view.config)
        if recipe is not None:
            base["recipe"] = fingerprint(recipe)
        return {i: dict(row.inputs) if row.is_imported else {**base, **row.inputs} for i, row in rows.items()}

    def trains(self, view: View) -> bool:
        """Whether making this stage's rows means to train, so that automation asks the configuration's `retrain`."""
        return False

    def records(self, view: View) -> list[Path]:
        """Files beside the tables and sources that `plan` reads."""
        return []

    def observe(self, view: View) -> str:
        """The version of what a source finds on disk: one for all its planned rows."""
        return self.version_of(view, self.planned_rows(view))

    def version_of(self, view: View, rows: Mapping[str, Row]) -> str:
        """One version of all `rows`."""
        return fingerprint(self.inputs_of(view, rows))

    def due(self, view: View) -> Plan:
        """What a build of this stage alone would do."""
        return make_plan(self.inputs_of(view, self.planned_rows(view)), view.table(self.name))

    def shard_rows(self, view: View, run: Execution) -> int:
        """How many finished rows are kept at a time: so many a killed run may lose."""
        return run.shard_rows

    def build(self, view: View, run: Execution, only_imported: bool = False) -> Outcome:
        """Plan, make what is due, commit. Idempotent. `only_imported` leaves rows that would be made for later."""
        table = view.table(self.name)
        with without_gc():
            rows = self.planned_rows(view)
            inputs = self.inputs_of(view, rows)
            plan = make_plan(inputs, table)
        if only_imported:
            plan = plan.limited_to({row_id for row_id, row in rows.items() if row.is_imported})
        outcome = run_plan(
            table,
            inputs,
            plan,
            lambda ids: self._made(view, {row_id: rows[row_id] for row_id in ids}, run),
            retry_failed=run.retry_failed,
            shard_rows=self.shard_rows(view, run),
            unversioned=self.unversioned(table, rows),
            log=run.log,
        )
        self.after_build(view)
        return outcome

    def _made(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        """The rows: imported ones as they were imported, the others made."""
        imported = [row_id for row_id, row in rows.items() if row.is_imported]
        if imported and view.imported is not None:
            for row in view.imported.values(self.name, self.key, imported):
                known = {name: value for name, value in rows[row[self.key]].known.items() if name in self.columns}
                yield {**known, **row}
        own = {row_id: row for row_id, row in rows.items() if not row.is_imported}
        if self.is_known_before:
            yield from ({self.key: row_id, **row.known} for row_id, row in own.items())
        elif own:
            yield from self.make(view, own, run)

    def unversioned(self, table: Table, rows: Mapping[str, Row]) -> dict[str, dict[str, Any]]:
        """Known values that unchanged rows take over: of `unversioned_columns`, of columns that the table was written
        without, by an earlier version of this project, and where the file of an imported row lies: an import that
        brings the same file puts it into a folder of its own, and the folder of the import before is removed."""
        own = tuple(dict.fromkeys([*self.unversioned_columns, *table.new_columns()]))
        names = {False: own, True: own if "path" in own or "path" not in self.columns else (*own, "path")}
        found = {
            i: {name: row.known[name] for name in names[row.is_imported] if name in row.known}
            for i, row in rows.items()
            if names[row.is_imported]
        }
        return {i: columns for i, columns in found.items() if columns}

    def after_build(self, view: View) -> None:  # noqa: B027  # most stages have no such files
        """Called when the table is committed, and also when nothing was due: a run may have been killed in between.
        For files made of the whole table; has to be cheap when they are there already."""
