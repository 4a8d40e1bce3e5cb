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
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import polars as pl

from vsr1_core.rows.blocks import IDS_AT_A_TIME, SHARD_ROWS, blocks
from vsr1_core.rows.columnar import Computed, Grouped, Ids, Remaining, ids_of, reader, texts
from vsr1_core.rows.frames import in_id_order
from vsr1_core.rows.merged import is_among
from vsr1_core.rows.progress import Progress
from vsr1_core.rows.shards import saved, storable
from vsr1_core.rows.table import Table
from vsr1_core.rows.versions import Inputs, row_version, spelled


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """Switch the garbage collector off during planning. A plan makes dicts of a row, and then of the next one, and no
    reference cycles, so the collector would only scan them, and all imported modules, again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


IS_NEW = ("new row",)
"""The causes of a row that is not there yet."""
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
        ids = texts(rows.filter(pl.col("status") == self.status)[self.table.key])
        return (row_id for row_id in ids if row_id not in self.without)

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]


@dataclass(frozen=True)
class Plan:
    """Row ids, grouped by what has to be done with the rows. `causes` maps each new or stale row to the reasons why it
    has to be processed; a row may have several."""

    new: Sequence[str] = ()
    stale: Sequence[str] = ()
    orphaned: Sequence[str] = ()
    failed: Sequence[str] = ()
    unchanged: Sequence[str] = ()
    causes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        return {name: len(getattr(self, name)) for name in STATES}

    def due(self, retry_failed: bool = False) -> Sequence[str]:
        """Ids of the rows to process: the new and the stale rows, and with `retry_failed` the failed ones as well."""
        return _joined(self.new, self.stale, self.failed if retry_failed else ())

    def limited_to(self, ids: Container[str]) -> Plan:
        """A copy of this plan whose new and stale rows are limited to `ids`. All other groups stay the same."""
        new, stale = (Ids(i for i in group if i in ids) for group in (self.new, self.stale))
        groups = sorted(_grouped(self.causes).groups(), key=lambda group: group[0] != IS_NEW)
        causes = Grouped((causes, (i for i in group if i in ids)) for causes, group in groups)
        return dataclasses.replace(self, new=new, stale=stale, causes=causes)

    def with_failed_due(self) -> Plan:
        """A copy of this plan in which the failed rows are stale, so that they are made again."""
        causes = Grouped([*_grouped(self.causes).groups(), (("failed before",), self.failed)])
        return dataclasses.replace(self, stale=_joined(self.stale, self.failed), failed=(), causes=causes)

    def why(self) -> dict[str, int]:
        """Map cause -> number of rows to process because of it. A row with two causes counts for both."""
        counts = Counter[str]()
        for causes, ids in _grouped(self.causes).groups():
            counts.update(dict.fromkeys(causes, len(ids)))
        return dict(counts.most_common())


def _joined(*groups: Sequence[str]) -> Sequence[str]:
    """The ids of all groups; one group as it is where the others are empty."""
    found = [group for group in groups if group]
    return found[0] if len(found) == 1 else Ids(itertools.chain.from_iterable(found))


def _grouped(causes: Mapping[str, tuple[str, ...]]) -> Grouped[tuple[str, ...]]:
    if isinstance(causes, Grouped):
        return causes
    found = Grouped[tuple[str, ...]]()
    for row_id, of_row in causes.items():
        found.add(row_id, of_row)
    return found


def make_plan(wanted: Mapping[str, Inputs], table: Table, ids: Collection[str] | None = None) -> Plan:
    """Compare the wanted rows with the committed rows. Rows that a killed run left pending count as committed.

    ids: compare only the rows of a whole table that have one of these ids, as all that are `wanted` do; None: all.
    """
    columns = [table.key, "row_inputs", "status"]
    known = table.known(columns) if ids is None else table.rows(columns, ids)
    if known.is_empty():  # no row of a first build is looked at
        new = Ids(ids_of(wanted))
        return Plan(new, causes=Grouped([(IS_NEW, new)] if new else []))
    new, stale, failed, unchanged, causes = Ids(), Ids(), Ids(), Ids(), Grouped[tuple[str, ...]]()
    wanted_ids = ids_of(wanted)
    for (row_id, inputs), (old_inputs, status) in zip(wanted.items(), _committed(known, wanted_ids), strict=True):
        if old_inputs is None:
            new.append(row_id)
            causes.add(row_id, IS_NEW)
        elif old_inputs == spelled(inputs):  # the version is a hash of this text; comparing texts saves the hashing
            (unchanged if status in ("ok", None) else failed).append(row_id)
        else:
            stale.append(row_id)
            moved = changed_inputs(json.loads(old_inputs), inputs)
            causes.add(row_id, tuple(f"changed: {name}" for name in moved))
    orphaned = Ids()
    if len(wanted_ids) - len(new) < known.height:
        orphaned = Ids(known[table.key].filter(~known[table.key].is_in(wanted_ids.implode())).sort())
    return Plan(new, stale, orphaned, failed, unchanged, causes)


def _committed(known: pl.DataFrame, ids: pl.Series) -> Iterator[tuple[str | None, str | None]]:
    """The inputs and the status of each of the known rows with these ids; None for an id that is not among them."""
    key, *names = known.columns
    places = (
        ids.alias(key)
        .to_frame()
        .join(known.select(key).with_row_index("_place"), on=key, how="left", maintain_order="left")["_place"]
    )
    for begin in range(0, len(places), IDS_AT_A_TIME):
        yield from known.select(pl.col(names).gather(places.slice(begin, IDS_AT_A_TIME))).iter_rows()


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
    """The rows of `table` as a build leaves them. What is there is read each time that it is asked for, and nothing of
    it is kept: the texts of 100,000 queries would take more memory than the plan of a change of one of them.

    made: the rows that it makes, with the columns that are known before. dropped: ids of the rows that it drops. moved:
    key and new values of unversioned columns, of rows that stay (`moved_columns`).
    """

    table: Table
    made: pl.DataFrame
    dropped: Sequence[str] = ()
    moved: pl.DataFrame | None = None

    @cached_property
    def changed_ids(self) -> frozenset[str]:
        """The ids of all rows that are made, dropped or updated."""
        moved = () if self.moved is None else self.moved[self.table.key]
        return frozenset((*self.made[self.table.key], *self.dropped, *moved))

    def rows(
        self, columns: Iterable[str] | None = None, ids: Collection[str] | None = None, where: pl.Expr | None = None
    ) -> pl.DataFrame:
        """The rows, sorted by id; `ids`: only those with one of these ids, of a whole table; `where`: only those that
        fit."""
        names, key = list(self.table.schema if columns is None else columns), self.table.key
        if where is None:
            found = self._left(self._read([key, *names], ids), self.made)
        else:
            asked = where.meta.root_names()
            is_moved = self.moved is not None and not set(asked).isdisjoint(self.moved.columns)
            there = self._read([key, *names, *asked], ids, None if is_moved else where)
            found = self._left(there, self.made).filter(where)
        return (found if ids is None else found.filter(is_among(key, ids)))[names]

    def batches(self, columns: Iterable[str]) -> Iterator[pl.DataFrame]:
        """`rows`, as `Table.batches` gives them."""
        names, key = list(columns), self.table.key
        read = list(dict.fromkeys([key, *names]))
        made = in_id_order(self.made[read], key)
        for rows in self._blocks(read):
            if rows.height:
                number = int(made[key].search_sorted(rows[key][-1], "right"))
                yield self._left(rows, made[:number])[names]
                made = made[number:]
        yield made[names][:0]
        yield from made[names].iter_slices(IDS_AT_A_TIME)

    def _blocks(self, names: list[str]) -> Iterator[pl.DataFrame]:
        """What is there, sorted by id; some thousands at a time, unless a killed run left a part of it."""
        if self.table.has_pending():
            return iter([self.table.known(names).sort(self.table.key)])
        return self.table.batches(names)

    def _read(
        self, names: Iterable[str], ids: Collection[str] | None = None, where: pl.Expr | None = None
    ) -> pl.DataFrame:
        """What is there. Pending rows are those of no whole table, so that none are looked for by their ids."""
        names = list(dict.fromkeys(names))
        if ids is not None or not self.table.has_pending():
            return self.table.rows(names, ids, where)
        return self.table.known(names)

    def _left(self, there: pl.DataFrame, made: pl.DataFrame) -> pl.DataFrame:
        """These rows as they will be, with those that are made, sorted by id."""
        key = self.table.key
        is_left = ~is_among(key, self.made[key]) & ~is_among(key, self.dropped)
        frame = there.filter(is_left) if there.height else there
        if self.moved is not None:
            moved = self.moved[[name for name in self.moved.columns if name in frame.columns]]
            frame = frame.update(moved.filter(is_among(key, frame[key])), on=key, maintain_order="left")
        return in_id_order(pl.concat([frame, made[frame.columns]]) if made.height else frame, key)

    def changed(self, columns: Iterable[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The rows of a whole table that differ afterwards, as they are and as they will be, with the key and sorted by
        id. All others stay as they are, and in their order."""
        names = list(dict.fromkeys([self.table.key, *columns]))
        there = self.table.rows(names, self.changed_ids)
        return there, self._left(there, self.made)


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
    shard_rows: int = SHARD_ROWS,
    unversioned: Mapping[str, Mapping[str, Any]] | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Process the rows that the plan lists and commit the table. A killed run loses at most one unfinished shard, or
    what was finished in `shards.SHARD_S` seconds; a run that is stopped by an exception loses no finished row.

    `process` gets the ids to process and yields one dict per row, in any order; a dict with `error` set becomes a
    failed row. `unversioned` maps row id -> columns whose values rows that stay take over without a new version.
    `shard_rows` is the number of rows per pending shard. Raises RuntimeError when `process` yields an id that was not
    asked for, yields the same id twice, or leaves an id out.
    """
    started = time.monotonic()
    due = plan.due(retry_failed)
    last, num_failed = _collect(table, wanted, due, process, shard_rows, log, started) if due else (table.frame([]), 0)
    seconds = time.monotonic() - started
    moved = moved_columns(table, plan, unversioned or {})
    is_whole = table.is_whole() and not table.is_of_other_form()
    if due or plan.orphaned or moved is not None or not is_whole:
        record = {"num_processed": len(due), "seconds": round(seconds, 3)}
        manifest = table.commit_changes(last, plan.orphaned, record, moved)
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
) -> Mapping[str, Mapping[str, Any]]:
    """Row id -> the known values of the columns `own`, or `of_imported` for an imported row; without columns no row."""

    def values(row: KnownRow) -> dict[str, Any]:
        return {name: row.known[name] for name in (of_imported if row.is_imported else own) if name in row.known}

    return Computed(reader(rows), values) if own or of_imported else {}


def moved_columns(table: Table, plan: Plan, unversioned: Mapping[str, Mapping[str, Any]]) -> pl.DataFrame | None:
    """Key and unversioned columns of the rows that stay, failed ones too, whose committed values differ; None when no
    value differs."""
    if not unversioned:
        return None
    kept, staying = defaultdict[tuple[str, ...], list[pl.DataFrame]](list), (plan.unchanged, plan.failed)
    pairs: Iterable[tuple[str, Mapping[str, Any] | None]] = unversioned.items()
    if plan.due() or sum(map(len, staying)) != len(unversioned):  # not all rows stay
        pairs = ((row_id, unversioned.get(row_id)) for row_id in itertools.chain(*staying))
    for some in blocks(pairs):
        rows = defaultdict[tuple[str, ...], list[dict[str, Any]]](list)
        for row_id, columns in some:
            if columns:
                rows[tuple(columns)].append({table.key: row_id, **columns})
        for names, found in rows.items():
            kept[names].append(pl.DataFrame(found, schema={name: table.schema[name] for name in (table.key, *names)}))
    changed = [frame for frames in kept.values() if (frame := _changed(table, pl.concat(frames))).height]
    # A column that only some rows have is null in the others, and `update` does not write nulls.
    return pl.concat(changed, how="diagonal") if changed else None


def _changed(table: Table, rows: pl.DataFrame) -> pl.DataFrame:
    """The rows whose committed values differ."""
    return rows.join(table.rows(rows.columns), on=rows.columns, how="anti", nulls_equal=True)


def _collect(
    table: Table,
    wanted: Mapping[str, Inputs],
    due: Sequence[str],
    process: Callable[[Sequence[str]], Iterable[dict[str, Any]]],
    shard_rows: int,
    log: Callable[[str], None],
    started: float,
) -> tuple[pl.DataFrame, int]:
    """Run `process` over `due` and write each full shard as pending. Returns the rows of the last shard, which need no
    pending file because the commit follows at once, and the number of failed rows."""
    missing, num_failed = Remaining(due), 0
    progress = Progress(log, table.asset, len(due), started=started)
    with saved(table, shard_rows) as shard:
        for row in process(due):
            row_id = row[table.key]
            if not missing.take(row_id):
                raise RuntimeError(f"{table.asset}: row {row_id!r} was produced twice or was not asked for")
            shard.add(_stamped(row, wanted[row_id]), is_last=not missing)
            num_failed += row.get("error") is not None
            progress.note(len(due) - len(missing))
        if missing:
            raise RuntimeError(
                f"{table.asset}: no row was produced for {len(missing)} ids, e.g. {sorted(missing.ids())[:3]}"
            )
    return storable(table, shard.rows), num_failed


def _stamped(row: dict[str, Any], inputs: Inputs) -> dict[str, Any]:
    error = row.get("error")
    stamp = {
        "row_version": row_version(inputs),
        "row_inputs": spelled(inputs),
        "status": "ok" if error is None else "failed",
        "error": error,
    }
    return {**row, **stamp}
