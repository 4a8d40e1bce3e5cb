"""The lines of annotation files as a table with a row for each: of 100,000 lines, 20 MB and not 300 MB of objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import polars as pl

from vsr1_core.datasets.verified import BadLine, Moment

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


def line_table(lines: Iterable[tuple[str, Moment | BadLine]]) -> pl.DataFrame:
    """The lines in their order."""
    rows = [(*_fields(line), line.version) for _, line in lines]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _fields(line: Moment | BadLine) -> tuple[Any, ...]:
    if isinstance(line, Moment):
        return (*(getattr(line, name) for name in FIELDS), None)
    return (line.query_id, *(None for _ in FIELDS[1:]), line.reason)


def lines_of_table(table: pl.DataFrame) -> Iterator[Moment | BadLine]:
    """The lines of which a table was made."""
    for row in table.iter_rows(named=True):
        yield _line(row)


def _line(row: Mapping[str, Any]) -> Moment | BadLine:
    if row["reason"] is not None:
        return BadLine(row["query_id"], row["reason"])
    return Moment(*(row[name] for name in FIELDS))
