"""Functions that worker processes run in tests: they have to be importable by name."""

from __future__ import annotations

import os
import signal
import time


def square(value: int) -> int:
    return value * value


def threads_and_process(_: int) -> tuple[str | None, int]:
    return os.environ.get("OMP_NUM_THREADS"), os.getpid()


def misbehave(what: str) -> str:
    """`crash` dies like a decoder with a segmentation fault, `hang` never ends, `bug` and `refuse` raise."""
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "hang":
        time.sleep(60)
    if what == "refuse":
        raise ValueError("the video is not a video")
    if what == "bug":
        raise KeyError("width")
    return what.upper()
