"""A cache of file digests, keyed by path, size and modification time, so that unchanged files are not read again.

The cache is safe to delete, and to lose: the files are then read once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from vsr1_core.rows.files import FileStamp, atomic_path, check_name, digest_stable_file, read_stamp
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.places import Places
from vsr1_core.rows.unreadable import UnreadableRows, read_rows

SCHEMA = {"path": pl.String, "bytes": pl.Int64, "mtime_ns": pl.Int64, "digest": pl.String}


@dataclass(frozen=True)
class KnownDigests:
    """The digests of one dataset's files. They are stored in a Parquet file in the lake's cache, with paths as `places`
    keeps them."""

    path: Path
    places: Places

    @classmethod
    def of(cls, lake: Lake, dataset: str, what: str = "") -> KnownDigests:
        """The stored digests of one dataset in `lake`: of its videos, or of `what` else."""
        return cls(lake.cache("digests") / f"{check_name(dataset)}{what}.parquet", lake.places)

    def read(self) -> dict[FileStamp, str]:
        """Map file stamp -> digest. The result is empty when nothing is stored yet, and where it is damaged."""
        if not self.path.exists():
            return {}
        try:
            rows = read_rows(self.path).select(*SCHEMA).iter_rows()
        except (UnreadableRows, pl.exceptions.ColumnNotFoundError):
            return {}
        return {FileStamp(self.places.placed(path), size, mtime_ns): digest for path, size, mtime_ns, digest in rows}

    def write(self, digests: Mapping[FileStamp, str]) -> None:
        """Store exactly these digests and drop all others. Nothing is written when they are stored already."""
        if self.read() == digests:
            return
        rows = [
            (self.places.stored(stamp.path), stamp.bytes, stamp.mtime_ns, digest) for stamp, digest in digests.items()
        ]
        with atomic_path(self.path) as temporary:
            pl.DataFrame(rows, schema=SCHEMA, orient="row").write_parquet(temporary)


def digests_of(paths: Iterable[Path], known: Mapping[FileStamp, str]) -> list[tuple[FileStamp, str]]:
    """The stamp and the digest of each file, in order.

    Only files that are not `known` by path, size and modification time are read, four at a time. A file that keeps
    changing meanwhile is read again by the next plan.
    """

    listed = list(paths)
    found = [(stamp, known.get(stamp)) for stamp in map(read_stamp, listed)]
    unknown = [path for path, (_, digest) in zip(listed, found, strict=True) if digest is None]
    with ThreadPoolExecutor(4) as threads:  # hashing releases the interpreter's lock
        read = threads.map(digest_stable_file, unknown)
        return [next(read) if digest is None else (stamp, digest) for stamp, digest in found]
