"""Digests of files that were read already, kept between two looks at them: by path, size and modification time.

Safe to delete; then the files are read once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from vsr1_core.rows.files import FileStamp, atomic_path, check_name
from vsr1_core.rows.lake import Lake


@dataclass(frozen=True)
class KnownDigests:
    """The digests of one dataset's files, in a Parquet file of the lake's cache."""

    path: Path

    @classmethod
    def of(cls, lake: Lake, dataset: str) -> KnownDigests:
        return cls(lake.cache("digests") / f"{check_name(dataset)}.parquet")

    def read(self) -> dict[FileStamp, str]:
        """Empty where nothing was kept."""
        if not self.path.exists():
            return {}
        rows = pl.read_parquet(self.path, glob=False).iter_rows()
        return {FileStamp(path, size, mtime_ns): digest for path, size, mtime_ns, digest in rows}

    def write(self, digests: Mapping[FileStamp, str]) -> None:
        """Keep these and no others; where they are kept already, nothing is written."""
        if self.read() == digests:
            return
        rows = [(stamp.path, stamp.bytes, stamp.mtime_ns, digest) for stamp, digest in digests.items()]
        schema = {"path": pl.String, "bytes": pl.Int64, "mtime_ns": pl.Int64, "digest": pl.String}
        with atomic_path(self.path) as temporary:
            pl.DataFrame(rows, schema=schema, orient="row").write_parquet(temporary)
