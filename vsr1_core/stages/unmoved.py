"""The short cut past a plan: a stage of which nothing moved that its plan depends on has the same plan as before.

After each build that leaves a table as its stage wants it, this is kept beside it: from what it was planned. As long as
all of it stands, another plan would find every row unchanged (or failed, as it was), so it is not made. What a plan
depends on:

- The tables that it reads: noted while it is made (`View.noting_reads`), and told apart by their files of rows, which
  never change once they have their name. A table that the plan at hand changes has moved.
- Its own table, which has to be whole: a killed build leaves shards, or rows that the manifest does not name.
- The code of this library, with the versions of Python and polars; the stages; the dataset's entry and configuration;
  where the home is; files that stages read (`Stage.records`), which are corrections and adopted checkpoints; of a
  dataset that borrows models, the entry, configuration and tables of their owner.
- What the stage itself names (`Stage.beside_tables`), such as the annotations. One that does not say is planned from
  its rows each time, and so is a dataset with an import.

What is kept is a cache: without it, or after the home was copied, the next build keeps it again.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from vsr1_core.datasets import sources
from vsr1_core.rows.files import check_name, file_state, read_json, write_json
from vsr1_core.rows.increments import CommittedIds, Outcome, Plan
from vsr1_core.rows.versions import code_digest, fingerprint
from vsr1_core.stages.base import Stage, View
from vsr1_core.stages.execution import Execution


@dataclass(frozen=True)
class PlannedFrom:
    """What the plan of a table that is as wanted was made from. tables: asset -> the state of its table."""

    basis: str
    beside: str
    tables: Mapping[str, list[Any]]


class Standing:
    """What plans of a dataset depend on, each thing as it stands when it is first asked for."""

    def __init__(self, view: View) -> None:
        self.view = view

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
        code = [code_digest(), sys.version, pl.__version__]
        return fingerprint([code, named, place, view.entry, view.config, lent, records])

    @cached_property
    def files(self) -> str:
        """A version of the annotations by their content, and of all files of the dataset by name, size and time."""
        entry, config = self.view.entry, self.view.config
        contents = [[file_id, file.content] for file_id, file in sources.annotation_files(entry, config).items()]
        return fingerprint([contents, sources.file_facts(entry)])

    def beside(self, stage: Stage) -> str:
        """A version of what the stage's plan reads besides tables; empty where it cannot be said."""
        with contextlib.suppress(OSError, ValueError, LookupError):
            found = stage.beside_tables(self.view, lambda: self.files)
            return "" if found is None else fingerprint(found)
        return ""

    def seen(self, stage: Stage) -> PlannedFrom:
        """All that a plan of `stage` may be made from, with every table that there is."""
        return PlannedFrom(self.basis, self.beside(stage), {i: self.view.table(i).state() for i in self.view.stages})

    def plan(self, stage: Stage) -> Plan | None:
        """The stage's plan, where nothing moved that it depends on; None where its rows have to be looked at.

        Its counts are those of the manifest, and ids are read when they are asked for.
        """
        kept, table = self._kept(stage), self.view.table(stage.name)
        if kept is None or not self.basis or kept.basis != self.basis or not table.is_whole():
            return None
        moved = self.view.planned.keys() | self.view.unsettled
        if any(asset in moved or self.view.table(asset).state() != state for asset, state in kept.tables.items()):
            return None
        if kept.beside != self.beside(stage):
            return None
        manifest = table.manifest()
        ok, failed = (CommittedIds(table, status, manifest[f"num_{status}"]) for status in ("ok", "failed"))
        return None if stage.retries_failed and failed else Plan(unchanged=ok, failed=failed)

    def keep(self, stage: Stage, before: PlannedFrom) -> None:
        """Keep what the table of `stage` was planned from, if that can be said and stood still while it was planned.

        self: as it stands after the build. before: what stood before it.
        """
        own, after = stage.name, self.seen(stage)
        is_said = bool(before.basis and before.beside) and not self.view.planned and not self.view.unsettled
        if not is_said or (after.basis, after.beside) != (before.basis, before.beside):
            return
        table, read = self.view.table(own), self.view.read_by.get(own)
        if (
            read is None or not table.is_whole() or "rows" not in table.manifest()
        ):  # manifests of before do not name them
            return
        if own in read and after.tables[own] != before.tables[own]:
            return
        tables = {asset: before.tables[asset] for asset in read} | {own: after.tables[own]}
        kept = PlannedFrom(before.basis, before.beside, tables)
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
        outcome = Outcome(0, 0, 0, time.monotonic() - started, view.table(stage.name).manifest(), plan)
        stage.end_build(view, outcome, run.run_id)
        return outcome
    before = standing.seen(stage)
    outcome = stage.build(view, run)
    Standing(view).keep(stage, before)
    return outcome
