"""Splits the lines of a CSV file into records, so that one bad line costs no other line. What cells mean is elsewhere.

A quoted text may contain line breaks, so a quote that is never closed would take the rest of the file, or as much of it
as the csv module allows in one cell (131,072 characters). Here it costs its own line: the next record begins on the
next line.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence

MAX_LINES = 100
"""The most lines of one record. A text with more line breaks is taken for a quote that was not closed."""


def csv_records(lines: Sequence[str]) -> Iterator[tuple[int, list[str] | str]]:
    """Yield (line number from 1 on which the record begins, its cells, or what is wrong with it) for each record that
    is not blank. `lines` have their line breaks."""
    start = 0
    while start < len(lines):
        cells, num_lines = _record(lines, start)
        if isinstance(cells, str) or any(cell.strip() for cell in cells):
            yield start + 1, cells
        start += num_lines


def _record(lines: Sequence[str], start: int) -> tuple[list[str] | str, int]:
    """The record that begins at `start`, and how many lines it takes; one where it cannot be read."""
    reader = csv.reader(lines[start : start + MAX_LINES], strict=True)
    try:
        return next(reader, []), max(1, reader.line_num)
    except csv.Error as error:
        if "field limit" in str(error) and len(lines[start]) > csv.field_size_limit():
            return f"a cell has more than {csv.field_size_limit():,} characters; shorten it", 1
        return (
            'a double quote is opened here and not closed before a comma or the end; write "" for a quote in a text',
            1,
        )
