"""Many items, some at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

IDS_AT_A_TIME = 4096


def blocks(items: Iterable[Item], size: int = IDS_AT_A_TIME) -> Iterator[list[Item]]:
    """The items in lists of `size`, but for the last one."""
    left = iter(items)
    while some := list(itertools.islice(left, size)):
        yield some
