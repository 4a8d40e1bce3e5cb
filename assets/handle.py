"""What travels between assets: a claim about a table on disk, small enough to be read by a person."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Handle:
    """A claim: the table of `asset` for `dataset` has `num_rows` rows at version `data_version`."""

    asset: str
    dataset: str
    data_version: str
    num_rows: int
