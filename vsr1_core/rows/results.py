"""What the work on one row gives: a value, or the reason why there is none. A process that does such work imports this,
and no tables."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")

KNOWN_ERRORS = (OSError, ValueError, ModuleNotFoundError, MemoryError)
"""Errors whose message is written for users. Any other error is a mistake in our code, and its message gets the type of
the error and its place in the code."""


@dataclass(frozen=True)
class Result(Generic[Item, Value]):
    """The result for one item: either `value`, or `error` (a message) with `value` None."""

    item: Item
    value: Value | None
    error: str | None


def reason_of(error: Exception) -> str:
    """The reason of a failed row, as users read it."""
    if isinstance(error, KNOWN_ERRORS):
        return str(error) or type(error).__name__
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"unexpected {type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {error}"
