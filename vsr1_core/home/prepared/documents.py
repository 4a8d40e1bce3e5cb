"""Documents of a prepared folder: how their lines are read, and how what is wrong with them is collected and named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vsr1_core.rows.files import read_jsonl
from vsr1_core.rows.texts import check_text, parsed_json

MAX_NAMED = 20


class PreparedError(ValueError):
    """The folder cannot be imported. The message names each file and what is wrong with it."""


@dataclass
class Problems:
    """What was found in the files of a folder.

    lines: the problems, for which the folder is refused. notes: what is missing or left out, and can be made here.
    """

    root: Path
    lines: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, path: Path, what: str) -> None:
        """Add a problem of the file `path`."""
        self.lines.append(f"{self._named(path)}: {what}")

    def note(self, path: Path, what: str) -> None:
        """Add a note about the file `path`."""
        self.notes.append(f"{self._named(path)}: {what}")

    def _named(self, path: Path) -> Path:
        return path.relative_to(self.root) if path.is_relative_to(self.root) else path

    def raise_if_any(self) -> None:
        """Raise PreparedError with the first 20 problems, if there are any."""
        if not self.lines:
            return
        named = self.lines[:MAX_NAMED]
        named += [f"and {len(self.lines) - MAX_NAMED:,} more"] if len(self.lines) > MAX_NAMED else []
        raise PreparedError("\n".join([f"{self.root} was not imported, and nothing was changed:", *named]))


@dataclass(frozen=True)
class Line:
    """One line of an imported document: the id of its row, and its JSON text. is_held: whether a row is made of it."""

    row_id: str
    record: str
    is_held: bool = True


def is_file_name(video_id: str) -> bool:
    """Whether `<id>.npy` is the name of a plain file in a folder; ids come from untrusted files."""
    return bool(video_id) and not video_id.startswith(".") and not set(video_id) & set("/\\\0") and len(video_id) < 200


def some(names: Sequence[str]) -> str:
    """The first three of `names`."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def json_lines(path: Path, problems: Problems, strict: bool = True) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line of a JSONL file. With `strict`, a line that is no JSON object is a problem."""
    if not path.is_file():
        problems.add(path, "is not there")
        return
    for number, text in read_jsonl(path):
        try:
            fields = parsed_json(check_text(text), _without_repeats)
        except ValueError as error:
            fields = error
        if isinstance(fields, dict):
            yield number, fields
        elif strict:
            problems.add(path, f"line {number} is not a JSON object" + (f" ({fields})" if fields is not None else ""))


def read_document(path: Path, problems: Problems, kind: type[Any]) -> Any:
    """The JSON document at `path`; None, with a problem added, where it is missing, broken, or not a `kind`."""
    if not path.is_file():
        problems.add(path, "is not there")
        return None
    try:
        value = parsed_json(path.read_text(encoding="utf-8"), _without_repeats)
    except ValueError as error:
        problems.add(path, f"is not valid JSON, or is cut off ({error})")
        return None
    if not isinstance(value, kind):
        problems.add(path, f"must be a JSON {'object' if kind is dict else 'list'}")
        return None
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of these pairs. ValueError where a key repeats: the json module would silently keep the last value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} is there more than once")
    return found
