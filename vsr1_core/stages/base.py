"""The base class of all stages, and the tables that they read (`View`). `stages.execution` says how their work runs."""

from __future__ import annotations

import contextlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import polars as pl

from vsr1_core.datasets.registry import DatasetEntry, models_owner, own_configuration
from vsr1_core.datasets.sources import FileVersions
from vsr1_core.recipes import Configuration
from vsr1_core.rows import build_history
from vsr1_core.rows.boundary import Made, bounded
from vsr1_core.rows.columnar import ByIds, Computed, LazyRows, only, reader
from vsr1_core.rows.imported import Imported, ImportedRow, current_import
from vsr1_core.rows.increments import Outcome, Plan, known_values, make_plan, run_plan, without_gc
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.packed import packed
from vsr1_core.rows.table import Table
from vsr1_core.rows.versions import Inputs, fingerprint
from vsr1_core.settings import settings_of
from vsr1_core.stages.columns import BOOKKEEPING, IDS, Column, dtypes
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.readings import Names, NotYetKnown, Reading, Rows

Imports = Literal["none", "whole", "rows"]

RowIds = list[tuple[str, list[str]]]
"""(asset, row ids) pairs."""


class Row(NamedTuple):
    """A row that a table should have: what it reads, and the columns whose values are known before the work is done.

    facts: what the plan found and the work needs (a digest, a task, a moment); `make` gets it with the row. basis:
    facts that decide, in addition to `inputs`, whether an imported row still holds. Neither is part of the version.
    is_imported: whether the row keeps the values that were imported for it. is_borrowed: whether its model was made
    elsewhere. Such a row was not made by this stage, whose version and recipe are no inputs of it.
    """

    inputs: Inputs
    known: Mapping[str, Any] = {}
    basis: Inputs = {}
    is_imported: bool = False
    is_borrowed: bool = False
    facts: Any = None


@dataclass(frozen=True)
class Read:
    """The upstream rows that the version of one input of a row stands for.

    assets: the assets that have these rows. rows: (the planned tables, row id, row) -> their ids (see `stages.reads`).
    """

    assets: tuple[str, ...]
    rows: Callable[[View, str, Row], RowIds]


@dataclass(frozen=True)
class Check:
    """A condition that a table must meet before anything is built on it.

    says: the condition in one sentence. find: (the dataset's tables, asset) -> what is wrong, or nothing, in one
    sentence. blocking: whether a failed check stops the assets downstream. needs: the other assets that it reads.
    """

    name: str
    says: str
    find: Callable[[View, str], str]
    blocking: bool = True
    needs: tuple[str, ...] = ()


