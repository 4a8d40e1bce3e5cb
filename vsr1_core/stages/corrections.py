"""The moments of a dataset with the corrections of its home applied (`datasets.corrections`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import polars as pl

from vsr1_core.datasets import sources
from vsr1_core.datasets.corrections import Corrected, Correction, corrected, corrections_path, read_corrections
from vsr1_core.datasets.line_table import lines_of_table
from vsr1_core.datasets.verified import BadLine, Moment
from vsr1_core.rows.packed import Packed
from vsr1_core.stages.annotated import lines_with, packed_lines
from vsr1_core.stages.base import View
from vsr1_core.stages.kept_ids import has_hashed_ids, with_kept_ids


def corrections_file(view: View) -> Path | None:
    """The file of the dataset's corrections, which may be missing; None for tables outside of a home."""
    return corrections_path(view.home, view.entry.corpus) if view.home is not None else None


def annotated_moments(view: View, ids: Collection[str] | None = None) -> dict[str, Moment | BadLine]:
    """What the annotation files say, under the ids of the rows of `moments`. ids: no others are asked for."""
    if ids is not None and (lines := lines_with(view, ids)) is not None:
        return {line.query_id: line for line in lines_of_table(lines)}
    found = sources.moments(view.entry, view.config)
    return with_kept_ids(found, view.table("moments"), corrections_of(view)) if has_hashed_ids(found) else found


def uncorrected_lines(view: View) -> pl.DataFrame | Packed | None:
    """The lines of the annotation files, where they are the rows of `moments` as they are; None where they are not."""
    if corrections_of(view):
        return None
    lines = packed_lines(view)
    return None if lines is None or has_hashed_ids(lines.to_series(0)) else lines


def annotated_at(view: View, query_id: str) -> str | None:
    """The `<file>:<line>` at which a row of `moments`, or a refused line, is annotated; None where it is not (any
    more)."""
    return sources.place_of(view.entry, view.config, query_id, annotated_moments(view).get(query_id))


def corrected_moments(view: View, published: Mapping[str, Moment | BadLine] | None = None) -> Corrected:
    """What the annotation files say, with the corrections applied. published: where it was read already."""
    said = annotated_moments(view) if published is None else published
    return corrected(said, corrections_of(view))


def corrections_of(view: View) -> list[Correction]:
    """The corrections of the dataset, oldest first."""
    path = corrections_file(view)
    return read_corrections(path) if path is not None else []
