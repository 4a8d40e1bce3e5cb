"""Faults at each point where a process writes: it is killed, the disk is full or fails, or the power goes.

A point is a call that changes a file or a folder: opening for writing, writing, renaming, deleting, making a folder,
waiting for the disk, and what libraries write by themselves. `install` lets the calls pass through a `Writes`, which
counts the points below a folder. There it strikes with an error, or says what a cut at that point would leave on the
disk: of a process that is killed, or whose power goes, nothing else matters. `tests.fault_sweep` builds with that.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import functools
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl

from tests.fault_states import File, Tree, is_empty, moved, read_tree

Cut = Literal["kill", "names_lost", "data_lost"]
"""kill: SIGKILL. names_lost: the power goes, and of what was not waited for neither names nor content are on the disk.
data_lost: the same, but names are."""
Refusal = Literal["full", "broken"]
"""full: no room from this point on. broken: one call fails with EIO."""
Kind = Cut | Refusal
NOT_REFUSED = ("unlink", "rmdir")
"""What a full disk does not refuse."""


@dataclass(frozen=True)
class Half:
    """A call that is cut off. leave: makes its file so. content: what the file would hold then."""

    place: str
    leave: Callable[[], object]
    content: Callable[[], bytes]


class Writes:
    """Counts the points below `root` from `begin` to `end`, and strikes at number `at`. on_point: called at each point
    with its number and its half."""

    def __init__(self, root: Path) -> None:
        self.root = str(root.resolve())
        self.begin()
        self.end()

    def begin(
        self,
        kind: Refusal | None = None,
        at: int | None = None,
        on_point: Callable[[int, Half | None], object] = lambda number, half: None,
    ) -> None:
        self.kind, self.at, self.on_point = kind, at, on_point
        self.seen: list[str] = []
        self.disk = Disk()
        self.has_struck, self.is_on = False, True

    def end(self) -> None:
        self.is_on = False

    def is_inside(self, path: str) -> bool:
        return self.is_on and (path == self.root or path.startswith(self.root + "/"))

    def point(self, what: str, path: str, half: Half | None = None, named: str = "") -> None:
        """One point. named: the path that an error names, where it is another one."""
        if not self.is_inside(path):
            return
        number = len(self.seen)
        self.seen.append(f"{what} {path.removeprefix(self.root)}")
        self.on_point(number, half)
        if number == self.at:
            self.has_struck = True
            if half:
                half.leave()
            self._refuse(named or path)
        elif self.has_struck and self.kind == "full" and what not in NOT_REFUSED:
            self._refuse(named or path)

    def _refuse(self, path: str) -> None:
        code = errno.ENOSPC if self.kind == "full" else errno.EIO
        raise OSError(code, os.strerror(code), path)

    def left_by(self, half: Half | None) -> dict[Cut, Tree]:
        """What each cut here would leave on the disk."""
        tree = read_tree(self.root)
        if half:
            tree[half.place] = File(half.content(), os.stat(half.place).st_mtime_ns)
        return {"kill": tree, "names_lost": self.disk.left(tree, True), "data_lost": self.disk.left(tree, False)}


@dataclass
class Disk:
    """What is not on the disk yet: names (folder, how to undo), and the files whose content is not."""

    names: list[tuple[str, Callable[[Tree], object]]] = field(default_factory=list)
    contents: set[str] = field(default_factory=set)

    def waited_for(self, path: str) -> None:
        self.contents.discard(path)
        self.names = [(folder, undo) for folder, undo in self.names if folder != path]

    def left(self, tree: Tree, with_names: bool) -> Tree:
        """What is left of `tree` when the power goes."""
        left = {
            path: File(b"", node.written_ns + 1) if node and path in self.contents else node
            for path, node in tree.items()
        }
        for _, undo in reversed(self.names) if with_names else ():
            undo(left)
        return left


def _kept(place: str) -> File | None:
    """A file that is about to lose its name; None for what is no file."""
    if not os.path.isfile(place):
        return None
    with _real_open(place, "rb") as file:
        return File(file.read(), os.stat(place).st_mtime_ns)


REAL: dict[str, Callable[..., Any]] = {
    name: getattr(os, name) for name in ("replace", "rename", "unlink", "remove", "rmdir", "mkdir", "fsync")
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
    pl.LazyFrame.sink_parquet = _by_library(writes, pl.LazyFrame.sink_parquet, "parquet")  # type: ignore[method-assign]
    with contextlib.suppress(ImportError):
        import faiss

        faiss.write_index = _by_library(writes, faiss.write_index, "index")


def _place(path: Any, dir_fd: int | None = None) -> str:
    folder = "" if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
    return os.path.abspath(os.path.join(folder, os.fspath(path)))


def _moved(writes: Writes, source: Any, target: Any, **folders: Any) -> None:
    old, new = _place(source, folders.get("src_dir_fd")), _place(target, folders.get("dst_dir_fd"))
    writes.point("rename", new, named=old)
    is_inside = writes.is_inside(new)
    kept = _kept(new) if is_inside else None
    REAL["replace"](source, target, **folders)
    if is_inside:

        def undo(tree: Tree) -> None:
            if new in tree and os.path.dirname(old) in tree:
                moved(tree, new, old)
                if kept:
                    tree[new] = kept

        writes.disk.names.append((os.path.dirname(new), undo))
        contents = writes.disk.contents
        unsaved = {path for path in contents if path == old or path.startswith(f"{old}/")}
        writes.disk.contents = (contents - unsaved) | {new + path.removeprefix(old) for path in unsaved}


def _deleted(writes: Writes, path: Any, *, dir_fd: int | None = None) -> None:
    place = _place(path, dir_fd)
    writes.point("unlink", place)
    kept = _kept(place) if writes.is_inside(place) else None
    REAL["unlink"](path, dir_fd=dir_fd)
    if kept:
        writes.disk.names.append((os.path.dirname(place), lambda tree: _put_back(tree, place, kept)))


def _put_back(tree: Tree, place: str, node: File | None) -> None:
    if os.path.dirname(place) in tree:
        tree.setdefault(place, node)


def _folder_deleted(writes: Writes, path: Any, *, dir_fd: int | None = None) -> None:
    place = _place(path, dir_fd)
    writes.point("rmdir", place)
    REAL["rmdir"](path, dir_fd=dir_fd)
    if writes.is_inside(place):
        writes.disk.names.append((os.path.dirname(place), lambda tree: _put_back(tree, place, None)))


def _folder_made(writes: Writes, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
    place = _place(path, dir_fd)
    if not os.path.isdir(place):
        writes.point("mkdir", place)
    REAL["mkdir"](path, mode, dir_fd=dir_fd)
    if writes.is_inside(place):
        undo: Callable[[Tree], object] = lambda tree: tree.pop(place, None) if is_empty(tree, place) else None  # noqa: E731
        writes.disk.names.append((os.path.dirname(place), undo))


def _waited_for(writes: Writes, descriptor: int) -> None:
    place = os.readlink(f"/proc/self/fd/{descriptor}")
    writes.point("fsync", place)
    if writes.is_inside(place):
        writes.disk.waited_for(place)  # the disk itself is not waited for, which would take most of the time


def _note_written(writes: Writes, place: str, is_new: bool) -> None:
    writes.disk.contents.add(place)
    if is_new:
        writes.disk.names.append((os.path.dirname(place), lambda tree: tree.pop(place, None)))


def _opened(writes: Writes, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
    if isinstance(file, int) or not set(mode) & set("wax+") or not writes.is_inside(_place(file)):
        return _real_open(file, mode, *args, **kwargs)
    place = _place(file)
    is_new = not os.path.exists(place)
    if is_new or "a" not in mode:
        writes.point("open", place)
        _note_written(writes, place, is_new)
    before = _kept(place) if "a" in mode else None
    return Written(_real_open(file, mode, *args, **kwargs), place, writes, before.content if before else b"")


class Written:
    """An open file whose writes are points; a cut at one leaves half of it. content: what was in it and what was
    written, which the file itself may still hold back. Nobody writes anywhere but at the end."""

    def __init__(self, file: Any, place: str, writes: Writes, content: bytes) -> None:
        assert not {"r+", "x+"} & {getattr(file, "mode", "")}, f"{place} is written in the middle"
        self._file, self._place, self._writes, self._content = file, place, writes, content

    def write(self, data: Any) -> Any:
        half = data[: len(data) // 2]
        cut = Half(self._place, lambda: self._leave(half), lambda: self._content + self._bytes(half))
        self._writes.point("write", self._place, cut)
        self._content += self._bytes(data)
        return self._file.write(data)

    def _leave(self, half: Any) -> None:
        self._file.write(half)
        self._file.flush()

    def _bytes(self, data: Any) -> bytes:
        return data.encode(self._file.encoding, self._file.errors) if isinstance(data, str) else bytes(data)

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
        if not writes.is_inside(place):
            return write(thing, path, *args, **kwargs)
        try:
            writes.point(what, place)
            write(thing, path, *args, **kwargs)
            _note_written(writes, place, is_new=True)
            writes.point(f"half {what}", place, _half_of(place))
        except OSError as error:  # as polars and FAISS do
            raise RuntimeError(f"it could not be written: {os.strerror(error.errno or 0)}") from None
        return None

    return writing


def _half_of(place: str) -> Half:
    size = os.path.getsize(place) // 2

    def content() -> bytes:
        with _real_open(place, "rb") as file:
            return file.read(size)

    return Half(place, lambda: os.truncate(place, size), content)