@dataclass
class View:
    """One dataset's tables, as a stage reads them.

    While planning, `planned` holds the tables that a build changes as they will be then: rows that have to be made
    have their new version, status `ok`, and their known columns only. `rows` returns such a table; `results` raises.
    read_by: asset -> what its last plan read. ids: those of the rows that the plan at hand looks at; None for all.
    """

    lake: Lake
    entry: DatasetEntry
    config: Configuration
    stages: Mapping[str, Stage]
    planned: dict[str, Rows] = field(default_factory=dict)
    unsettled: set[str] = field(default_factory=set)
    home: Path | None = None
    read_by: dict[str, frozenset[Reading]] = field(default_factory=dict, init=False, repr=False)
    _read: set[Reading] = field(default_factory=set, init=False, repr=False)
    ids: Collection[str] | None = field(default=None, init=False, repr=False)
    _by_row: tuple[str, ...] = field(default=(), init=False, repr=False)
    _tables: dict[str, Table] = field(default_factory=dict, init=False, repr=False)

    def table(self, asset: str) -> Table:
        """The committed table of an asset."""
        self._read.add(Reading(asset, "table"))
        return self._table(asset)

    def _table(self, asset: str) -> Table:
        if asset not in self._tables:
            stage = self.stages[asset]
            self._tables[asset] = self.lake.table(asset, self.entry.name, stage.key, stage.dtypes)
        return self._tables[asset]

    @contextlib.contextmanager
    def noting_reads(self, stage: Stage, ids: Collection[str] | None = None) -> Iterator[None]:
        """Note in `read_by` what the block reads of tables, in which `stage` is planned. ids: `read` finds no other
        rows of the assets of which the stage reads row by row."""
        outer = self._read, self.ids, self._by_row
        self._read, self.ids, self._by_row = set(), ids, stage.planned_by_row
        try:
            yield
        finally:
            self.read_by[stage.name] = frozenset(self._read)
            self._read, self.ids, self._by_row = self._read | outer[0], *outer[1:]

    def rows(self, asset: str, columns: Names = None, splits: Names = None) -> pl.DataFrame:
        """The ok rows of an upstream table, or of these splits. While planning, unknown columns are null."""
        return self.read(Reading.of(asset, "ok", columns, splits))

    def results(self, asset: str, columns: Names = None, splits: Names = None) -> pl.DataFrame:
        """`rows` with the final values of all columns. Raises NotYetKnown while one of them is still to be made."""
        return self.read(Reading.of(asset, "results", columns, splits))

    def read(self, reading: Reading) -> pl.DataFrame:
        """What is read now. Raises NotYetKnown while that depends on results which are still to be made."""
        return reading.of_rows(*self._source(reading))

    def read_batches(self, reading: Reading) -> Iterator[pl.DataFrame]:
        """`read`, some thousands of rows at a time: one frame or more."""
        return reading.batches_of(*self._source(reading))

    def _source(self, reading: Reading) -> tuple[Rows, Mapping[str, Any], Collection[str] | None]:
        """The table that is read, as it is or will be, its columns, and the ids of the rows (None: all)."""
        self._read.add(reading)
        asset, planned, table = reading.asset, self.planned.get(reading.asset), self._table(reading.asset)
        if planned is None and asset in self.unsettled:  # which rows it should have is not known yet
            raise NotYetKnown(asset)
        if planned is not None and reading.kind == "results" and not reading.is_made(planned, table.schema):
            raise NotYetKnown(asset)
        return planned or table, table.schema, self.ids if asset in self._by_row else None

    def versions(self, asset: str, splits: Names = None) -> Mapping[str, str]:
        """Row id -> row version of an upstream table's ok rows (of these splits)."""
        read = Reading.of(asset, "ok", [self.stages[asset].key, "row_version"], splits)
        return LazyRows(packed(self.read_batches(read)), lambda _, version: version)

    def version(self, asset: str, row_id: str) -> str:
        """The row version of one ok row of an upstream table; empty where there is no such row."""
        return self.versions(asset).get(row_id, "")

    @property
    def folders(self) -> list[Path]:
        """The folders that every process which makes rows has to see; it writes to the first one."""
        return [self.lake.root, *([Path(self.entry.videos)] if self.entry.videos else [])]

    def files(self, asset: str) -> Path:
        """The folder for the files that rows of `asset` point to."""
        return self.lake.files(asset, self.entry.name)

    @cached_property
    def imported(self) -> Imported | None:
        """The import that is in force for this dataset; None where nothing was imported."""
        return current_import(self.lake, self.entry.corpus)

    def imported_rows(self, asset: str) -> Mapping[str, ImportedRow]:
        """Row id -> imported row of `asset`, whether or not it still holds; empty where nothing was imported."""
        return self.imported.rows(asset, self.stages[asset].key) if self.imported is not None else {}

    def models_view(self) -> View | None:
        """The committed tables of the dataset that made the models which this one borrows, from it or from another
        borrower; None where it makes its own models."""
        if not self.entry.models_from:
            return None
        if self.home is None:
            raise ValueError(f"dataset {self.entry.name!r} borrows models, so its view needs a home folder")
        entry = models_owner(self.home, self.entry)
        return View(self.lake, entry, own_configuration(self.home, entry), self.stages, home=self.home)


class Stage(ABC):
    """One asset: a table with one row per item. A stage declares all facts about its asset, in this one place.

    name: the name of the asset and its table. key: the id column. group: the group in the UI. version: raised by hand,
    in the commit that changes what the rows mean. says: one sentence for people. columns: the other columns. reads:
    input of a row -> the upstream rows that its version stands for. uses: other assets that the work reads, whose
    content follows from `reads`. A stage has no state except its constructor's arguments.
    """

    name: str
    key: str
    group: str
    says: str
    columns: Mapping[str, Column]
    version: int = 1
    key_says: str = ""
    """What the key column holds, where `columns.IDS` does not say it."""
    reads: Mapping[str, Read] = {}
    uses: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    """The checks of this table, in addition to `checks.EVERY`."""
    imports: Imports = "none"
    """What an import of prepared data does with this stage: `none`: nothing; `whole`: it builds the stage, which needs
    no model; `rows`: it stores the rows that it brings and makes no others."""
    kept_inputs: tuple[str, ...] = ()
    """Inputs that are part of the version of an imported row, in addition to the imported content."""
    unversioned_columns: tuple[str, ...] = ()
    """Known columns that are no part of the row version: each build updates them in unchanged rows."""
    watches: str = ""
    """Name of the observed asset that stands for files on disk that the stage reads; empty where it reads none."""
    row_files: str = ""
    """Glob pattern of the files in the asset's folder that belong to one row each (its `path`); empty for none."""
    keeps_rows: bool = False
    """Whether its rows are kept as each build left them, so that builds can be compared (`kept_rows`)."""
    is_planned_from_tables: bool = False
    """Whether `plan` reads tables, the dataset's entry and its configuration, and nothing else (`beside_tables`)."""
    planned_by_row: tuple[str, ...] = ()
    """Assets of which `plan` reads each row for the wanted row with the same id alone."""
    stops_at_errors: bool = False
    """Whether what `make` raises stops the build. In other stages it fails the rows that cause it (`rows.boundary`)."""
    is_known_before: bool = False
    """Whether rows consist of known columns only, so that `make` is never called."""
    retries_failed: bool = False
    """Whether each build makes failed rows again: those of models fail because of a network, not of their inputs."""

    @property
    def upstream(self) -> tuple[str, ...]:
        """Names of the assets that this stage reads."""
        read = [asset for read in self.reads.values() for asset in read.assets]
        return tuple(dict.fromkeys([*read, *self.uses]))

    @property
    def dtypes(self) -> dict[str, Any]:
        """Column name -> polars type, without the key."""
        return dtypes(self.columns)

    def meaning(self, column: str) -> str:
        """One sentence about a column of the table; empty where the table has no such column."""
        if column == self.key:
            return self.key_says or IDS.get(column, "")
        return self.columns[column].says if column in self.columns else BOOKKEEPING.get(column, "")

    def recipe(self, config: Configuration) -> Any:
        """The part of the configuration that decides this stage's rows; None where no part does."""
        return None

    @abstractmethod
    def plan(self, view: View) -> Mapping[str, Row]:
        """Row id -> Row for every row that this table should have.

        A plan is cheap: it decodes nothing and runs no model. `Row.inputs` has upstream versions only; `inputs_of` adds
        the stage version and the recipe. Many rows are `LazyRows`, made of what the plan read when they are asked for.
        """

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        """Make `rows`, as `plan` returned them: yield a dict per row, with the key and the columns, or with `error`."""
        raise NotImplementedError(f"{self.name} neither knows its rows before nor makes them")

    def planned_rows(self, view: View, ids: Collection[str] | None = None) -> Mapping[str, Row]:
        """`plan`, with the imported row in place of each row for which one was imported and still holds. ids: only rows
        with these ids, where nothing moved for the others (`planned_by_row`). Lazy rows are never imported."""
        with view.noting_reads(self, ids):
            imported, rows = view.imported_rows(self.name), self.plan(view)
        return {i: self._or_imported(row, imported.get(i)) for i, row in rows.items()} if imported else rows

    def _or_imported(self, row: Row, imported: ImportedRow | None) -> Row:
        facts = {**row.inputs, **row.basis}
        if imported is None or any(facts.get(name) != version for name, version in imported.basis.items()):
            return row
        inputs = {"imported": imported.digest, **{name: row.inputs[name] for name in self.kept_inputs}}
        known = {name: value for name, value in row.known.items() if name not in ("status", "error")}
        failure = {"status": "failed"} if imported.known.get("error") is not None else {}
        return Row(inputs, {**known, **imported.known, **failure}, is_imported=True)

    def inputs_of(self, view: View, rows: Mapping[str, Row]) -> Mapping[str, Inputs]:
        """The full inputs of each row: stage version, recipe, and what the row reads. Imported and borrowed rows have
        neither stage version nor recipe: a new version of this stage leaves them as they are."""
        recipe = self.recipe(view.config)
        base = {"stage": str(self.version), **({} if recipe is None else {"recipe": fingerprint(recipe)})}
        return Computed(reader(rows), lambda r: r.inputs if r.is_imported or r.is_borrowed else {**base, **r.inputs})

    def concerns(self, view: View) -> bool:
        """Whether the dataset's configuration asks for this stage. Where it does not, there are no rows, unless it did
        before; tables for people leave such a stage out."""
        return True

    def trains(self, view: View) -> bool:
        """Whether making rows of this stage trains a model: automation then obeys the configuration's `retrain`."""
        return False

    def records(self, view: View) -> list[Path]:
        """Files that `plan` reads in addition to tables and sources."""
        return []

    def beside_tables(self, view: View, files: FileVersions) -> Any:
        """What `plan` reads besides tables, entry and configuration, as JSON that changes with it; None where that
        cannot be said (`stages.unmoved`). files: of the dataset."""
        return [] if self.is_planned_from_tables else None

    def observe(self, view: View) -> str:
        """One version of everything that a source finds on disk: that of all its planned rows. Empty where there is
        nothing to observe yet."""
        return fingerprint(dict(self.inputs_of(view, self.planned_rows(view))))

    def due(self, view: View) -> Plan:
        """What a build of this stage alone would do."""
        return self.plan_of(self.inputs_of(view, self.planned_rows(view)), view.table(self.name))

    def plan_of(self, inputs: Mapping[str, Inputs], table: Table, ids: Collection[str] | None = None) -> Plan:
        """What a build does with rows of these inputs, or, of a whole table, with those that have one of `ids`."""
        plan = make_plan(inputs, table, ids)
        return plan.with_failed_due() if self.retries_failed else plan

    def shard_rows(self, view: View, run: Execution) -> int:
        """How many finished rows are saved at a time; a killed run loses at most so many."""
        return run.shard_rows

    def check_plan(self, view: View, rows: Mapping[str, Row], plan: Plan, run: Execution) -> None:  # noqa: B027
        """Raise ValueError where a build must not do what `plan` says. Called before any row is made or dropped."""

    def build(self, view: View, run: Execution, only_imported: bool = False) -> Outcome:
        """Plan, make the rows that are new or stale, and commit the table. Building twice changes nothing.

        only_imported: store imported rows only, and leave the rows that have to be made to a later build.
        """
        table = view.table(self.name)
        with without_gc():
            rows = self.planned_rows(view)
            inputs = self.inputs_of(view, rows)
            plan = self.plan_of(inputs, table)
        self.check_plan(view, rows, plan, run)
        if only_imported:
            plan = plan.limited_to({row_id for row_id, row in rows.items() if row.is_imported})
        made_before = ((row_id, rows[row_id]) for row_id in plan.unchanged if not rows[row_id].is_imported)
        control = dict(itertools.islice(made_before, 1))
        outcome = run_plan(
            table,
            inputs,
            plan,
            lambda ids: self._made(view, only(rows, ids), run, control),
            retry_failed=run.retry_failed,
            shard_rows=self.shard_rows(view, run),
            unversioned=self.unversioned(table, rows),
            log=run.log,
        )
        self.end_build(view, outcome, run.run_id)
        return outcome

    def end_build(self, view: View, outcome: Outcome, run_id: str) -> None:
        """What follows the commit: files of the whole table, and what is noted of a build that has an id."""
        self.after_build(view)
        if not run_id:
            return
        lake, table, config = view.lake, view.table(self.name), view.config
        build_history.note_step(lake, table, outcome, run_id, settings_of(config), config.name)
        if self.keeps_rows:
            folder = build_history.folder_of(lake, self.name, table.dataset)
            build_history.keep_changed_rows(table, self.kept_rows, folder, run_id)

    def kept_rows(self, rows: pl.DataFrame) -> pl.DataFrame:
        """What is kept of rows as each build left them: the key and some columns. Only for stages with `keeps_rows`."""
        raise NotImplementedError(self.name)

    def _made(self, view: View, rows: Mapping[str, Row], run: Execution, control: Mapping[str, Row]) -> Made:
        """The finished rows: imported rows as they were imported, and the others as this stage makes them."""
        imported = [] if isinstance(rows, ByIds) else [i for i, row in rows.items() if row.is_imported]
        for row in view.imported.values(self.name, self.key, imported) if imported and view.imported else ():
            known = {name: value for name, value in rows[row[self.key]].known.items() if name in self.columns}
            yield {**known, **row}
        own = {row_id: row for row_id, row in rows.items() if not row.is_imported} if imported else rows
        if self.is_known_before:
            yield from ({self.key: row_id, **row.known} for row_id, row in own.items())
        elif own:
            at_once = self.make(view, own, run) if self.stops_at_errors else None
            yield from at_once or bounded(lambda some: self.make(view, some, run), own, self.key, control)

    def unversioned(self, table: Table, rows: Mapping[str, Row]) -> Mapping[str, Mapping[str, Any]]:
        """Row id -> values that are updated in rows which are otherwise unchanged.

        These are `unversioned_columns`, columns that an earlier version of this project wrote the table without, and
        the `path` of imported rows: each import has a folder of its own, and the folder of the one before is removed.
        """
        own = tuple(dict.fromkeys([*self.unversioned_columns, *table.new_columns()]))
        return known_values(rows, own, own if "path" in own or "path" not in self.columns else (*own, "path"))

    def after_build(self, view: View) -> None:  # noqa: B027  # most stages have no such files
        """Write files that are made of the whole table.

        Called after each build, also one that made no row, as a run before it may have been killed after its commit.
        """
