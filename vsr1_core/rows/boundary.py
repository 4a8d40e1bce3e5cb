"""The row boundary: when the work on many rows raises, the rows that caused it fail, and all others are made.

Rows are made in batches, so an error does not say which row it belongs to. The rows that are left are halved until the
ones that fail alone are found. An error that no row is to blame for (a missing model, a full disk, a mistake of ours)
would fail every row: it is raised again.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vsr1_core.rows.blocks import IDS_AT_A_TIME
from vsr1_core.rows.columnar import Remaining, ids_of, only, texts
from vsr1_core.rows.results import KNOWN_ERRORS, Item, Result, Value, reason_of

Made = Iterator[dict[str, Any]]

NO_ROWS_FAULT = (ModuleNotFoundError, MemoryError, NotImplementedError, ConnectionError)
_NO_FILES_FAULT = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
MAX_ALONE = 3
"""So many rows may fail alone before one is made; then the error is taken for that of the whole run."""
MAX_UNEXPECTED = 20
"""After so many rows in a row that failed with an error that is not among KNOWN_ERRORS, the work is stopped: it is
broken as a whole (a GPU that has failed fails everything after it), and no row is the cause."""


def is_of_the_run(error: Exception) -> bool:
    """Whether an error cannot be that of a row. An error may say so itself, with an attribute `is_of_the_run`."""
    if getattr(error, "is_of_the_run", False):
        return True
    return isinstance(error, NO_ROWS_FAULT) or (isinstance(error, OSError) and error.errno in _NO_FILES_FAULT)


def results_in_halves(
    make: Callable[[Mapping[str, Item]], Iterator[tuple[str, Value]]], items: Mapping[str, Item]
) -> Iterator[Result[str, Value]]:
    """Make all items together by `make`, which yields (id, value) for each id, and yield one result per id.

    Where `make` raises, the items without a value are made again in two halves, and so on down to a single item, which
    gets the error.

    Raises:
        Exception: The error of `make` when it is not that of an item (`is_of_the_run`), when it comes after the last
            item, or when it is the last of MAX_UNEXPECTED unexpected errors in a row.
    """
    for row_id, value, error in _in_halves(make, items):
        yield Result(row_id, value, None if error is None else reason_of(error))


def bounded(
    make: Callable[[Mapping[str, Item]], Made],
    rows: Mapping[str, Item],
    key: str,
    control: Mapping[str, Item] | None = None,
) -> Made:
    """Yield one dict per row: what `make` yields, or the key and `error` for a row with which `make` raises.

    Args:
        make: Makes some of the rows. It is called again for the rows that an error left, in halves.
        rows: Row id -> the planned row.
        key: The column with the row id.
        control: Rows that were made before. When no row could be made, the first of them is made again: if that works,
            the failed rows are to blame.

    Raises:
        Exception: As in `results_in_halves`, and the error of a row when no row at all could be made and `control` does
            not clear the run.
    """
    alone: list[dict[str, Any]] = []
    last: Exception | None = None
    is_cleared = False
    for row_id, row, last in _in_halves(lambda some: ((made[key], made) for made in make(some)), rows):
        if row is None and last is not None:
            alone.append({key: row_id, "error": reason_of(last)})
            if not is_cleared and len(alone) >= MAX_ALONE and not _works(make, control):
                raise last
        is_cleared = is_cleared or row is not None or len(alone) >= MAX_ALONE
        if is_cleared:
            yield from alone
            alone = []
        if row is not None:
            yield row
    if alone and last is not None and not _works(make, control):
        raise last
    yield from alone


def _in_halves(
    make: Callable[[Mapping[str, Item]], Iterator[tuple[str, Value]]], items: Mapping[str, Item]
) -> Iterator[tuple[str, Value | None, Exception | None]]:
    """(id, value, None) of each item that could be made, and (id, None, error) of the others."""
    waiting, num_unexpected = [items], 0
    while waiting:
        given = waiting.pop()
        left = Remaining(given)
        try:
            for row_id, value in make(given):
                left.take(row_id)
                num_unexpected = 0
                yield row_id, value, None
        except Exception as error:
            if not left or is_of_the_run(error):
                raise
            if len(left) > 1:
                waiting += reversed(halves(only(given, left.ids())))
                continue
            num_unexpected = 0 if isinstance(error, KNOWN_ERRORS) else num_unexpected + 1
            if num_unexpected == MAX_UNEXPECTED:
                raise
            yield left.ids()[0], None, error


def halves(items: Mapping[str, Item]) -> list[Mapping[str, Item]]:
    """The first and the second half of two or more items."""
    ids = ids_of(items)
    return [only(items, texts(some)) for some in (ids[: len(ids) // 2], ids[len(ids) // 2 :])]


def parts(items: Mapping[str, Item], size: int = IDS_AT_A_TIME) -> Iterator[dict[str, Item]]:
    """The items in the order of their ids, `size` at a time."""
    ids = ids_of(items)
    ids = ids if ids.is_sorted() else ids.sort()
    for start in range(0, len(ids), size):
        yield {row_id: items[row_id] for row_id in ids[start : start + size].to_list()}


def _works(make: Callable[[Mapping[str, Item]], Made], control: Mapping[str, Item] | None) -> bool:
    """Whether a row that was made before can be made again."""
    try:
        first = dict(itertools.islice((control or {}).items(), 1))
        return bool(first) and all(row.get("error") is None for row in make(first))
    except Exception:  # noqa: BLE001
        return False
