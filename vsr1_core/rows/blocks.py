"""Many items, some at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

SHARD_ROWS = 1024
"""Most finished rows of a run that are not saved yet. To save a shard, and to read it again for the commit, takes 3 ms:
with 256 rows, a third of the time of a million quick ones. With many more, vectors would take hundreds of MB."""

IDS_AT_A_TIME = 4096


def blocks(items: Iterable[Item], size: int = IDS_AT_A_TIME) -> Iterator[list[Item]]:
    """The items in lists of `size`, but for the last one."""
    left = iter(items)
    while some := list(itertools.islice(left, size)):
        yield some
