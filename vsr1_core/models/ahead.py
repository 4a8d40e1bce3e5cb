"""Makes the inputs of a model in a thread, ahead of the model that takes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def made_ahead(
    items: Iterable[T], make: Callable[[T], R], bytes_of: Callable[[T], float], most_bytes: float
) -> Iterator[R]:
    """What `make` returns for each item, in order. A thread makes the next ones while the caller computes with those
    before. What `make` raises is raised in the turn of its item.

    Args:
        items: Taken one by one, as there is room.
        make: Called in the thread, for one item at a time.
        bytes_of: What an item takes once it is made.
        most_bytes: What may be made and not taken yet; two items may always be.
    """
    waiting: deque[tuple[Future[R], float]] = deque()
    held = 0.0
    thread = ThreadPoolExecutor(1, "vsr1-ahead")
    try:
        for item in items:
            needed = bytes_of(item)
            while len(waiting) > 1 and held + needed > most_bytes:
                made, freed = waiting.popleft()
                held -= freed
                yield made.result()
            waiting.append((thread.submit(make, item), needed))
            held += needed
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        thread.shutdown(cancel_futures=True)
