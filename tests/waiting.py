"""Waiting for what another thread or process does: as long as it takes, up to a limit that only a failure reaches."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(is_so: Callable[[], object], seconds: float = 120, every_s: float = 0.05) -> None:
    """Wait until `is_so` is true. TimeoutError: it did not become true within so many seconds."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError(f"waited in vain for {seconds:g} s")
        time.sleep(every_s)
