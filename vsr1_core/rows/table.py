"""The rows of one asset for one dataset as Parquet: the committed state, the shards of a running build, the manifest.

Each table has one folder, `tables/<asset>/dataset=<name>/`, with `rows_<number>.parquet` (the newest one is the
committed state; `rows.parquet`, which earlier versions wrote, is older than any of them), `manifest.json` (a summary,
written last) and `pending/` (the shards of a run that has not finished). A file of rows never changes once it has its
name, and it is kept for a while after a newer file replaced it: DuckDB opens a file three times per query, and 15 to 19
of 1,000 queries failed when a commit replaced the file in between. `rows.increments` decides which rows to process.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from vsr1_core.rows.files import atomic_path, file_state, read_json, write_json
from vsr1_core.rows.lease import Lease
from vsr1_core.rows.places import PATH_COLUMNS, Places

BASE_COLUMNS: dict[str, Any] = {
    "row_version": pl.String,
    "row_inputs": pl.String,
    "status": pl.String,
    "error": pl.String,
}
SUPERSEDED_S = 600.0
"""For this many seconds after a commit, queries may still read the file of rows that it replaced."""
MAX_ROW_FILES = 8
"""When a table has more files of rows than this, a commit removes those that no query can still be reading."""
MAX_OLD_BYTES = 256 << 20
"""The same where those that newer ones replaced take more bytes than this."""
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

    @property
    def rows_path(self) -> Path:
        """The file of the committed rows. When there are none yet, the path that the first ones will get."""
        return self._newest() or self.folder / _rows_name(1)

    def _newest(self) -> Path | None:
        try:
            with os.scandir(self.folder) as entries:
                names = [e.name for e in entries if e.name.startswith("rows") and e.name.endswith(".parquet")]
        except FileNotFoundError:
            return None
        return self.folder / max(names) if names else None

    @property
    def manifest_path(self) -> Path:
        return self.folder / "manifest.json"

    def is_whole(self) -> bool:
        """Whether the last commit was finished: the manifest is of the newest rows, and no shard is left."""
        newest = self._newest()
        if newest is None or not self.manifest_path.exists() or (self.folder / "pending").exists():
            return False
        return self.manifest().get("rows", newest.name) == newest.name  # manifests of before do not name them

    def state(self) -> list[Any]:
        """What tells the committed rows from those of any other commit; empty where there are none."""
        newest = self._newest()
        return [] if newest is None else [newest.name, *file_state(newest)]

    def exists(self) -> bool:
        """Whether any rows have been committed."""
        return self._newest() is not None

    @functools.cached_property
    def _empty(self) -> pl.DataFrame:
        return pl.DataFrame(schema=self.schema)

    def rows(self, columns: Iterable[str] | None = None) -> pl.DataFrame:
        """The committed rows, sorted by id. The frame is empty, with the right columns, when nothing was built yet."""
        declared, path = self.schema, self._newest()
        wanted = list(columns) if columns is not None else list(declared)
        if path is None:
            return self._empty[wanted]
        kept = _schema(path)
        same = [name for name in wanted if kept.get(name) == declared.get(name, kept.get(name))]
        frame = self._placed(_read(path, same))
        if len(same) == len(wanted):
            return frame
        # A column that an older version wrote with another type, or not at all, is null here. The version of its stage
        # has changed as well, so that the rows are stale.
        new = [pl.lit(None, dtype=declared[name]).alias(name) for name in wanted if name not in same]
        return frame.with_columns(new).select(wanted)

    def known(self, columns: Iterable[str] | None = None) -> pl.DataFrame:
        """The committed rows, in part replaced by those that a killed run left pending, which count as committed."""
        rows, pending = self.rows(columns), self.pending()
        return rows if pending.is_empty() else pl.concat([rows, pending[rows.columns]]).unique(self.key, keep="last")

    def _placed(self, kept: pl.DataFrame) -> pl.DataFrame:
        return self.places.placed_rows(kept) if self._has_paths else kept

    def _stored(self, rows: pl.DataFrame) -> pl.DataFrame:
        return self.places.stored_rows(rows) if self._has_paths else rows

    @property
    def _has_paths(self) -> bool:
        return any(name in self.columns for name in PATH_COLUMNS)

    def has_old_paths(self) -> bool:
        """Whether the committed rows keep paths otherwise than a commit would now: absolute ones inside the home."""
        path = self._newest()
        if path is None or not self._has_paths:
            return False
        kept = _read(path, [name for name in (*PATH_COLUMNS, "row_inputs") if name in _schema(path)])
        return not kept.equals(self._stored(self._placed(kept)))

    def new_columns(self) -> list[str]:
        """The declared columns that the committed rows lack, or have with another type."""
        path = self._newest()
        if path is None:
            return []
        kept = _schema(path)
        return [name for name, dtype in self._empty.schema.items() if kept.get(name) != dtype]

    def has_other_columns(self) -> bool:
        """Whether the committed rows have other columns than the declared ones."""
        path = self._newest()
        return path is not None and dict(_schema(path)) != dict(self._empty.schema)

    def ok_rows(self, columns: Iterable[str] | None = None) -> pl.DataFrame:
        """The committed rows whose status is `ok`."""
        wanted = None if columns is None else list(dict.fromkeys([*columns, "status"]))
        frame = self.rows(wanted).filter(pl.col("status") == "ok")
        return frame if columns is None else frame[list(columns)]

    def frame(self, rows: list[dict[str, Any]]) -> pl.DataFrame:
        """Convert `rows` to a frame with exactly this table's columns. Missing values become null. Raises ValueError
        for an unknown column."""
        unknown = {name for row in rows for name in row} - set(self.schema)
        if unknown:
            raise ValueError(f"table {self.asset} has no column {', '.join(sorted(unknown))}")
        data = {name: [row.get(name) for row in rows] for name in self.schema}
        return pl.DataFrame(data, schema=self.schema)

    def add_pending(self, rows: list[dict[str, Any]]) -> None:
        """Write one shard of the running build. Raises LeaseLost when another run has taken the dataset over."""
        with self._fence() as fence, atomic_path(self.folder / "pending" / f"{secrets.token_hex(8)}.parquet") as path:
            self._stored(self.frame(rows)).write_parquet(path)
            fence()

    @contextlib.contextmanager
    def _fence(self) -> Iterator[Callable[[], None]]:
        """A function that checks the lease, which nobody can take over from its call to the end of the block."""
        with contextlib.ExitStack() as held:
            yield lambda: None if self.lease is None else held.enter_context(self.lease.fenced())

    def pending(self) -> pl.DataFrame:
        """The rows of runs that did not reach their commit: for each id the newest one."""
        if not (self.folder / "pending").exists():
            return self._empty
        paths = sorted((self.folder / "pending").glob("[!.]*.parquet"), key=lambda p: p.stat().st_mtime_ns)
        frames = [pl.read_parquet(p, hive_partitioning=False, glob=False) for p in paths]
        readable = [f for f in frames if dict(f.schema) == dict(self._empty.schema)]
        if not readable:
            return self._empty
        return self._placed(pl.concat(readable).unique(self.key, keep="last"))

    def commit(self, frame: pl.DataFrame, record: Mapping[str, Any]) -> dict[str, Any]:
        """Replace the table's rows by `frame`, then replace the manifest, then delete the pending shards. `record` is
        added to the manifest. Returns the manifest. Raises LeaseLost, and changes nothing, when another run has taken
        the dataset over."""
        frame = frame.select(list(self.schema)).sort(self.key)
        newest = self.rows_path
        following = self.folder / _rows_name(_rows_number(newest) + 1) if newest.exists() else newest
        manifest = {
            "asset": self.asset,
            "dataset": self.dataset,
            "num_rows": frame.height,
            "num_ok": frame.filter(pl.col("status") == "ok").height,
            "num_failed": frame.filter(pl.col("status") != "ok").height,
            "data_version": data_version(frame, self.key),
            "rows": following.name,
            **record,
        }
        with self._fence() as fence:
            with atomic_path(following) as temporary:
                self._stored(frame).write_parquet(temporary)
                fence()
            write_json(self.manifest_path, manifest)
            shutil.rmtree(self.folder / "pending", ignore_errors=True)
        self._drop_superseded()
        return manifest

    def _drop_superseded(self) -> None:
        """Remove files of rows that no query reads any more. This happens rarely, because a query that has just listed
        the folder and has not opened its files yet would fail.
        """
        files = sorted(self.folder.glob("rows*.parquet"))
        if len(files) > MAX_ROW_FILES or sum(old.stat().st_size for old in files[:-1]) > MAX_OLD_BYTES:
            for old, newer in itertools.pairwise(files):
                if time.time() - newer.stat().st_mtime > SUPERSEDED_S:
                    old.unlink()

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
        return [pl.read_parquet(path, glob=False) for path in sorted(folder.glob("*.parquet"))]

    def manifest(self) -> dict[str, Any]:
        """The summary of the last commit. Raises FileNotFoundError, which says how to build the table, when there is
        none."""
        if not self.manifest_path.exists():
            raise FileNotFoundError(
                f"{self.asset} has not been built for dataset {self.dataset!r}; run: "
                f"vsr1 build --dataset {self.dataset} --assets {self.asset}"
            )
        return dict(read_json(self.manifest_path))


SMALL_FILE = 2**16
"""Files of rows of up to this many bytes are kept in memory: planning a graph reads each table about ten times."""


def _read(path: Path, columns: list[str]) -> pl.DataFrame:
    """Read `columns` of a file of rows."""
    if (small := _small(path)) is not None:
        return small[0][columns]
    return pl.read_parquet(path, columns=columns, hive_partitioning=False, glob=False)


def _schema(path: Path) -> Mapping[str, Any]:
    if (small := _small(path)) is not None:
        return small[1]
    return pl.scan_parquet(path, hive_partitioning=False, glob=False).collect_schema()


def _small(path: Path) -> tuple[pl.DataFrame, Mapping[str, Any]] | None:
    """The whole file and its schema; None for a file that is too large to keep in memory."""
    stat = path.stat()
    return _kept(path, stat.st_ino, stat.st_mtime_ns) if stat.st_size <= SMALL_FILE else None


@functools.lru_cache(maxsize=128)
def _kept(path: Path, inode: int, written_ns: int) -> tuple[pl.DataFrame, Mapping[str, Any]]:
    """Read a small file once. A file never changes once it has its name; `inode` and `written_ns` tell it from a file
    of the same name in a home that was deleted and made again."""
    frame = pl.read_parquet(path, hive_partitioning=False, glob=False)
    return frame, dict(frame.schema)


def _rows_name(number: int) -> str:
    return f"rows_{number:010d}.parquet"


def _rows_number(path: Path) -> int:
    return int(path.stem.removeprefix("rows").removeprefix("_") or "0")


def data_version(frame: pl.DataFrame, key: str) -> str:
    """Hash of the (id, row version, status) triples, sorted by id: the same rows give the same version."""
    columns = [pl.col(name).fill_null("None") for name in (key, "row_version", "status")]
    rows = frame.sort(key).select(pl.concat_str(columns, separator="\x1f")).to_series()
    return hashlib.sha256("".join(f"{row}\x1e" for row in rows).encode()).hexdigest()[:16]
