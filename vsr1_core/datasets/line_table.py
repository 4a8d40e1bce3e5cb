"""The lines of annotation files as a table with a row for each: of 100,000 lines, 20 MB and not 300 MB of objects."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import polars as pl

from vsr1_core.datasets.verified import BadLine, Moment
from vsr1_core.rows.blocks import blocks

SCHEMA: dict[str, Any] = {
    "query_id": pl.String,
    "split": pl.String,
    "query": pl.String,
    "plain_query": pl.String,
    "video_id": pl.String,
    "start_s": pl.Float64,
    "end_s": pl.Float64,
    "duration_s": pl.Float64,
    "clamped": pl.Boolean,
    "reason": pl.String,
    "version": pl.String,
}
"""The fields of a `Moment`, or `reason` for a line that is none; `version` is that of either."""
FIELDS = tuple(SCHEMA)[:-2]
IS_MOMENT = pl.col("reason").is_null()


def line_tables(lines: Iterable[tuple[str, Moment | BadLine]]) -> Iterator[pl.DataFrame]:
    """The lines in their order, some thousands at a time: one table or more."""
    yield pl.DataFrame(schema=SCHEMA)
    for some in blocks(lines):
        rows = [(*_fields(line), line.version) for _, line in some]
        yield pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _fields(line: Moment | BadLine) -> tuple[Any, ...]:
    if isinstance(line, Moment):
        return (*(getattr(line, name) for name in FIELDS), None)
    return (line.query_id, *(None for _ in FIELDS[1:]), line.reason)


def lines_of_table(table: pl.DataFrame) -> Iterator[Moment | BadLine]:
    """The lines of which a table was made."""
    return itertools.starmap(line_of, table.select(*SCHEMA).iter_rows())


def line_of(*values: Any) -> Moment | BadLine:
    """The line of the values of a row of a table with the columns SCHEMA."""
    *fields, reason, _ = values
    return Moment(*fields) if reason is None else BadLine(fields[0], reason)
