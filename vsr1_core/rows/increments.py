"""The row loop that every stage uses: plan (new, stale, orphaned, failed, unchanged) -> process -> commit.

A row's version is known before the row is computed: it is a hash of the stage's version, the recipe and the versions of
everything that the row reads. These inputs are stored beside the row, so that a plan can say why a row has to be
processed. This module does not know any stage; the stages are in `vsr1_core.stages`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import polars as pl

from vsr1_core.rows.progress import Progress
from vsr1_core.rows.table import Table
from vsr1_core.rows.texts import visible
from vsr1_core.rows.versions import Inputs, row_version, spelled


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """Switch the garbage collector off during planning. A plan makes one or two dicts per row and no reference cycles,
    so the collector would only scan all of these dicts, and all imported modules, again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


SHARD_S = 5.0
"""Seconds after which finished rows are saved, even if they fill no shard: a slow decoder finished 170 rows in the time
of a shard of 256, and a kill lost them all."""
STATES = ("new", "stale", "orphaned", "failed", "unchanged")
"""What a row may be for a plan: the names of the groups of `Plan`."""


@dataclass(frozen=True)
class CommittedIds(Sequence[str]):
    """The ids of the `number` committed rows of `table` that have a status, but for those in `without`. They are read
    when they are asked for."""

    table: Table
    status: str
    number: int
    without: Collection[str] = ()

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[str]:
        rows = self.table.rows([self.table.key, "status"])
        ids = rows.filter(pl.col("status") == self.status)[self.table.key].to_list()
        return (row_id for row_id in ids if row_id not in self.without)

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]


@dataclass(frozen=True)
class Plan:
    """Row ids, grouped by what has to be done with the rows. `causes` maps each new or stale row to the reasons why it
    has to be processed; a row may have several."""

    new: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    orphaned: tuple[str, ...] = ()
    failed: Sequence[str] = ()
    unchanged: Sequence[str] = ()
    causes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        return {name: len(getattr(self, name)) for name in STATES}

    def due(self, retry_failed: bool = False) -> list[str]:
        """Ids of the rows to process: the new and the stale rows, and with `retry_failed` the failed ones as well."""
        return [*self.new, *self.stale, *(self.failed if retry_failed else ())]

    def limited_to(self, ids: Container[str]) -> Plan:
        """A copy of this plan whose new and stale rows are limited to `ids`. All other groups stay the same."""
        new, stale = (tuple(i for i in group if i in ids) for group in (self.new, self.stale))
        return dataclasses.replace(self, new=new, stale=stale, causes={i: self.causes[i] for i in (*new, *stale)})

    def with_failed_due(self) -> Plan:
        """A copy of this plan in which the failed rows are stale, so that they are made again."""
        causes = {**self.causes, **dict.fromkeys(self.failed, ("failed before",))}
        return dataclasses.replace(self, stale=(*self.stale, *self.failed), failed=(), causes=causes)

    def why(self) -> dict[str, int]:
        """Map cause -> number of rows to process because of it. A row with two causes counts for both."""
        return dict(Counter(cause for causes in self.causes.values() for cause in causes).most_common())


def make_plan(wanted: Mapping[str, Inputs], table: Table, ids: Collection[str] | None = None) -> Plan:
    """Compare the wanted rows with the committed rows. Rows that a killed run left pending count as committed.

    ids: compare only the rows of a whole table that have one of these ids, as all that are `wanted` do; None: all.
    """
    columns = [table.key, "row_inputs", "status"]
    known = table.known(columns) if ids is None else table.rows(columns, ids)
    have = dict(zip(known[table.key].to_list(), known["row_inputs"].to_list(), strict=True))
    broken = set(known.filter(pl.col("status") != "ok")[table.key])
    new, stale, failed, unchanged = list[str](), list[str](), list[str](), list[str]()
    causes: dict[str, tuple[str, ...]] = {}
    for row_id, inputs in wanted.items():
        old_inputs = have.get(row_id)
        if old_inputs is None:
            new.append(row_id)
            causes[row_id] = ("new row",)
        elif old_inputs == spelled(inputs):  # the version is a hash of this text; comparing texts saves the hashing
            (failed if row_id in broken else unchanged).append(row_id)
        else:
            stale.append(row_id)
            causes[row_id] = tuple(f"changed: {name}" for name in changed_inputs(json.loads(old_inputs), inputs))
    orphaned = tuple(sorted(have.keys() - wanted.keys()))
    return Plan(tuple(new), tuple(stale), orphaned, tuple(failed), tuple(unchanged), causes)


def with_others(table: Table, plan: Plan) -> Plan:
    """A plan of some rows of a whole table with all others, which are as they are wanted. Their number is that of the
    manifest, and their ids are read when they are asked for."""
    left_out, manifest = frozenset((*plan.stale, *plan.orphaned)), table.manifest()
    states = table.rows([table.key, "status"], left_out)["status"].to_list() if left_out else []
    unchanged, failed = (
        CommittedIds(table, status, manifest[f"num_{status}"] - states.count(status), left_out)
        for status in ("ok", "failed")
    )
    return dataclasses.replace(plan, unchanged=unchanged, failed=failed)


