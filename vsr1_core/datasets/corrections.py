"""Corrections of annotations: what people changed, in a file of the home beside the dataset's registration. The
published annotation files are never written.

Each line of `<home>/datasets/<corpus>/corrections.jsonl` is one correction, or the undoing of one. Lines are only ever
appended. A correction says what it found (`before`): where the annotation says something else by now, it is a conflict
and is not applied.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from vsr1_core.datasets.verified import BadLine, Moment
from vsr1_core.rows.files import append_lines, check_name, read_jsonl, refusals_explained, unended_line
from vsr1_core.rows.texts import check_text, parsed_json
from vsr1_core.rows.versions import fingerprint

Action = Literal["change", "add", "reject", "undo"]
State = Literal["applied", "in the annotation", "conflict", "undone"]
ACTIONS: tuple[Action, ...] = ("change", "add", "reject", "undo")
_NO_TEXTS = ("before", "after", "start_s", "end_s")


@dataclass(frozen=True)
class Annotated:
    """The part of a moment that a person can correct. Times are in seconds of the video."""

    query: str
    video_id: str
    start_s: float
    end_s: float
    split: str

    @classmethod
    def of(cls, moment: Moment | BadLine | None) -> Annotated | None:
        """What a moment says; None where there is none."""
        if not isinstance(moment, Moment):
            return None
        return cls(moment.query, moment.video_id, moment.start_s, moment.end_s, moment.split)


@dataclass(frozen=True)
class Correction:
    """One line of the file.

    correction_id: for an undoing, the id of its own. who, when: the person's name, and the time in UTC. before: what
    the query said; None for an added one. after: what it is to say; None for a rejected one. undoes: the id of the
    correction that is undone.
    """

    correction_id: str
    who: str
    when: str
    action: Action
    query_id: str
    before: Annotated | None = None
    after: Annotated | None = None
    undoes: str = ""

    @classmethod
    def made(cls, who: str, action: Action, query_id: str, **values: Any) -> Correction:
        """A correction that is made now, with a new id."""
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        return cls(secrets.token_hex(5), who, now, action, query_id, **values)


@dataclass(frozen=True)
class Judged:
    """A correction and what became of it. detail: why it is not applied, and what to do; empty where it is."""

    correction: Correction
    state: State
    detail: str = ""


@dataclass
class Corrected:
    """Moments with corrections applied.

    moments: query id -> moment, without rejected ones. versions: query id -> version of what corrections made of it.
    judged: every correction in the order of the file.
    """

    moments: dict[str, Moment | BadLine]
    versions: dict[str, str] = field(default_factory=dict)
    rejected: set[str] = field(default_factory=set)
    judged: list[Judged] = field(default_factory=list)


def corrections_path(home: Path, corpus: str) -> Path:
    """The file of the corrections of a corpus; it is missing until the first one."""
    return home / "datasets" / check_name(corpus) / "corrections.jsonl"


def read_corrections(path: Path) -> list[Correction]:
    """All lines of the file, oldest first; none where it is missing. A last line that a killed process left without its
    end is none: nobody was told that it is there.

    Raises:
        ValueError: A line is no correction; the message names the file and the line.
    """
    if not path.is_file():
        return []
    lines = list(read_jsonl(path))
    _, unended = unended_line(path)
    if unended.strip() and _is_cut_off(unended):
        lines.pop()
    return [_parsed(path, number, line) for number, line in lines]


def _is_cut_off(unended: bytes) -> bool:
    """Whether a line without its line break is the beginning of one. A whole object with a mistake in it is none, and
    is complained about."""
    text = unended.decode("utf-8-sig", errors="replace").rstrip()
    try:
        parsed_json(text)
    except json.JSONDecodeError as error:
        return not text.endswith("}") or error.pos == len(text)  # it may be cut behind the end of an inner object
    except ValueError:
        return False
    return not text.endswith("}")


def _whole_size(path: Path) -> int:
    """Bytes of the file without a last line that is cut off."""
    start, unended = unended_line(path)
    return start if _is_cut_off(unended) else start + len(unended)


def _parsed(path: Path, number: int, line: str) -> Correction:
    try:
        fields = dict(parsed_json(line))
        spans = {name: Annotated(**fields.pop(name)) for name in ("before", "after") if fields.get(name) is not None}
        correction = Correction(**{**fields, **spans})
        _check(correction)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path}, line {number} is no correction ({error}); put it right or delete the line"
        ) from error
    return correction


def _check(correction: Correction) -> None:
    """Raise ValueError for a value that no correction has: files may be edited by hand."""
    if correction.action not in ACTIONS:
        raise ValueError(f"the action {correction.action!r} is not one of {', '.join(ACTIONS)}")
    spans = [part for part in (correction.before, correction.after) if part is not None]
    for name, value in (item for part in (correction, *spans) for item in vars(part).items()):
        if name not in _NO_TEXTS and not isinstance(value, str):
            raise ValueError(f"{name} must be a text, got {value!r}")
        check_text(str(value))
    for part in spans:
        if not 0 <= part.start_s < part.end_s < math.inf:
            raise ValueError(f"the span [{part.start_s}, {part.end_s}] s is negative, reversed or empty")


@contextlib.contextmanager
def appending(path: Path) -> Iterator[list[Correction]]:
    """For the block, as the only writer: the corrections that there are. What the block adds to the list is appended to
    the file and reaches the disk before this returns; nothing is written where the block raises. Raises WriteRefused
    where the system refuses the write."""
    lock_path = path.with_suffix(".lock")
    with refusals_explained(path, lock_path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_path.open("a")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = read_corrections(path)
        listed = list(known)
        yield listed
        if added := listed[len(known) :]:
            _append(path, added)


def _append(path: Path, added: Iterable[Correction]) -> None:
    size = _whole_size(path)
    try:
        if path.exists() and size < path.stat().st_size:
            with refusals_explained(path, path):
                os.truncate(path, size)
        append_lines(path, "".join(json.dumps(_fields(one), ensure_ascii=False) + "\n" for one in added))
    except OSError:
        with contextlib.suppress(OSError):  # what was refused is not half there
            os.truncate(path, size)
        raise


def _fields(correction: Correction) -> dict[str, Any]:
    """The fields of a line, without those that say nothing."""
    return {name: value for name, value in dataclasses.asdict(correction).items() if value not in (None, "")}


def corrected(moments: Mapping[str, Moment | BadLine], corrections: Iterable[Correction]) -> Corrected:
    """Apply corrections, oldest first, to what the annotation files say."""
    listed = list(corrections)
    undone = {one.undoes for one in listed if one.action == "undo"}
    found = Corrected(dict(moments))
    for one in listed:
        if one.action == "undo":
            continue
        found.judged.append(Judged(one, "undone") if one.correction_id in undone else _apply(found, one))
    return found


def _apply(found: Corrected, one: Correction) -> Judged:
    moment = found.moments.get(one.query_id)
    now = Annotated.of(moment)
    if now == one.after and one.query_id not in found.versions:
        return Judged(one, "in the annotation", "the annotation says the same by now; nothing is changed")
    if now != one.before:
        return Judged(one, "conflict", _conflict(one, now))
    if one.after is None:
        del found.moments[one.query_id]
        found.rejected.add(one.query_id)
        found.versions.pop(one.query_id, None)
        return Judged(one, "applied")
    try:
        found.moments[one.query_id] = _moment(one.query_id, moment, one.after)
    except ValueError as error:
        return Judged(one, "conflict", f"{error}; undo it: vsr1 corrections undo {one.correction_id}")
    found.rejected.discard(one.query_id)
    found.versions[one.query_id] = fingerprint(dataclasses.asdict(one.after))
    return Judged(one, "applied")


def _conflict(one: Correction, now: Annotated | None) -> str:
    if now is None:
        what = "the annotation has no such query (any more)"
    elif one.before is None:
        what = "a query of this id was annotated since"
    else:
        old, new = dataclasses.asdict(one.before), dataclasses.asdict(now)
        what = "the annotation changed since: " + ", ".join(
            f"{name} was {old[name]!r} and is {new[name]!r}" for name in old if old[name] != new[name]
        )
    return f"{what}; undo it, and correct the query anew where that is still needed"


def _moment(query_id: str, moment: Moment | BadLine | None, after: Annotated) -> Moment:
    """The moment that a correction makes. The annotated length of a video holds as long as the video is the same."""
    old = moment if isinstance(moment, Moment) else None
    is_own_text = old is None or old.plain_query == old.query
    plain = after.query if old is None or is_own_text else old.plain_query
    duration_s = old.duration_s if old is not None and old.video_id == after.video_id else None
    span = (after.start_s, after.end_s)
    made = Moment(query_id, after.split, after.query, plain, after.video_id, *span, None, clamped=False)
    return made.within(duration_s)
