"""What travels between assets: a claim about a table on disk, small enough to be read by a person."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Handle:
    """`asset`'s rows for `dataset`: `num_rows` of them, at `data_version`."""

    asset: str
    dataset: str
    data_version: str
    num_rows: int
