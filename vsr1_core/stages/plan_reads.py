"""What plans read of tables as the columns of a `LazyRows`: the same as `View.rows`, few of which are spelled out."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from vsr1_core.rows.packed import SPELLED, Packed, packed
from vsr1_core.stages.base import View
from vsr1_core.stages.readings import Names, Reading


def packed_rows(
    view: View, asset: str, columns: Sequence[str], splits: Names = None, spelled: int = SPELLED
) -> pl.DataFrame | Packed:
    """The ok rows of an upstream table, or of these splits. spelled: as of `packed`: 2 blocks where rows are asked for
    in their order."""
    return packed(view.read_batches(Reading.of(asset, "ok", columns, splits)), spelled)
