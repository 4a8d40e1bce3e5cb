"""The rows of one asset for one dataset as Parquet: the committed state, the shards of a running build, the manifest.

Each table has one folder, `tables/<asset>/dataset=<name>/`, with the files of its rows (`rows.row_files`, which alone
knows their names), `manifest.json` (a summary, written last) and `pending/` (the shards of a run that has not
finished). `rows.increments` decides which rows to process.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import secrets
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from vsr1_core.rows.files import atomic_path, file_state, read_json, write_json
from vsr1_core.rows.lease import Lease
from vsr1_core.rows.merged import (
    PIECE,
    FileRows,
    FrameRows,
    Merged,
    Piece,
    completed,
    is_among,
    newest,
    write_blocks,
)
from vsr1_core.rows.places import PATH_COLUMNS, Places
from vsr1_core.rows.row_files import DROPPED, RowFiles, drop_superseded, first_base, row_files
from vsr1_core.rows.unreadable import HISTORY_IS_DAMAGED, PENDING, told

BASE_COLUMNS: dict[str, Any] = {
    "row_version": pl.String,
    "row_inputs": pl.String,
    "status": pl.String,
    "error": pl.String,
}
HASHED_ROWS = 65536
"""Rows of a table whose ids and versions are spelled at a time."""
READ_WHOLE_BYTES = 8 << 20
"""Files of rows to commit that take up to this many bytes together are read once, and not once for their ids and once
for their rows."""
HISTORY_COLUMNS: dict[str, Any] = {"built_at": pl.Datetime("us"), "data_version": pl.String}
"""The columns that a kept state of a table has before the table's own columns. Times are UTC."""


