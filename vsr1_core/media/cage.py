"""Bounds what a worker process may use while it reads one video: address space, processor time, sizes of files.

The limits hold for one task and are lifted after it, so that one worker reads many videos: to start a process costs as
much as to read dozens of short clips. What is checked before decoding is in `video_limits`.
"""

from __future__ import annotations

import contextlib
import errno
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from vsr1_core.media.container import VideoError
from vsr1_core.media.video_limits import VideoLimits

MIN_FILE_BYTES = 64 << 20
"""A log that the worker's messages go to may be as long as this already."""


class _ProcessorTimeSpent(Exception):
    """Raised by the signal that ends a task; no ValueError, so that no decoder takes it for a damaged packet."""


@contextlib.contextmanager
def caged(name: str, limits: VideoLimits, file_bytes: int = 0) -> Iterator[None]:
    """Bound this process while the block runs; for processes that do nothing else meanwhile.

    Args:
        name: The file, for messages.
        limits: Their `memory_gb` and `cpu_s` count from here on.
        file_bytes: No file may grow beyond this, or beyond `MIN_FILE_BYTES` where that is more.

    Raises:
        VideoError: The block broke a limit; the message names it.
    """
    try:
        with contextlib.ExitStack() as stack:
            for kind, most in _bounds(limits, file_bytes).items():
                stack.enter_context(_bounded(kind, most))
            stack.enter_context(_signalled())
            yield
    except _ProcessorTimeSpent:
        raise VideoError(f"{name} {_told('cpu_s', f'{limits.cpu_s:g} s of processor time')}") from None
    except MemoryError:
        raise VideoError(f"{name} {_told('memory_gb', f'{limits.memory_gb:g} GiB of memory')}") from None
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        raise VideoError(f"{name} would give a file of more than {file_bytes:,} bytes: sample it smaller") from error


def _told(limit: str, most: str) -> str:
    return f"needs more than {most}, which the video limits ({limit}) do not allow: encode it smaller, or raise it"


def _bounds(limits: VideoLimits, file_bytes: int) -> dict[int, int]:
    """Kind of limit -> its value for this process; empty on systems without such limits."""
    try:
        import resource
    except ImportError:
        return {}
    used = resource.getrusage(resource.RUSAGE_SELF)
    bounds = {
        resource.RLIMIT_CPU: int(used.ru_utime + used.ru_stime + limits.cpu_s) + 1,
        resource.RLIMIT_FSIZE: max(file_bytes, MIN_FILE_BYTES),
    }
    held = Path("/proc/self/statm")
    if held.exists():
        pages = int(held.read_text().split()[0])
        bounds[resource.RLIMIT_AS] = pages * resource.getpagesize() + int(limits.memory_gb * (1 << 30))
    return bounds


@contextlib.contextmanager
def _bounded(kind: int, most: int) -> Iterator[None]:
    """Lower one soft limit of this process, never beyond what it is already."""
    import resource

    soft, hard = resource.getrlimit(kind)
    known = [limit for limit in (soft, hard, most) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(kind, (min(known), hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


@contextlib.contextmanager
def _signalled() -> Iterator[None]:
    """Turn the signals of broken limits into errors. Outside of the main thread no handler can be set: the system then
    ends the process, which costs the same row."""
    try:
        before = signal.signal(signal.SIGXCPU, _stop), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    except (AttributeError, ValueError):
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGXCPU, before[0])
        signal.signal(signal.SIGXFSZ, before[1])


def _stop(number: int, frame: FrameType | None) -> None:
    raise _ProcessorTimeSpent
