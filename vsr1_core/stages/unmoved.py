"""The short cut past a plan: a stage of which nothing moved that its plan depends on has the same plan as before.

After each build that leaves a table as its stage wants it, this is kept beside it: from what it was planned. As long as
all of it stands, another plan would find every row unchanged (or failed, as it was), so it is not made. What a plan
depends on:

- What it reads of tables: noted while it is made (`View.noting_reads`). It stands where the table's files of rows do,
  which never change once they have their name. Where there are others, or the plan at hand changes the table, the
  columns and splits that were read decide, by their content: the text of a test query moves nothing that trains.
- Its own table, which has to be whole: a killed build leaves shards, or rows that the manifest does not name.
- The code of this library, with the versions of Python and polars; the stages; the dataset's entry and configuration;
  where the home is; files that stages read (`Stage.records`), which are corrections and adopted checkpoints; of a
  dataset that borrows models, the entry, configuration and tables of their owner.
- What the stage itself names (`Stage.beside_tables`), such as the annotations. One that does not say is planned from
  its rows each time, and so is a dataset with an import.

Where only tables moved that the plan at hand changes, and of which the stage reads row by row
(`Stage.planned_by_row`), the rows with the ids of the changed rows are planned, and all others stay.

What is kept is a cache: without it, or after the home was copied, the next build keeps it again.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from vsr1_core.datasets import sources
from vsr1_core.rows.files import check_name, file_state, read_json, write_json
from vsr1_core.rows.increments import Future, Outcome, Plan, with_others
from vsr1_core.rows.versions import code_digest, fingerprint
from vsr1_core.stages.base import Stage, View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.readings import NotYetKnown, Reading, content_digest
from vsr1_core.stages.removals import FromDisk

CODE = code_digest()
"""The code as it was loaded. Taken at the first plan, it could be that of an update which came in between, under which
plans of the old code would be kept."""


@dataclass(frozen=True)
class PlannedFrom:
    """What the plan of a table that is as wanted was made from.

    tables: asset -> the state of its table. contents: asset -> (kind, columns, splits, digest) of each `Reading` of it;
    without an entry for the table itself, where all of it counts.
    """

    basis: str
    beside: str
    tables: Mapping[str, list[Any]]
    contents: Mapping[str, list[list[Any]]] = field(default_factory=dict)


class Standing:
    """What plans of a dataset depend on, each thing as it stands when it is first asked for."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._states: dict[str, list[Any]] = {}
        self._contents: dict[tuple[Reading, bool], str] = {}
        self._spared: dict[Reading, bool] = {}

    def state(self, asset: str) -> list[Any]:
        """The state of a committed table. It is noted before any content of the table is read: where another commit
        comes in between, what is kept names the state before it, and the next plan compares the contents again."""
        if asset not in self._states:
            self._states[asset] = self.view.table(asset).state()
        return self._states[asset]

    @cached_property
    def basis(self) -> str:
        """A version of everything that all stages share; empty where it cannot be said, or an import is in force."""
        with contextlib.suppress(OSError, ValueError, LookupError):  # the plan itself says what is wrong
            return self._basis() if self.view.imported is None else ""
        return ""

    def _basis(self) -> str:
        view, models, stages = self.view, self.view.models_view(), self.view.stages.values()
        lent = [models.entry, models.config, [models.table(s.name).state() for s in stages]] if models else []
        named = [[s.name, s.version, type(s).__qualname__] for s in stages]
        records = [file_state(path) for s in stages for path in s.records(view)]
        place = [str(view.lake.root.absolute()), str(view.home)]
        code = [CODE, sys.version, pl.__version__]
        return fingerprint([code, named, place, view.entry, view.config, lent, records])

    @cached_property
    def files(self) -> sources.FileVersions:
        return sources.FileVersions(self.view.entry, self.view.config)

    def beside(self, stage: Stage) -> str:
        """A version of what the stage's plan reads besides tables; empty where it cannot be said."""
        with contextlib.suppress(OSError, ValueError, LookupError):
            found = stage.beside_tables(self.view, self.files)
            return "" if found is None else fingerprint(found)
        return ""

    def seen(self, stage: Stage) -> PlannedFrom:
        """All that a plan of `stage` may be made from, with every table that there is."""
        return PlannedFrom(self.basis, self.beside(stage), {i: self.state(i) for i in self.view.stages})

    def plan(self, stage: Stage) -> Plan | None:
        """The stage's plan, where nothing moved that it depends on; None where its rows have to be looked at."""
        ids = self.moved_ids(stage)
        return None if ids is None or ids else with_others(self.view.table(stage.name), Plan())

    def moved_ids(self, stage: Stage) -> frozenset[str] | None:
        """The ids of all rows of which something moved that their plan depends on, which may be unknown by now; None
        where that may be any row."""
        kept, table = self._kept(stage), self.view.table(stage.name)
        if kept is None or not self.basis or kept.basis != self.basis or not table.is_whole():
            return None
        if stage.retries_failed and table.manifest()["num_failed"]:
            return None
        found = frozenset[str]()
        for asset in kept.tables:
            if not self._stands(kept, asset):
                moved = self._changed_ids(kept, asset) if asset in stage.planned_by_row else None
                if moved is None:
                    return None
                found |= moved
        if kept.beside == (beside := self.beside(stage)):
            return found
        moved_beside = stage.moved_beside(self.view) if beside and isinstance(stage, FromDisk) else None
        return None if moved_beside is None else found.union(moved_beside)

    def _changed_ids(self, kept: PlannedFrom, asset: str) -> frozenset[str] | None:
        """The ids of the rows in which a table as it will be differs from that of which the kept plan read rows; None
        where that is not known."""
        future = self.view.planned.get(asset)
        if not isinstance(future, Future) or not future.table.is_whole() or not kept.contents.get(asset):
            return None
        return future.changed_ids if self.state(asset) == kept.tables[asset] else None

    def _stands(self, kept: PlannedFrom, asset: str) -> bool:
        """Whether a plan would read the same of a table as the kept one."""
        is_same, future = self.state(asset) == kept.tables[asset], self.view.planned.get(asset)
        if is_same and asset not in self._moved:
            return True
        readings = [(Reading.of(asset, *read), found) for *read, found in kept.contents.get(asset, [])]
        if is_same and isinstance(future, Future) and future.table.is_whole():
            return bool(readings) and all(self._is_spared(reading, future) for reading, _ in readings)
        with contextlib.suppress(NotYetKnown):  # what a plan would read is still to be made
            return bool(readings) and all(found == self._content(reading) for reading, found in readings)
        return False

    def _is_spared(self, reading: Reading, future: Future) -> bool:
        """Whether a reading says the same of a table as it will be as of the table as it is: few rows are compared."""
        if reading not in self._spared:
            self._spared[reading] = reading.spares(future)
        return self._spared[reading]

    @property
    def _moved(self) -> set[str]:
        """The assets whose tables a build changes."""
        return self.view.planned.keys() | self.view.unsettled

    def _content(self, reading: Reading) -> str:
        """A version of what is read now. Raises NotYetKnown while that is still to be made."""
        key = (reading, reading.asset in self._moved)
        if key not in self._contents:
            self._contents[key] = content_digest(self.view.read_batches(reading))
        return self._contents[key]

    def renew(self, stage: Stage) -> None:
        """Keep the states of the tables, and of what is read besides, of which a plan reads the same as the kept one,
        now that `plan` has found so. Otherwise every later plan would compare their contents. What is read besides has
        to be the same afterwards: another content may have been compared than the one that is kept."""
        kept, beside = self._kept(stage), self.beside(stage)
        if kept is None or self._moved or not beside:
            return
        if beside == kept.beside or beside == Standing(self.view).beside(stage):
            tables = {asset: self.state(asset) for asset in kept.tables}
            self._write(stage, replace(kept, beside=beside, tables=tables))

    def keep(self, stage: Stage, before: PlannedFrom) -> None:
        """Keep what the table of `stage` was planned from, if that can be said and stood still while it was planned.

        self: as it stands after the build. before: what stood before it.
        """
        own, after = stage.name, self.seen(stage)
        is_said = bool(before.basis and before.beside) and not self._moved
        if not is_said or (after.basis, after.beside) != (before.basis, before.beside):
            return
        table, read = self.view.table(own), self.view.read_by.get(own)
        if read is None or not table.is_whole() or "rows" not in table.manifest():  # those of before do not name them
            return
        assets = {reading.asset for reading in read}
        whole = {own} | {reading.asset for reading in read if reading.kind == "table"}
        contents = self._contents_of(reading for reading in read if reading.asset not in whole)
        now = {asset: self.view.table(asset).state() for asset in assets}  # as it is after the contents were read
        if any(not before.tables[asset] == after.tables[asset] == now[asset] for asset in assets):
            return
        tables = {asset: after.tables[asset] for asset in assets | {own}}
        self._write(stage, PlannedFrom(before.basis, before.beside, tables, contents))

    def _contents_of(self, read: Iterable[Reading]) -> dict[str, list[list[Any]]]:
        """`PlannedFrom.contents` of these readings, of tables as they are now."""
        found: dict[str, list[list[Any]]] = {}
        for one in sorted(read, key=repr):
            names = [None if some is None else list(some) for some in (one.columns, one.splits)]
            found.setdefault(one.asset, []).append([one.kind, *names, self._content(one)])
        return found

    def _write(self, stage: Stage, kept: PlannedFrom) -> None:
        if kept != self._kept(stage):
            write_json(self._path(stage), asdict(kept), lasting=False)

    def _kept(self, stage: Stage) -> PlannedFrom | None:
        try:
            return PlannedFrom(**read_json(self._path(stage)))
        except (OSError, ValueError, TypeError):
            return None

    def _path(self, stage: Stage) -> Path:
        return self.view.lake.cache("plans") / check_name(self.view.entry.name) / f"{stage.name}.json"


def build_stage(view: View, stage: Stage, run: Execution) -> Outcome:
    """`Stage.build`, without a look at the rows where nothing moved that their plan depends on."""
    started, standing = time.monotonic(), Standing(view)
    plan = standing.plan(stage)
    if plan is not None and not (run.retry_failed and plan.failed):
        standing.renew(stage)
        outcome = Outcome(0, 0, 0, time.monotonic() - started, view.table(stage.name).manifest(), plan)
        stage.end_build(view, outcome, run.run_id)
        return outcome
    before = standing.seen(stage)
    outcome = stage.build(view, run)
    Standing(view).keep(stage, before)
    return outcome