@dataclass
class Future:
    """The rows of `table` as a build leaves them. Of what is there, only columns that are asked for are read, and once.

    made: the rows that it makes, with the columns that are known before. dropped: ids of the rows that it drops. moved:
    key and new values of unversioned columns, of rows that stay (`moved_columns`).
    """

    table: Table
    made: pl.DataFrame
    dropped: Sequence[str] = ()
    moved: pl.DataFrame | None = None
    _found: dict[str, pl.Series] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def changed_ids(self) -> frozenset[str]:
        """The ids of all rows that are made, dropped or updated."""
        moved = () if self.moved is None else self.moved[self.table.key]
        return frozenset((*self.made[self.table.key], *self.dropped, *moved))

    def rows(self, columns: Iterable[str] | None = None, ids: Collection[str] | None = None) -> pl.DataFrame:
        """The rows, sorted by id; `ids`: only those with one of these ids, of a whole table."""
        names, key = list(self.table.schema if columns is None else columns), self.table.key
        if ids is not None:
            return self._read([key, *names], ids).filter(pl.col(key).is_in(list(ids)))[names]
        if missing := [name for name in names if name not in self._found]:
            found = self._read([key, *missing])
            if key in self._found and not found[key].equals(self._found[key]):  # another process committed meanwhile
                found = self._read([key, *self._found, *missing])
            self._found |= found.to_dict()
        return pl.DataFrame([self._found[name] for name in names])

    def batches(self, columns: Iterable[str]) -> Iterator[pl.DataFrame]:
        """`rows`, as `Table.batches` gives them."""
        yield self.rows(columns)

    def _read(self, names: Iterable[str], ids: Collection[str] | None = None) -> pl.DataFrame:
        names, key = list(dict.fromkeys(names)), self.table.key
        # Rankings take hundreds of MB, so no copy of the table is kept.
        frame = self.table.known(names) if ids is None else self.table.rows(names, ids)
        frame = frame.filter(~pl.col(key).is_in([*self.made[key], *self.dropped]))
        if self.moved is not None:
            frame = frame.update(self.moved[[name for name in self.moved.columns if name in frame.columns]], on=key)
        return pl.concat([frame, self.made[frame.columns]]).sort(key)

    def changed(self, columns: Iterable[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The rows of a whole table that differ afterwards, as they are and as they will be, with the key and sorted by
        id. All others stay as they are, and in their order."""
        names = [self.table.key, *columns]
        return self.table.rows(dict.fromkeys(names), self.changed_ids), self._read(names, self.changed_ids)


def changed_inputs(old: Inputs, new: Inputs) -> list[str]:
    """Names of the inputs that were added, were removed, or have another version. The names are sorted."""
    return sorted(name for name in {*old, *new} if old.get(name) != new.get(name))


@dataclass(frozen=True)
class Outcome:
    """What a run did, the manifest of the committed table, and the plan that the run followed."""

    num_processed: int
    num_failed: int
    num_dropped: int
    seconds: float
    manifest: Mapping[str, Any]
    plan: Plan = field(default_factory=Plan)


def run_plan(
    table: Table,
    wanted: Mapping[str, Inputs],
    plan: Plan,
    process: Callable[[Sequence[str]], Iterable[dict[str, Any]]],
    *,
    retry_failed: bool = False,
    shard_rows: int = 256,
    unversioned: Mapping[str, Mapping[str, Any]] | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Process the rows that the plan lists and commit the table. A killed run loses at most one unfinished shard, or
    what was finished in `SHARD_S` seconds; a run that is stopped by an exception loses no finished row.

    `process` gets the ids to process and yields one dict per row, in any order; a dict with `error` set becomes a
    failed row. `unversioned` maps row id -> columns whose values rows that stay take over without a new version.
    `shard_rows` is the number of rows per pending shard. Raises RuntimeError when `process` yields an id that was not
    asked for, yields the same id twice, or leaves an id out.
    """
    started = time.monotonic()
    due = plan.due(retry_failed)
    last, num_failed = _collect(table, wanted, due, process, shard_rows, log, started) if due else ([], 0)
    seconds = time.monotonic() - started
    moved = moved_columns(table, plan, unversioned or {})
    is_whole = table.is_whole() and not table.is_of_other_form()
    if due or plan.orphaned or moved is not None or not is_whole:
        dropped = [row_id for row_id in table.rows([table.key])[table.key] if row_id not in wanted]
        record = {"num_processed": len(due), "seconds": round(seconds, 3)}
        manifest = table.commit_changes(table.frame(last), dropped, record, moved, wanted)
    else:
        manifest = table.manifest()
    return Outcome(len(due), num_failed, len(plan.orphaned), seconds, manifest, plan)


class KnownRow(Protocol):
    """What `known_values` reads of a wanted row."""

    @property
    def known(self) -> Mapping[str, Any]: ...

    @property
    def is_imported(self) -> bool: ...


def known_values(
    rows: Mapping[str, KnownRow], own: Sequence[str], of_imported: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Row id -> the known values of the columns `own`, or `of_imported` for an imported row. A row without any is left
    out."""
    found: dict[str, dict[str, Any]] = {}
    for row_id, row in rows.items() if own or of_imported else ():
        names = of_imported if row.is_imported else own
        if names and (values := {name: row.known[name] for name in names if name in row.known}):
            found[row_id] = values
    return found


def moved_columns(table: Table, plan: Plan, unversioned: Mapping[str, Mapping[str, Any]]) -> pl.DataFrame | None:
    """Key and unversioned columns of the rows that stay, failed ones too, whose committed values differ; None when no
    value differs."""
    kept: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row_id in itertools.chain(plan.unchanged, plan.failed):
        if columns := unversioned.get(row_id):
            kept.setdefault(tuple(columns), []).append({table.key: row_id, **columns})
    changed = [frame for rows in kept.values() if (frame := _changed(table, rows)).height]
    # A column that only some rows have is null in the others, and `update` does not write nulls.
    return pl.concat(changed, how="diagonal") if changed else None


def _changed(table: Table, rows: list[dict[str, Any]]) -> pl.DataFrame:
    """The rows whose committed values differ. All `rows` have the same columns."""
    schema = {name: table.schema[name] for name in rows[0]}
    committed = table.rows(schema)
    return pl.DataFrame(rows, schema=schema).join(committed, on=list(schema), how="anti", nulls_equal=True)


def _collect(
    table: Table,
    wanted: Mapping[str, Inputs],
    due: Sequence[str],
    process: Callable[[Sequence[str]], Iterable[dict[str, Any]]],
    shard_rows: int,
    log: Callable[[str], None],
    started: float,
) -> tuple[list[dict[str, Any]], int]:
    """Run `process` over `due` and write each full shard as pending. Returns the rows of the last shard, which need no
    pending file because the commit follows at once, and the number of failed rows."""
    missing, num_failed = set(due), 0
    progress = Progress(log, table.asset, len(due), started=started)
    with _saved(table, shard_rows) as shard:
        for row in process(due):
            row_id = row[table.key]
            if row_id not in missing:
                raise RuntimeError(f"{table.asset}: row {row_id!r} was produced twice or was not asked for")
            missing.discard(row_id)
            shard.add(_stamped(row, wanted[row_id]), is_last=not missing)
            num_failed += row.get("error") is not None
            progress.note(len(due) - len(missing))
        if missing:
            raise RuntimeError(f"{table.asset}: no row was produced for {len(missing)} ids, e.g. {sorted(missing)[:3]}")
    return _storable(table, shard.rows), num_failed


class _Shard:
    """Finished rows that are not saved yet."""

    def __init__(self, table: Table, max_rows: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self._table, self._max_rows, self._saved_at = table, max_rows, time.monotonic()

    def add(self, row: dict[str, Any], is_last: bool) -> None:
        self.rows.append(row)
        if is_last:  # the commit follows, and would write these rows a second time
            return
        if len(self.rows) >= self._max_rows or time.monotonic() - self._saved_at >= SHARD_S:
            self.save()

    def save(self) -> None:
        if self.rows:
            self._table.add_pending(_storable(self._table, self.rows))
        self.rows, self._saved_at = [], time.monotonic()


@contextlib.contextmanager
def _saved(table: Table, max_rows: int) -> Iterator[_Shard]:
    """A shard whose rows are saved when an exception, such as Ctrl-C, ends the block."""
    shard = _Shard(table, max_rows)
    try:
        yield shard
    except BaseException:
        with contextlib.suppress(OSError, ValueError):  # such as a full disk or a lost lease, why the block ends
            shard.save()
        raise


def _storable(table: Table, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with a failed row in place of each one that the table cannot hold, such as a text with half a
    character."""
    if _fits(table, rows) is None:
        return rows
    kept = ("row_version", "row_inputs", table.key)
    found = []
    for row in rows:
        problem = _fits(table, [row])
        failed = {**{name: row[name] for name in kept}, "status": "failed", "error": problem}
        found.append(row if problem is None else failed)
    return found


def _fits(table: Table, rows: list[dict[str, Any]]) -> str | None:
    """Why the table cannot hold these rows; None if it can."""
    try:
        table.frame(rows)
    except (ValueError, TypeError, OverflowError, pl.exceptions.PolarsError) as error:
        if any(name not in table.schema for row in rows for name in row):
            raise  # a mistake of the stage, in every row
        return f"the row cannot be stored: {visible(str(error))}"
    return None


def _stamped(row: dict[str, Any], inputs: Inputs) -> dict[str, Any]:
    error = row.get("error")
    stamp = {
        "row_version": row_version(inputs),
        "row_inputs": spelled(inputs),
        "status": "ok" if error is None else "failed",
        "error": error,
    }
    return {**row, **stamp}
