"""Faults at each point where a process writes: it is killed, the disk is full or fails, or the power goes.

A point is a call that changes a file or a folder: opening for writing, writing, renaming, deleting, making a folder,
waiting for the disk, and what libraries write by themselves. `Writes` counts the points of this process below a folder
and strikes at one of them; `install` lets the calls pass through it. `tests.fault_sweep` builds with that.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import functools
import io
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl

Kind = Literal["kill", "full", "broken", "names_lost", "data_lost"]
"""kill: SIGKILL. full: no room from this point on. broken: one call fails with EIO. names_lost: the power goes, and of
what was not waited for neither names nor content are on the disk. data_lost: the same, but names are."""
NOT_REFUSED = ("unlink", "rmdir")
"""What a full disk does not refuse."""


class Writes:
    """Counts the points below `root`, and strikes at number `at`."""

    def __init__(self, root: Path, kind: Kind = "kill", at: int | None = None) -> None:
        self.root, self.kind, self.at = str(root.resolve()), kind, at
        self.seen: list[str] = []
        self.disk = Disk(Path(tempfile.mkdtemp(dir=root.parent)))
        self.has_struck = False

    def is_inside(self, path: str) -> bool:
        return path == self.root or path.startswith(self.root + "/")

    def point(self, what: str, path: str, tear: Callable[[], object] = lambda: None, named: str = "") -> None:
        """One point. tear: leaves the call half done. named: the path that an error names, where it is another one."""
        if not self.is_inside(path):
            return
        number = len(self.seen)
        self.seen.append(f"{what} {path.removeprefix(self.root)}")
        if number == self.at:
            self.has_struck = True
            tear()
            self._strike(named or path)
        elif self.has_struck and self.kind == "full" and what not in NOT_REFUSED:
            self._strike(named or path)

    def _strike(self, path: str) -> None:
        if self.kind in ("full", "broken"):
            code = errno.ENOSPC if self.kind == "full" else errno.EIO
            raise OSError(code, os.strerror(code), path)
        if self.kind != "kill":
            self.disk.lose(with_names=self.kind == "names_lost")
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Disk:
    """What is not on the disk yet: names (folder, how to undo), and the files whose content is not. In `stash`, files
    that lost their names have others."""

    stash: Path
    names: list[tuple[str, Callable[[], object]]] = field(default_factory=list)
    contents: set[str] = field(default_factory=set)

    def waited_for(self, path: str) -> None:
        self.contents.discard(path)
        self.names = [(folder, undo) for folder, undo in self.names if folder != path]

    def keep(self, path: str) -> str | None:
        """A second name of a file that is about to lose its own."""
        if not os.path.isfile(path):
            return None
        kept = tempfile.mktemp(dir=self.stash)
        REAL["link"](path, kept)
        return kept

    def lose(self, with_names: bool) -> None:
        for path in self.contents:
            with contextlib.suppress(OSError):
                os.truncate(path, 0)
        for _, undo in reversed(self.names) if with_names else ():
            with contextlib.suppress(OSError):
                undo()


REAL: dict[str, Callable[..., Any]] = {
    name: getattr(os, name) for name in ("replace", "rename", "unlink", "remove", "rmdir", "mkdir", "fsync", "link")
}
_real_open = io.open


def install(writes: Writes) -> None:
    """Let all calls that write pass through `writes`, for the rest of this process."""
    for name in ("replace", "rename"):
        setattr(os, name, functools.partial(_moved, writes))
    os.unlink = os.remove = functools.partial(_deleted, writes)
    os.rmdir = functools.partial(_folder_deleted, writes)
    os.mkdir = functools.partial(_folder_made, writes)
    os.fsync = functools.partial(_waited_for, writes)
    io.open = builtins.open = functools.partial(_opened, writes)  # type: ignore[assignment]
    pl.DataFrame.write_parquet = _by_library(writes, pl.DataFrame.write_parquet, "parquet")  # type: ignore[method-assign]
    with contextlib.suppress(ImportError):
        import faiss

        faiss.write_index = _by_library(writes, faiss.write_index, "index")


def _place(path: Any, dir_fd: int | None = None) -> str:
    folder = "" if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
    return os.path.abspath(os.path.join(folder, os.fspath(path)))


def _moved(writes: Writes, source: Any, target: Any, **folders: Any) -> None:
    old, new = _place(source, folders.get("src_dir_fd")), _place(target, folders.get("dst_dir_fd"))
    writes.point("rename", new, named=old)
    kept = writes.disk.keep(new)
    REAL["replace"](source, target, **folders)
    if writes.is_inside(new):

        def undo() -> None:
            REAL["replace"](new, old)
            if kept:
                REAL["link"](kept, new)

        writes.disk.names.append((os.path.dirname(new), undo))
        contents = writes.disk.contents
        moved = {path for path in contents if path == old or path.startswith(f"{old}/")}
        writes.disk.contents = (contents - moved) | {new + path.removeprefix(old) for path in moved}


def _deleted(writes: Writes, path: Any, *, dir_fd: int | None = None) -> None:
    place = _place(path, dir_fd)
    writes.point("unlink", place)
    kept = writes.disk.keep(place) if writes.is_inside(place) else None
    REAL["unlink"](path, dir_fd=dir_fd)
    if kept:
        writes.disk.names.append((os.path.dirname(place), lambda: REAL["link"](kept, place)))


def _folder_deleted(writes: Writes, path: Any, *, dir_fd: int | None = None) -> None:
    place = _place(path, dir_fd)
    writes.point("rmdir", place)
    REAL["rmdir"](path, dir_fd=dir_fd)
    if writes.is_inside(place):
        writes.disk.names.append((os.path.dirname(place), lambda: REAL["mkdir"](place)))


def _folder_made(writes: Writes, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
    place = _place(path, dir_fd)
    if not os.path.isdir(place):
        writes.point("mkdir", place)
    REAL["mkdir"](path, mode, dir_fd=dir_fd)
    if writes.is_inside(place):
        writes.disk.names.append((os.path.dirname(place), lambda: REAL["rmdir"](place)))


def _waited_for(writes: Writes, descriptor: int) -> None:
    place = os.readlink(f"/proc/self/fd/{descriptor}")
    writes.point("fsync", place)
    writes.disk.waited_for(place)  # the disk itself is not waited for, which would take most of the time


def _note_written(writes: Writes, place: str, is_new: bool) -> None:
    writes.disk.contents.add(place)
    if is_new:
        writes.disk.names.append((os.path.dirname(place), lambda: REAL["unlink"](place)))


def _opened(writes: Writes, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
    if isinstance(file, int) or not set(mode) & set("wax+") or not writes.is_inside(_place(file)):
        return _real_open(file, mode, *args, **kwargs)
    place = _place(file)
    is_new = not os.path.exists(place)
    if is_new or "a" not in mode:
        writes.point("open", place)
        _note_written(writes, place, is_new)
    return Written(_real_open(file, mode, *args, **kwargs), place, writes)


class Written:
    """An open file whose writes are points; a kill at one leaves half of it."""

    def __init__(self, file: Any, place: str, writes: Writes) -> None:
        self._file, self._place, self._writes = file, place, writes

    def write(self, data: Any) -> Any:
        self._writes.point("write", self._place, lambda: self._tear(data))
        return self._file.write(data)

    def _tear(self, data: Any) -> None:
        self._file.write(data[: len(data) // 2])
        self._file.flush()

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Written:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)


def _by_library(writes: Writes, write: Callable[..., Any], what: str) -> Callable[..., Any]:
    """A library's function (thing, path) -> None that writes a file, as two points: before, and half done."""

    def writing(thing: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(path, str | os.PathLike):  # into memory
            return write(thing, path, *args, **kwargs)
        place = _place(path)
        try:
            writes.point(what, place)
            write(thing, path, *args, **kwargs)
            if writes.is_inside(place):
                _note_written(writes, place, is_new=True)
                writes.point(f"half {what}", place, lambda: os.truncate(place, os.path.getsize(place) // 2))
        except OSError as error:  # as polars and FAISS do
            raise RuntimeError(f"it could not be written: {os.strerror(error.errno or 0)}") from None
        return None

    return writing
