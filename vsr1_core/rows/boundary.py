"""The row boundary: when the work on many rows raises, the rows that caused it fail, and all others are made.

A stage makes rows in batches, so an error does not say which row it belongs to. The rows that are left are halved until
the ones that fail alone are found. An error that no row is to blame for (a missing model, a full disk, a mistake of
ours) would fail every row: it is raised again when nothing at all could be made.
"""

from __future__ import annotations

import errno
import itertools
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

Planned = TypeVar("Planned")
Made = Iterator[dict[str, Any]]

KNOWN_ERRORS = (OSError, ValueError, ModuleNotFoundError, MemoryError)
"""Errors whose message is written for users. Any other error is a mistake in our code, and its message gets the type of
the error and its place in the code."""
NO_ROWS_FAULT = (ModuleNotFoundError, MemoryError, NotImplementedError)
_NO_FILES_FAULT = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
MAX_ALONE = 3
"""So many rows may fail alone before one is made; then the error is taken for that of the whole run."""


def reason_of(error: Exception) -> str:
    """The message of a failed row."""
    if isinstance(error, KNOWN_ERRORS):
        return str(error) or type(error).__name__
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"unexpected {type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {error}"


def is_of_the_run(error: Exception) -> bool:
    """Whether an error cannot be that of a row. An error may say so itself, with an attribute `is_of_the_run`."""
    if getattr(error, "is_of_the_run", False):
        return True
    return isinstance(error, NO_ROWS_FAULT) or (isinstance(error, OSError) and error.errno in _NO_FILES_FAULT)


def bounded(
    make: Callable[[Mapping[str, Planned]], Made],
    rows: Mapping[str, Planned],
    key: str,
    control: Mapping[str, Planned] | None = None,
) -> Made:
    """Yield one dict per row: what `make` yields, or the key and `error` for a row with which `make` raises.

    Args:
        make: Makes some of the rows. It is called again for the rows that an error left, in halves.
        rows: Row id -> the planned row.
        key: The column with the row id.
        control: Rows that were made before. When no row could be made, the first of them is made again: if that works,
            the failed rows are to blame.

    Raises:
        Exception: The error of `make` when it is not that of a row (`is_of_the_run`), when no row at all could be made
            and `control` does not clear the run, or when `make` raises after its last row.
    """
    waiting, alone, is_cleared = [list(rows)], list[dict[str, Any]](), False
    while waiting:
        left = dict.fromkeys(waiting.pop())
        try:
            for row in make({row_id: rows[row_id] for row_id in left}):
                left.pop(row[key], None)
                is_cleared = True
                yield row
            continue
        except Exception as error:
            if is_of_the_run(error) or not left:
                raise
            if len(left) > 1:
                waiting += _halves(list(left))
                continue
            alone.append({key: next(iter(left)), "error": reason_of(error)})
            is_last = not waiting or len(alone) >= MAX_ALONE
            is_cleared = is_cleared or (is_last and _works(make, control or {}))
            if is_last and not is_cleared:
                raise
        if is_cleared:
            yield from alone
            alone = []
    yield from alone


def _works(make: Callable[[Mapping[str, Planned]], Made], control: Mapping[str, Planned]) -> bool:
    try:
        first = dict(itertools.islice(control.items(), 1))
        return bool(first) and all(row.get("error") is None for row in make(first))
    except Exception:  # noqa: BLE001
        return False


def _halves(ids: Sequence[str]) -> list[list[str]]:
    """The two halves, the one that is taken next at the end."""
    middle = (len(ids) + 1) // 2
    return [list(ids[middle:]), list(ids[:middle])]
