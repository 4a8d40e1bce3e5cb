"""How files are written and named: atomic writes, JSON and JSON lines, digests, and names that are safe as paths.

What was written lasts: a file is on the disk before it gets its name, and the name is on the disk before the writer
goes on. Otherwise a power loss could keep a commit and lose what it depends on.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsr1_core.rows.texts import parsed_json

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")


def check_name(name: str, what: str = "dataset") -> str:
    """Return `name` if it is safe as the name of a folder; raise ValueError if it is not. `what` is for the message."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot be the name of a {what}: use 1 to 64 letters, digits, '_', '.', '+' or '-', "
            "beginning with a letter or a digit"
        )
    return name


def file_stem(row_id: str) -> str:
    """Turn any id into a file name without a suffix. The name is readable and unique, and it is never a path, so that
    `../x` cannot leave its folder."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", row_id)[:48].strip("_") or "id"
    return f"{readable}-{hashlib.sha256(row_id.encode()).hexdigest()[:10]}"


class WriteRefused(OSError):
    """The system refused a write: the disk is full, or may not be written. `errno` is set, and no row is to blame."""

    is_of_the_run = True


_REFUSALS = {
    errno.ENOSPC: "its disk is full",
    errno.EDQUOT: "the quota of its disk is used up",
    errno.EFBIG: "files may not be that large here (ulimit -f)",
    errno.EROFS: "its disk is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.EIO: "its disk failed",
}


@contextlib.contextmanager
def refusals_explained(path: Path, temporary: Path) -> Iterator[None]:
    """Raise WriteRefused in place of what a library says where the system refused to write `temporary`, which is to
    become `path`."""
    try:
        yield
    except Exception as error:
        code = _code_of(error) or _code_of_more(error, temporary)
        if isinstance(error, WriteRefused) or code not in _REFUSALS or not _is_about(error, temporary):
            raise
        refused = WriteRefused(f"{path} cannot be written: {_REFUSALS[code]}{_room(temporary)}")
        refused.errno = code
        raise refused from error


def _code_of(error: Exception) -> int | None:
    """The system's error. Libraries such as polars, FAISS and DuckDB put its text into that of their own ones."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    return next((code for code in _REFUSALS if os.strerror(code) in str(error)), None)


def _code_of_more(error: Exception, temporary: Path) -> int | None:
    """The system's error where polars keeps it to itself, as at the end of a file: that of writing some more."""
    if "thrift: transport error" not in str(error) or not _LEFTOVER.fullmatch(temporary.name):
        return None
    try:
        with temporary.open("ab") as file:
            file.write(bytes(1 << 16))
            os.fsync(file.fileno())
    except OSError as refused:
        return refused.errno
    return None


def _is_about(error: Exception, temporary: Path) -> bool:
    """Whether an error may be about what is written, and not about another file, such as one that is copied."""
    named = getattr(error, "filename", None)
    if named is None:
        return True
    return temporary in (Path(named), *Path(named).parents) or Path(named) in temporary.parents


def _room(temporary: Path) -> str:
    """How much was written and how much room there is, and what to do."""
    place = next(parent for parent in temporary.parents if parent.exists())
    written = temporary.stat().st_size if temporary.is_file() else 0
    free = shutil.disk_usage(place).free
    return (
        f" ({written / 2**20:,.1f} MiB of it were written, {free / 2**20:,.1f} MiB are free). What was finished before "
        "is kept: put that right, and the same command goes on"
    )


_NOT_ON_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


