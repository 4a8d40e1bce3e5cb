"""What a stage is, what it reads through (`View`), and how it runs (`Execution`). No stage is defined here."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import polars as pl

from vsr1_core.datasets.registry import DatasetEntry, models_owner
from vsr1_core.reasoning.tasks import EndpointSettings
from vsr1_core.recipes import STAGE_VERSIONS, Configuration
from vsr1_core.rows.imported import GivenRow, Imported, current_import
from vsr1_core.rows.increments import Outcome, Plan, make_plan, run_plan, without_gc
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.table import Table
from vsr1_core.rows.versions import Inputs, fingerprint
from vsr1_core.rows.workers import Item, Result, Value, map_rows

TextWriterName = Literal["in-process", "vllm"]


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
    """How many train one model together, a GPU each."""
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
        """`engine.map_rows` where this work runs: in processes of this machine, or on a Ray cluster, whose nodes all
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


@dataclass(frozen=True)
class Row:
    """A wanted row: what it reads, and the columns whose values are known before the work is done.

    basis: facts that decide, beside `inputs`, whether an imported row still holds; they bear no version. is_imported:
    this row is taken as it was given.
    """

    inputs: Inputs
    known: Mapping[str, Any] = field(default_factory=dict)
    basis: Inputs = field(default_factory=dict)
    is_imported: bool = False


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
            self._tables[asset] = self.lake.table(asset, self.entry.name, stage.key, stage.columns)
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
        return current_import(self.lake, self.entry.name)

    def given_rows(self, asset: str) -> Mapping[str, GivenRow]:
        """Row id -> the imported row of `asset`, whether or not it still holds."""
        return self.imported.rows(asset, self.stages[asset].key) if self.imported is not None else {}

    def lender(self) -> View | None:
        """The committed tables of the dataset that made the models which this one uses, at the end of a chain of
        borrowing; None when it makes its own."""
        if not self.entry.models_from:
            return None
        if self.home is None:
            raise ValueError(f"dataset {self.entry.name!r} borrows models, so its view needs a home folder")
        entry = models_owner(self.home, self.entry)
        return View(self.lake, entry, entry.own_configuration, self.stages, home=self.home)