@dataclass(frozen=True)
class Table:
    """The rows of one asset for one dataset. `key` is the name of the id column; `columns` maps name -> polars type.
    Paths in rows are absolute, and kept as `places` says. `lease` is checked at each write; None where there can be no
    other writer."""

    folder: Path
    asset: str
    dataset: str
    key: str
    columns: Mapping[str, Any]
    places: Places
    lease: Lease | None = field(default=None, compare=False)

    @property
    def schema(self) -> dict[str, Any]:
        """Name -> polars type of every column: the key, the bookkeeping columns, and the asset's own columns."""
        return {self.key: pl.String, **BASE_COLUMNS, **self.columns}

    def files(self) -> RowFiles | None:
        """The files of the committed rows; None where there are none yet."""
        return row_files(self.folder)

    @property
    def rows_path(self) -> Path:
        """The file that the last commit wrote. When there are none yet, the path that the first one will get."""
        files = self.files()
        return first_base(self.folder) if files is None else files.newest

    @property
    def num_bytes(self) -> int:
        """What the files of the committed rows take."""
        files = self.files()
        return 0 if files is None else files.num_bytes

    @property
    def manifest_path(self) -> Path:
        return self.folder / "manifest.json"

    def is_whole(self) -> bool:
        """Whether the last commit was finished: the manifest is of the newest rows, and no shard is left."""
        files = self.files()
        if files is None or not self.manifest_path.exists() or (self.folder / PENDING).exists():
            return False
        newest = files.newest.name
        return self.manifest().get("rows", newest) == newest  # manifests of before do not name them

    def state(self) -> list[Any]:
        """What tells the committed rows from those of any other commit; empty where there are none."""
        files = self.files()
        return [] if files is None else [files.newest.name, *file_state(files.newest)]

    def exists(self) -> bool:
        """Whether any rows have been committed."""
        return self.files() is not None

    @functools.cached_property
    def _empty(self) -> pl.DataFrame:
        return pl.DataFrame(schema=self.schema)

    def rows(
        self, columns: Iterable[str] | None = None, ids: Collection[str] | None = None, where: pl.Expr | None = None
    ) -> pl.DataFrame:
        """The committed rows, sorted by id; `ids`: only those with one of these ids; `where`: only those that fit,
        which no path decides. The frame is empty, with the right columns, when nothing was built yet."""
        files, wanted = self.files(), list(self.schema if columns is None else columns)
        if files is None:
            return self._empty[wanted]
        asked = [] if where is None else where.meta.root_names()
        every = list(dict.fromkeys([*wanted, *asked]))
        same = self._same(files, every)
        if where is None or set(asked) <= set(same):
            found = files.read([name for name in wanted if name in same] or same[:1], ids, where)
            return completed(self._placed(found), wanted, self.schema)
        # A column of an earlier version is null in all rows.
        return completed(self._placed(files.read(same, ids)), every, self.schema).filter(where)[wanted]

    def batches(self, columns: Iterable[str]) -> Iterator[pl.DataFrame]:
        """`rows`, some thousands at a time: one frame or more. A commit in between changes nothing of it."""
        wanted, files = list(columns), self.files()
        yield self._empty[wanted]
        if files is not None:
            for rows in files.batches(self._same(files, wanted)):
                yield completed(self._placed(rows), wanted, self.schema)

    def _same(self, files: RowFiles, wanted: Iterable[str]) -> list[str]:
        """The wanted columns but for those that an older version wrote with another type, or not at all, which are
        null. The version of its stage has changed as well, so that the rows are stale."""
        kept, declared = files.schema, self.schema
        same = [name for name in wanted if kept.get(name) == declared.get(name, kept.get(name))]
        return same or [next(iter(kept))]  # the number of rows is read in any case

    def known(self, columns: Iterable[str] | None = None) -> pl.DataFrame:
        """The committed rows, in part replaced by those that a killed run left pending, which count as committed."""
        rows = self.rows(columns)
        pending = self.pending(rows.columns)
        return rows if pending.is_empty() else newest(pl.concat([rows, pending]), self.key)

    def _placed(self, kept: pl.DataFrame) -> pl.DataFrame:
        return self.places.placed_rows(kept) if self._has_paths else kept

    def _stored(self, rows: pl.DataFrame) -> pl.DataFrame:
        return self.places.stored_rows(rows) if self._has_paths else rows

    @property
    def _has_paths(self) -> bool:
        return any(name in self.columns for name in PATH_COLUMNS)

    def has_old_paths(self) -> bool:
        """Whether the committed rows keep paths otherwise than a commit would now: absolute ones inside the home."""
        files = self.files()
        if files is None or not self._has_paths:
            return False
        kept = files.read([name for name in (*PATH_COLUMNS, "row_inputs") if name in files.schema])
        return not kept.equals(self._stored(self._placed(kept)))

    def new_columns(self) -> list[str]:
        """The declared columns that the committed rows lack, or have with another type."""
        files = self.files()
        if files is None:
            return []
        kept = files.schema
        return [name for name, dtype in self._empty.schema.items() if kept.get(name) != dtype]

    def has_other_columns(self) -> bool:
        """Whether the committed rows have other columns than the declared ones."""
        files = self.files()
        return files is not None and dict(files.schema) != dict(self._empty.schema)

    def ok_rows(self, columns: Iterable[str] | None = None) -> pl.DataFrame:
        """The committed rows whose status is `ok`."""
        return self.rows(columns, where=pl.col("status") == "ok")

    def frame(self, rows: list[dict[str, Any]]) -> pl.DataFrame:
        """Convert `rows` to a frame with exactly this table's columns. Missing values become null. Raises ValueError
        for an unknown column."""
        unknown = {name for row in rows for name in row} - set(self.schema)
        if unknown:
            raise ValueError(f"table {self.asset} has no column {', '.join(sorted(unknown))}")
        data = {name: [row.get(name) for row in rows] for name in self.schema}
        return pl.DataFrame(data, schema=self.schema)

    def add_pending(self, rows: list[dict[str, Any]] | pl.DataFrame) -> None:
        """Write one shard of the running build. Raises LeaseLost when another run has taken the dataset over."""
        with self._fence() as fence, atomic_path(self.folder / PENDING / f"{secrets.token_hex(8)}.parquet") as path:
            self._stored(self.frame(rows) if isinstance(rows, list) else rows).write_parquet(path)
            fence()

    @contextlib.contextmanager
    def _fence(self) -> Iterator[Callable[[], None]]:
        """A function that checks the lease, which nobody can take over from its call to the end of the block."""
        with contextlib.ExitStack() as held:
            yield lambda: None if self.lease is None else held.enter_context(self.lease.fenced())

    def has_pending(self) -> bool:
        """Whether a run left rows without a commit."""
        return bool(self._shards())

    def pending(self, columns: Iterable[str] | None = None) -> pl.DataFrame:
        """The rows of runs that did not reach their commit: for each id the newest one."""
        shards, names = self._shards(), list(self.schema if columns is None else columns)
        if not shards:
            return self._empty[names]
        read = dict.fromkeys([self.key, *names])
        return self._placed(newest(pl.concat([shard.read(list(read)) for shard in shards]), self.key)[names])

    def _shards(self) -> list[FileRows]:
        """The files of pending rows, oldest first. Those with other columns were left by other code."""
        if not (self.folder / PENDING).exists():
            return []
        paths = sorted((self.folder / PENDING).glob("[!.]*.parquet"), key=lambda p: p.stat().st_mtime_ns)
        found = [FileRows(path, self._empty.schema) for path in paths]
        return [shard for shard in found if dict(shard.kept) == dict(self._empty.schema)]

    def commit(self, frame: pl.DataFrame, record: Mapping[str, Any]) -> dict[str, Any]:
        """Replace the table's rows by `frame`, then replace the manifest, then delete the pending shards. `record` is
        added to the manifest. Returns the manifest. Raises LeaseLost, and changes nothing, when another run has taken
        the dataset over."""
        rows = Merged.of([FrameRows(self._stored(frame.select(list(self.schema))))], self.key)
        return self._write(self._next_base(), rows, rows, record)

    def commit_changes(
        self,
        made: pl.DataFrame,
        dropped: Sequence[str],
        record: Mapping[str, Any],
        moved: pl.DataFrame | None = None,
    ) -> dict[str, Any]:
        """`commit` of the committed rows with the pending ones and `made` in place of those with the same ids, and
        without `dropped`; `made` are the newest. Where the table is large, only what changed is written. Few rows at a
        time are in memory.

        dropped: ids of rows that may be pending, or not there. moved: key and new values of some columns, of rows that
        stay as they are otherwise.
        """
        files, is_made = self.files(), pl.col(PIECE)
        committed = [] if files is None else [FileRows(path, self._empty.schema) for path in files.paths]
        pieces = _in_memory([*committed, *self._shards()], list(self.schema))
        found = Merged.of([*pieces, FrameRows(self._stored(made))], self.key)
        stays = pl.col("status").ne_missing(DROPPED)
        state = found.where(stays & ~is_among(self.key, dropped) if dropped else stays)
        if files is not None and not self.is_of_other_form():
            is_moved = is_among(self.key, () if moved is None else moved[self.key])
            changed = state.where(is_made.ge(len(committed)) | is_moved)
            gone = files.read([self.key], dropped) if dropped else self._empty[[self.key]]
            if files.takes_delta(changed.heads.height + gone.height):
                gone = gone.with_columns(status=pl.lit(DROPPED))
                delta = changed.added(FrameRows(completed(gone, list(self.schema), self.schema)))
                return self._write(files.next_delta(), delta, state, record, moved)
        return self._write(self._next_base(), state, state, record, moved)

    def _next_base(self) -> Path:
        files = self.files()
        return first_base(self.folder) if files is None else files.next_base()

    def is_of_other_form(self) -> bool:
        """Whether all committed rows have to be written again, because a commit would write them otherwise now."""
        return self.has_other_columns() or self.has_old_paths()

    def _write(
        self, path: Path, rows: Merged, state: Merged, record: Mapping[str, Any], moved: pl.DataFrame | None = None
    ) -> dict[str, Any]:
        """Commit `rows` as the file `path`. state: all rows that stand then."""
        num_ok, version = state.heads["status"].eq("ok").sum(), DataVersion(self.key)
        if rows is not state:
            for some in state.blocks(version.columns, HASHED_ROWS):
                version.add(some)
        with self._fence() as fence:
            with atomic_path(path) as temporary:
                blocks = rows.blocks(list(self.schema))
                noted = map(version.add, blocks) if rows is state else blocks
                write_blocks(temporary, (self._as_kept(block, moved) for block in noted), self._empty.schema)
                fence()
            manifest = {
                "asset": self.asset,
                "dataset": self.dataset,
                "num_rows": state.heads.height,
                "num_ok": num_ok,
                "num_failed": state.heads.height - num_ok,
                "data_version": version.text(),
                "rows": path.name,
                **record,
            }
            write_json(self.manifest_path, manifest)
            shutil.rmtree(self.folder / PENDING, ignore_errors=True)
        drop_superseded(self.folder)
        return manifest

    def _as_kept(self, block: pl.DataFrame, moved: pl.DataFrame | None) -> pl.DataFrame:
        """Some rows as they are written. Those of files may have been kept with the paths of another place."""
        rows = self._placed(block)
        if moved is not None:
            rows = rows.update(moved.filter(is_among(self.key, rows[self.key])), on=self.key, maintain_order="left")
        return self._stored(rows)

    def keep_state(self, folder: Path) -> None:
        """Add a state with the committed `ok` rows to `folder`, unless the last state kept there is the same."""
        version, states = self.manifest()["data_version"], sorted(folder.glob("*.parquet"))
        if states and states[-1].stem.endswith(version):
            return
        now = datetime.now(UTC).replace(tzinfo=None)
        stamps = [pl.lit(now).alias("built_at"), pl.lit(version).alias("data_version")]
        kept = self.ok_rows(self.columns).select(*stamps, *self.columns)
        with atomic_path(folder / f"{now:%Y%m%dT%H%M%S.%f}-{version}.parquet") as temporary:
            kept.write_parquet(temporary)

    def kept_states(self, folder: Path) -> list[pl.DataFrame]:
        """The states that `keep_state` wrote into `folder`, oldest first."""
        states = []
        for path in sorted(folder.glob("*.parquet")):
            with told(path, HISTORY_IS_DAMAGED):
                states.append(pl.read_parquet(path, glob=False))
        return states

    def manifest(self) -> dict[str, Any]:
        """The summary of the last commit. Raises FileNotFoundError, which says how to build the table, when there is
        none."""
        if not self.manifest_path.exists():
            raise FileNotFoundError(
                f"{self.asset} has not been built for dataset {self.dataset!r}; run: "
                f"vsr1 build --dataset {self.dataset} --assets {self.asset}"
            )
        return dict(read_json(self.manifest_path))


def _in_memory(files: Sequence[FileRows], columns: Sequence[str]) -> Sequence[Piece]:
    """The rows of the files: read already where the files are small."""
    if sum(file.path.stat().st_size for file in files) > READ_WHOLE_BYTES:
        return files
    return [FrameRows(file.read(columns)) for file in files]


class DataVersion:
    """Hash of the (id, row version, status) triples of rows, sorted by id: the same rows give the same version."""

    def __init__(self, key: str) -> None:
        self.columns = (key, "row_version", "status")
        self._digest = hashlib.sha256()

    def add(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows themselves, which come in the order of their ids."""
        columns = [pl.col(name).fill_null("None") for name in self.columns]
        spelled = rows.select(pl.concat_str(columns, separator="\x1f")).to_series()
        self._digest.update("".join(f"{row}\x1e" for row in spelled).encode())
        return rows

    def text(self) -> str:
        return self._digest.hexdigest()[:16]
