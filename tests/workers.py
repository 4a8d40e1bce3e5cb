"""Functions that worker processes run in tests: they have to be importable by name."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.waiting import until
from vsr1_core.media.cage import caged
from vsr1_core.media.video_limits import VideoLimits
from vsr1_core.rows.files import WriteRefused
from vsr1_core.rows.ray_shares import READY, WorkerIsBroken


def square(value: int) -> int:
    return value * value


def threads_and_process(_: int) -> tuple[str | None, int]:
    return os.environ.get("OMP_NUM_THREADS"), os.getpid()


def misbehave(what: str) -> str:
    """`crash` dies like a decoder with a segmentation fault, `crash-parent` ends who started this process, `hang` never
    ends, `bug` and `refuse` raise, and so does `full`, as on a full disk."""
    if what == "crash-parent":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "hang":
        time.sleep(60)
    if what == "refuse":
        raise ValueError("the video is not a video")
    if what == "full":
        refused = WriteRefused("frames.npy cannot be written: its disk is full")
        refused.errno = errno.ENOSPC
        raise refused
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


def started_process(gate: Path, number: int) -> int:
    """The process in which `wait_for_file` waits for the gate with a number, once it does."""
    said = Path(f"{gate}.{number}")
    until(lambda: said.exists() and said.read_text())
    return int(said.read_text())


def shard_maker() -> Callable[[list[str]], Iterator[str | tuple[int, str | None, str | None]]]:
    """What a model worker runs: makes names upper case, in the reverse of their order. `crash` ends its process,
    `refuse` is a failed row, `broken` says that the worker cannot go on, `bug` is a mistake that concerns all rows, and
    the name of a file stops the process where there is no such file yet, after writing it."""
    return _make_shard


def _make_shard(names: list[str]) -> Iterator[str | tuple[int, str | None, str | None]]:
    yield READY
    for position, name in reversed(list(enumerate(names))):
        if name == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "broken":
            raise WorkerIsBroken("a worker's GPU failed")
        if name == "bug":
            raise KeyError("width")
        if name.startswith("/") and not Path(name).exists():
            Path(name).touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        yield (position, None, "not a name") if name == "refuse" else (position, f"{name.upper()} {os.getpid()}", None)


def slow_shard_maker() -> Callable[[list[int]], Iterator[str | tuple[int, str, None]]]:
    """What a model worker runs that takes a while for each row, and says on which node."""
    return _make_slowly


def _make_slowly(rows: list[int]) -> Iterator[str | tuple[int, str, None]]:
    import ray

    yield READY
    for position, _ in enumerate(rows):
        time.sleep(0.5)
        yield position, ray.util.get_node_ip_address(), None


def burn(seconds: float, cpu_s: float) -> None:
    """Use so much processor time, in a cage of `cpu_s`."""
    with caged("a.mp4", VideoLimits(cpu_s=cpu_s)):
        begun = time.process_time()
        while time.process_time() - begun < seconds:
            pass


def grow_a_file(size: int, folder: str) -> None:
    """Make a file of `size` bytes, in a cage of the smallest file size."""
    with caged("a.mp4", VideoLimits()), (Path(folder) / "grown").open("wb") as file:
        file.truncate(size)
