"""How a folder of several files is read that `files.atomic_folder` may exchange for another one at any time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Found = TypeVar("Found")
_TRIES, _PAUSE_S = 5, 0.05


def read_whole(folder: Path, read: Callable[[Path], Found]) -> Found:
    """What `read` makes of a folder, all of it of one and the same folder: it reads again where another one took the
    place meanwhile. An error of `read` is raised where the folder stood, or is not there, while it read.

    Raises OSError where the folder was exchanged each time, from the last error of `read` if there was one.
    """
    last: Exception | None = None
    for _ in range(_TRIES):
        before = _identity(folder)
        try:
            found = read(folder)
        except Exception as error:
            last = error
            # For a moment of the exchange, neither folder has the name.
            if before is not None and before == _identity(folder):
                raise
            time.sleep(_PAUSE_S)
            if before is None and _identity(folder) is None:
                raise
        else:
            if before == _identity(folder):
                return found
            del found  # a model that is not wanted needs no room beside the next one
    raise OSError(f"{folder} was exchanged for another one {_TRIES} times while it was read; try again") from last


def _identity(folder: Path) -> tuple[int, int, int] | None:
    """What tells a folder from another one of the same name; None where there is none."""
    try:
        stat = folder.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns
