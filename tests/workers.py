"""Functions that worker processes run in tests: they have to be importable by name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def square(value: int) -> int:
    return value * value


def threads_and_process(_: int) -> tuple[str | None, int]:
    return os.environ.get("OMP_NUM_THREADS"), os.getpid()


def misbehave(what: str) -> str:
    """`crash` dies like a decoder with a segmentation fault, `crash-parent` ends who started this process, `hang` never
    ends, `bug` and `refuse` raise."""
    if what == "crash-parent":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "hang":
        time.sleep(60)
    if what == "refuse":
        raise ValueError("the video is not a video")
    if what == "bug":
        raise KeyError("width")
    return what.upper()


def wait_for_file(task: tuple[int, str]) -> int:
    """The task's number, once its file is there; at once for no file. Says that it waits, and its
    process, in a file beside it."""
    number, path = task
    if path:
        Path(f"{path}.{number}").write_text(str(os.getpid()))
    while path and not Path(path).exists():
        time.sleep(0.05)
    return number