class Stage(ABC):
    """One asset: a table with a row an item. Subclasses are stateless.

    name: the asset's and table's name. key: the id column. columns: name -> polars type of the others.
    upstream: the assets it reads. group: the group in the UI. notes: known columns that no version covers; each build
    writes them anew into unchanged rows. watches: what on disk it reads, by the name of the observed asset; only of
    sources.
    """

    name: ClassVar[str]
    key: ClassVar[str]
    group: ClassVar[str]
    columns: ClassVar[Mapping[str, Any]]
    upstream: ClassVar[tuple[str, ...]] = ()
    kept_inputs: ClassVar[tuple[str, ...]] = ()
    """Inputs that an imported row reads as well, beside what was given."""
    notes: ClassVar[tuple[str, ...]] = ()
    watches: ClassVar[str] = ""
    row_files: ClassVar[str] = ""
    """Glob pattern of the files, in the asset's folder, that are a row's own (its `path`); empty for none."""
    is_known_before: ClassVar[bool] = False
    """Whether a row is no more than its known columns, so that nothing is left to process."""

    def recipe(self, config: Configuration) -> Any:
        """What of the configuration decides this stage's rows; None where nothing does."""
        return None

    @abstractmethod
    def wanted(self, view: View) -> Mapping[str, Row]:
        """Id -> Row for every row this table should have. Cheap: no decoding, no model. `inputs` names upstream
        versions only; stage version and recipe are added by `wanted_inputs`."""

    def process(self, view: View, ids: Sequence[str], execution: Execution) -> Iterator[dict[str, Any]]:
        """Make the rows `ids`: yield one dict a row with the key and the columns, or the key and `error`."""
        raise NotImplementedError(f"{self.name} neither knows its rows before nor makes them")

    def wanted_rows(self, view: View) -> dict[str, Row]:
        """`wanted`, with an imported row in place of each row that was given and whose basis still holds."""
        given = view.given_rows(self.name)
        return {row_id: self._or_given(row, given.get(row_id)) for row_id, row in self.wanted(view).items()}

    def _or_given(self, row: Row, given: GivenRow | None) -> Row:
        facts = {**row.inputs, **row.basis}
        if given is None or any(facts.get(name) != version for name, version in given.basis.items()):
            return row
        inputs = {"imported": given.digest, **{name: row.inputs[name] for name in self.kept_inputs}}
        known = {name: value for name, value in row.known.items() if name not in ("status", "error")}
        failure = {"status": "failed"} if given.known.get("error") is not None else {}
        return Row(inputs, {**known, **given.known, **failure}, is_imported=True)

    def wanted_inputs(self, view: View, wanted: Mapping[str, Row]) -> dict[str, Inputs]:
        """Each row's full inputs: stage version, recipe, and what the row reads. An imported row owes nothing to this
        stage, so a new version or recipe of it leaves the row as it is."""
        base = {"stage": str(STAGE_VERSIONS[self.name.split(".")[0]])}
        recipe = self.recipe(view.config)
        if recipe is not None:
            base["recipe"] = fingerprint(recipe)
        return {i: dict(row.inputs) if row.is_imported else {**base, **row.inputs} for i, row in wanted.items()}

    def trains(self, view: View) -> bool:
        """Whether making this stage's rows means to train, so that automation asks the configuration's `retrain`."""
        return False

    def records(self, view: View) -> list[Path]:
        """Files beside the tables and sources that `wanted` reads."""
        return []

    def wanted_version(self, view: View) -> str:
        """One version for all wanted rows: of a source, the version of what is on disk."""
        return fingerprint(self.wanted_inputs(view, self.wanted_rows(view)))

    def plan(self, view: View) -> Plan:
        return make_plan(self.wanted_inputs(view, self.wanted_rows(view)), view.table(self.name))

    def shard_rows(self, view: View, execution: Execution) -> int:
        """How many finished rows are kept at a time: so many a killed run may lose."""
        return execution.shard_rows

    def build(self, view: View, execution: Execution, only_imported: bool = False) -> Outcome:
        """Plan, process what is due, commit. Idempotent. `only_imported` leaves rows that would be made for later."""
        table = view.table(self.name)
        with without_gc():
            wanted = self.wanted_rows(view)
            inputs = self.wanted_inputs(view, wanted)
            plan = make_plan(inputs, table)
        if only_imported:
            plan = plan.limited_to({row_id for row_id, row in wanted.items() if row.is_imported})
        outcome = run_plan(
            table,
            inputs,
            plan,
            lambda ids: self._rows(view, wanted, ids, execution),
            retry_failed=execution.retry_failed,
            shard_rows=self.shard_rows(view, execution),
            notes=self._notes(wanted),
            log=execution.log,
        )
        self.after_build(view)
        return outcome

    def _rows(
        self, view: View, wanted: Mapping[str, Row], ids: Sequence[str], execution: Execution
    ) -> Iterator[dict[str, Any]]:
        """The rows `ids`: imported ones as they were given, the others made."""
        given = [row_id for row_id in ids if wanted[row_id].is_imported]
        if given and view.imported is not None:
            for row in view.imported.values(self.name, self.key, given):
                known = {name: value for name, value in wanted[row[self.key]].known.items() if name in self.columns}
                yield {**known, **row}
        own = [row_id for row_id in ids if not wanted[row_id].is_imported]
        if self.is_known_before:
            yield from ({self.key: row_id, **wanted[row_id].known} for row_id in own)
        elif own:
            yield from self.process(view, own, execution)

    def _notes(self, wanted: Mapping[str, Row]) -> dict[str, dict[str, Any]]:
        if not self.notes:
            return {}
        return {
            i: {name: row.known[name] for name in self.notes} for i, row in wanted.items() if self.notes[0] in row.known
        }

    def after_build(self, view: View) -> None:  # noqa: B027  # most stages have no such files
        """Called when the table is committed, and also when nothing was due: a run may have been killed in between.
        For files made of the whole table; has to be cheap when they are there already."""
