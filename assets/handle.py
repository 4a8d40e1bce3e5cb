"""What one asset passes to the next: a claim about a table on disk, small enough for a person to read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Handle:
    """Says that the table of `asset` for `dataset` has `num_rows` rows at the version `data_version`."""

    asset: str
    dataset: str
    data_version: str
    num_rows: int