def _put_on_disk(path: Path) -> None:
    """Wait until the disk has a file's content, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_ON_FOLDERS or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def _put_all_on_disk(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in names:
            _put_on_disk(Path(place, name))
        _put_on_disk(Path(place))


def _make_folder(folder: Path, lasting: bool) -> None:
    """Make a folder and those above it."""
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()] if lasting else []
    folder.mkdir(parents=True, exist_ok=True)
    for parent in reversed(made):
        _put_on_disk(parent.parent)


@contextlib.contextmanager
def atomic_path(path: Path, lasting: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with the same suffix. The temporary file replaces `path` when the block
    ends without an exception, and is deleted otherwise. Raises WriteRefused where the system refuses the write.

    lasting: whether the file has to outlast a power loss; False for one whose readers take a broken file for none.
    """
    temporary = _hidden(path.parent, path.stem, f"tmp{path.suffix}")
    try:
        with refusals_explained(path, temporary):
            _make_folder(path.parent, lasting)
            yield temporary
            if lasting:
                _put_on_disk(temporary)
            os.replace(temporary, path)
            if lasting:
                _put_on_disk(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # it is swept when the lease is taken
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`. It replaces `path` when the block ends without an exception, and is
    deleted otherwise; then `path` stays as it was. Raises WriteRefused where the system refuses a write."""
    temporary = _hidden(path.parent, path.name, "tmp")
    try:
        with refusals_explained(path, temporary):
            _make_folder(path.parent, lasting=True)
            temporary.mkdir()
            yield temporary
            _put_all_on_disk(temporary)
            if path.exists():
                old = _exchanged(path, temporary)
                _put_on_disk(path.parent)
                _dropped(old, path)
            else:
                os.replace(temporary, path)
                _put_on_disk(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _exchanged(path: Path, temporary: Path) -> Path:
    """Put the folder `temporary` in the place of `path`. Returns where the latter is now."""
    old = _hidden(path.parent, path.name, "old")
    with refusals_explained(path, path), refusals_explained(path, old):
        os.replace(path, old)
        try:
            os.replace(temporary, path)
        except OSError:
            os.replace(old, path)
            raise
    return old


def _dropped(old: Path, path: Path) -> None:
    """Delete the folder whose place `path` another one took. What cannot be deleted is swept when a lease is taken; a
    part of it is never put back, as `old` could be."""
    gone = _hidden(path.parent, path.name, "tmp")
    with contextlib.suppress(OSError):
        os.replace(old, gone)
        shutil.rmtree(gone, ignore_errors=True)


_LEFTOVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.(?P<what>tmp|old)(\..+)?", re.DOTALL)


def _hidden(folder: Path, name: str, what: str) -> Path:
    return folder / f".{name}.{secrets.token_hex(4)}.{what}"


def sweep_leftovers(folder: Path, min_age_s: float = 0.0, deep: bool = True) -> int:
    """Delete the temporary files and folders that killed processes left below `folder`. Returns how many there were.

    An old folder whose successor was not put in its place yet is put back.

    Args:
        folder: Where nobody may be writing what is younger than `min_age_s`.
        min_age_s: Seconds since the file was written.
        deep: Whether to look into the folders below.
    """
    num_swept = 0
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            found = _LEFTOVER.fullmatch(name)
            if found and _age_s(Path(place, name)) >= min_age_s:
                _sweep(Path(place, name), found)
                num_swept += 1
        folders[:] = [name for name in folders if deep and not _LEFTOVER.fullmatch(name)]
    return num_swept


def _age_s(path: Path) -> float:
    """Seconds since a file or folder was written; less than any age where it is gone by now."""
    try:
        return time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return -math.inf


def _sweep(path: Path, found: re.Match[str]) -> None:
    successor = path.with_name(found["name"])
    if found["what"] == "old" and not successor.exists():
        path.rename(successor)
    elif path.is_dir():  # what somebody has open on a network disk stays until the next sweep, and stops nothing
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def read_json(path: Path, errors: str = "strict") -> Any:
    """Read a JSON file, with or without the mark of UTF-8 at its start. Raises ValueError, naming the file, when it is
    not valid JSON. errors: what becomes of a byte that is not UTF-8, as `open` says it."""
    try:
        return parsed_json(path.read_text(encoding="utf-8-sig", errors=errors))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def write_json(path: Path, value: Any, lasting: bool = True) -> None:
    """Write `value` as indented JSON with sorted keys. The write is atomic; `lasting` is that of `atomic_path`."""
    text = json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True)
    with atomic_path(path, lasting) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_json_array(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write `rows` as one JSON array on a single line. Rows are encoded one at a time, so that files with thousands of
    rows take little memory."""
    encoder = json.JSONEncoder(ensure_ascii=False, sort_keys=True)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        out.write("[")
        out.writelines(f"{', ' if i else ''}{encoder.encode(row)}" for i, row in enumerate(rows))
        out.write("]\n")


def read_jsonl(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text) for each line that is not blank, without the mark of UTF-8 at the file's start.

    The caller parses the text, because a line that cannot be parsed still becomes a row. A byte that is not UTF-8
    becomes half of a surrogate pair (`rows.texts.half_character`).
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, line


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line. The write is atomic."""
    encoder = json.JSONEncoder(ensure_ascii=False)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        out.writelines(encoder.encode(row) + "\n" for row in rows)


def append_lines(path: Path, lines: str) -> None:
    """Append lines, each with its line break; the disk has them when this returns. A line that a killed process left
    without its end is ended first, so that it costs no other one. Raises WriteRefused where the system refuses the
    write."""
    with refusals_explained(path, path):
        _make_folder(path.parent, lasting=True)
        is_new = not path.exists()
        _, unended = unended_line(path)
        with path.open("ab") as file:
            file.write((b"\n" if unended else b"") + lines.encode())
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            _put_on_disk(path.parent)


def unended_line(path: Path) -> tuple[int, bytes]:
    """Where a last line without its line break begins, in bytes, and the line itself. Where there is none, or no file:
    the file's size, and nothing."""
    if not path.exists():
        return 0, b""
    with path.open("rb") as file:
        start, line = file.seek(0, os.SEEK_END), b""
        while start and b"\n" not in line:
            size = min(start, 8192)
            start = file.seek(start - size)
            line = file.read(size) + line
    found = line.rfind(b"\n") + 1
    return start + found, line[found:]


def digest_file(path: Path) -> str:
    """The first 32 hex digits of the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


CHANGED = "changed while the build was reading it; when it is written completely, build again with --retry-failed"


@dataclass(frozen=True)
class FileStamp:
    """Path, size in bytes and modification time in nanoseconds of a file: enough to notice a change without reading the
    file."""

    path: str
    bytes: int | None
    mtime_ns: int | None

    def check(self) -> None:
        """Raise ValueError when the file has changed since the stamp was taken. A stamp without a size or a time is
        never checked."""
        if self.bytes is not None and self.mtime_ns is not None and read_stamp(Path(self.path)) != self:
            raise ValueError(f"{Path(self.path).name} {CHANGED}")


def file_state(path: Path) -> list[int]:
    """What tells a file from any other that had or will have its name, without reading it: size, time, and inode, which
    differs between two writes within the clock's resolution. Empty where there is no file."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return []
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def read_stamp(path: Path) -> FileStamp:
    """Take the stamp of a file as it is now."""
    stat = path.stat()
    return FileStamp(str(path), stat.st_size, stat.st_mtime_ns)


def digest_stable_file(path: Path, num_tries: int = 3) -> tuple[FileStamp, str]:
    """Return a file's stamp and the digest of exactly the content that had this stamp.

    The file is read again when it changed during the reading. If it changes in each of `num_tries` readings, the result
    is the last digest with the stamp from before that reading, so that the next plan reads the file again.
    """
    for _ in range(num_tries):
        stamp = read_stamp(path)
        digest = digest_file(path)
        if read_stamp(path) == stamp:
            break
    return stamp, digest
