"""The row boundary: an exception while a row is made becomes the reason of that row, and stops no other row.

`error_text` words the reason. `results_in_halves` finds the row when rows are made together, as a batch of a model is.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")

KNOWN_ERRORS = (OSError, ValueError, ModuleNotFoundError, MemoryError)
"""Errors whose message is written for users. Any other error is a mistake in our code, and its message gets the type of
the error and its place in the code."""

MAX_UNEXPECTED = 20
"""After so many rows in a row that failed with an error that is not among KNOWN_ERRORS, the work is stopped: it is
broken as a whole (a GPU that has failed fails everything after it), and no row is the cause."""


@dataclass(frozen=True)
class Result(Generic[Item, Value]):
    """The result for one item: either `value`, or `error` (a message) with `value` None."""

    item: Item
    value: Value | None
    error: str | None


def error_text(error: Exception) -> str:
    """The reason of a failed row, as users read it."""
    if isinstance(error, KNOWN_ERRORS):
        return str(error) or type(error).__name__
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"unexpected {type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {error}"


def results_in_halves(
    make: Callable[[dict[str, Item]], Iterator[tuple[str, Value]]],
    items: Mapping[str, Item],
    stops: tuple[type[Exception], ...] = (),
) -> Iterator[Result[str, Value]]:
    """Make all items together by `make`, which yields (id, value) for each id, and yield one result per id.

    Where `make` raises, the items without a value are made again in two halves, and so on down to a single item, which
    gets the error. An error of a type in `stops` concerns every item, and is raised; so is the last of MAX_UNEXPECTED
    unexpected errors in a row.
    """
    waiting, num_unexpected = [dict(items)], 0
    while waiting:
        left = waiting.pop()
        try:
            for row_id, value in make(dict(left)):
                left.pop(row_id, None)
                num_unexpected = 0
                yield Result(row_id, value, None)
        except stops:
            raise
        except Exception as error:
            if not left:
                raise
            if len(left) > 1:
                waiting += reversed(halves(left))
                continue
            num_unexpected = 0 if isinstance(error, KNOWN_ERRORS) else num_unexpected + 1
            if num_unexpected == MAX_UNEXPECTED:
                raise
            yield Result(next(iter(left)), None, error_text(error))


def halves(items: Mapping[str, Item]) -> list[dict[str, Item]]:
    """The first and the second half of two or more items."""
    ids = list(items)
    return [{i: items[i] for i in some} for some in (ids[: len(ids) // 2], ids[len(ids) // 2 :])]
