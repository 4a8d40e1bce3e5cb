"""Reads moments from VERIFIED FIG annotations, which have one JSON object per line. `folder` reads CSV files.

The text of a refused line is part of the version of its row: if a message here changes, these rows are made again.
"""

from __future__ import annotations

import functools
import glob
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vsr1_core.datasets.benchmarks import BENCHMARKS
from vsr1_core.media.suffixes import VIDEO_SUFFIXES
from vsr1_core.rows.files import read_json, read_jsonl
from vsr1_core.rows.texts import half_character, parsed_json, visible
from vsr1_core.rows.versions import fingerprint

SAVE_AS_UTF8 = "; save the file as UTF-8, for example: iconv -f cp1252 -t utf-8 OLD > NEW"
_SPLITS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
"""Other spellings of the three splits, in lower case."""


def split_of(name: str) -> str:
    """The split that a row names: the usual spellings of train, val and test are one split, any other name is its
    own."""
    return _SPLITS.get(name.strip().lower(), name.strip())


@dataclass(frozen=True)
class Moment:
    """One annotated query and its moment. Times are in seconds of the video, with 0 <= start_s < end_s <= duration_s.

    plain_query: the coarse query (`cog_desc`); the same as `query` if there is none. duration_s: the annotated duration
    of the video; None when the annotation does not say it. clamped: whether the annotated span reached beyond the
    duration and was cut.
    """

    query_id: str
    split: str
    query: str
    plain_query: str
    video_id: str
    start_s: float
    end_s: float
    duration_s: float | None
    clamped: bool

    @property
    def version(self) -> str:
        return fingerprint(vars(self))

    def within(self, duration_s: float | None) -> Moment:
        """The moment in a video of `duration_s` seconds, with its end clamped to the video. Raises ValueError when the
        moment begins after the video's end."""
        if duration_s is None:
            return self
        if self.start_s >= duration_s:
            span = f"[{self.start_s:g}, {self.end_s:g}] s"
            raise ValueError(f"the span {span} begins after the video's end ({duration_s:g} s)")
        clamped = self.end_s > duration_s
        end_s = duration_s if clamped else self.end_s
        who = (self.query_id, self.split, self.query, self.plain_query, self.video_id)
        return Moment(*who, self.start_s, end_s, duration_s, clamped)  # `replace` takes twice as long


@dataclass(frozen=True)
class BadLine:
    """A line that is not a valid moment. `query_id` is `<file>:<line>`, and `reason` is the message for the user."""

    query_id: str
    reason: str

    @property
    def version(self) -> str:
        return fingerprint([self.query_id, self.reason])


def annotation_paths(name: str, folder: Path) -> dict[Path, str]:
    """Map each annotation file that the dataset should have -> its split, in the order train, val, test.

    A dataset that is not one of the benchmarks has files named `<name>_fig_<split>.jsonl`, or, where there are none of
    its own name, files of one other name. Raises FileNotFoundError, which says which files to put where, when none of
    the files exists, and ValueError when several names could be meant. If only some files are missing, the caller
    reports them.
    """
    if name in BENCHMARKS:
        names = BENCHMARKS[name].splits
    else:
        prefix = _prefix_of(name, folder)
        names = {p.name: _split_of(p, prefix) for p in sorted(folder.glob(f"{glob.escape(prefix)}_fig_*.jsonl"))}
    paths = {folder / file: split for file, split in names.items()}
    if not any(path.is_file() for path in paths):
        wanted = ", ".join(names) or f"{name}_fig_train.jsonl, {name}_fig_val.jsonl, {name}_fig_test.jsonl"
        raise FileNotFoundError(
            f"dataset {name!r} has no annotations: put {wanted} (VERIFIED FIG) into {folder}, or register the folder "
            f"that holds them with: vsr1 dataset add {name} --annotations FOLDER --videos FOLDER. "
            f"Their sources are listed by: vsr1 dataset show {name}"
        )
    order = ("train", "val", "test")
    return dict(sorted(paths.items(), key=lambda item: order.index(item[1]) if item[1] in order else len(order)))


def _prefix_of(name: str, folder: Path) -> str:
    """What stands before `_fig_` in the names of a dataset's files: its own name, or the only other one."""
    found = sorted({path.name.partition("_fig_")[0] for path in folder.glob("*_fig_*.jsonl")})
    if name in found or not found:
        return name
    if len(found) > 1:
        raise ValueError(
            f"{folder} has files of several datasets ({', '.join(found)}) and none called {name}_fig_<split>.jsonl: "
            "put those of one dataset into a folder of their own"
        )
    return found[0]


def _split_of(path: Path, name: str) -> str:
    word = path.stem.removeprefix(f"{name}_fig_")
    return {"val_1": "val", "val_2": "test"}.get(word, word)


def missing_file_error(path: Path) -> str:
    """The message for one missing annotation file."""
    return f"{path.name} is not there: put it (VERIFIED FIG) into {path.parent}, or go on without this split"


@functools.lru_cache(maxsize=8)
def parsed_fig(path: Path, split: str, digest: str) -> tuple[tuple[str, Moment | BadLine], ...]:
    """The (place, row) pairs of a file. They are cached by the digest of its content: a build needs them several times,
    a process that watches the files needs them at every check, and parsing takes a hundred times as long as hashing.
    """
    return tuple(read_fig(path, split))


def read_fig(path: Path, split: str) -> Iterator[tuple[str, Moment | BadLine]]:
    """Yield (`<file>:<line>`, moment) for each line of a file that is not blank, in order. A line that is not a valid
    moment becomes a BadLine."""
    for number, line in read_jsonl(path):
        place = f"{path.name}:{number}"
        try:
            yield place, fig_moment(parsed_json(line), split)
        except json.JSONDecodeError as error:
            yield place, BadLine(place, f"{place} is not valid JSON ({error.msg} at column {error.colno})")
        except ValueError as error:
            yield place, BadLine(place, f"{place}: {visible(str(error))}")


def read_fig_array(path: Path, split: str) -> Iterator[tuple[str, Moment | BadLine]]:
    """Yield (`<file>:<number of the item>`, moment) for a file that is one JSON array of objects. Raises ValueError if
    it is not valid JSON."""
    for number, fields in enumerate(read_json(path, errors="surrogateescape"), 1):
        place = f"{path.name}:{number}"
        try:
            yield place, fig_moment(fields, split)
        except ValueError as error:
            yield place, BadLine(place, f"{place}: {visible(str(error))}")


def fig_moment(fields: Any, split: str) -> Moment:
    """Convert one object of the FIG schema to a moment. Raises ValueError, which names the wrong field."""
    if not isinstance(fields, Mapping):
        raise ValueError("expected an object with video, time, desc_id, duration, cog_desc, fig_desc")
    query = text_of(fields, "fig_desc")
    desc_id = fields.get("desc_id")
    if isinstance(desc_id, bool) or not isinstance(desc_id, int | str) or desc_id == "":
        raise ValueError(f"desc_id must be a number or a text, got {desc_id!r}")
    time = fields.get("time")
    if not isinstance(time, list | tuple) or len(time) != 2:
        raise ValueError(f"time must be [start, end] in seconds, got {time!r}")
    duration = fields.get("duration")
    return make_moment(
        query_id=whole_text(f"{desc_id}_fig", "desc_id"),
        split=split_of(whole_text(str(fields.get("split") or ""), "split") or split),
        query=query,
        plain_query=whole_text(str(fields.get("cog_desc") or ""), "cog_desc") or query,
        video=text_of(fields, "video"),
        span=(time[0], time[1]),
        duration=duration,
    )


def fig_fields(moment: Mapping[str, Any]) -> dict[str, Any]:
    """The object of the FIG schema from which `fig_moment` reads the same moment, given by the fields of `Moment`."""
    known = {} if moment["duration_s"] is None else {"duration": moment["duration_s"]}
    return {
        "video": moment["video_id"],
        "time": [moment["start_s"], moment["end_s"]],
        "desc_id": moment["query_id"].removesuffix("_fig"),
        **known,
        "cog_desc": moment["plain_query"],
        "fig_desc": moment["query"],
    }


def text_of(fields: Mapping[str, Any], name: str) -> str:
    """The stripped text of a required field. Raises ValueError when it is missing, blank or not a text."""
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} must be a text, got {value!r}")
    return whole_text(value, name)


def whole_text(value: str, name: str) -> str:
    """The stripped text. Raises ValueError, which calls the value `name`, if it contains half of a character, which no
    table can hold."""
    problem = half_character(value)
    if problem:
        raise ValueError(f"{name}: {problem}{SAVE_AS_UTF8 if 'not UTF-8' in problem else ''}")
    return value.strip()


def make_moment(
    *, query_id: str, split: str, query: str, plain_query: str, video: str, span: tuple[Any, Any], duration: Any
) -> Moment:
    """Make a moment after checking its span and clamping it to the video. `span` and `duration` are in seconds, as
    numbers or texts. Raises ValueError for a span that is negative, reversed, empty or entirely outside the video."""
    start_s, end_s = seconds(span[0], "start"), seconds(span[1], "end")
    if start_s < 0 or end_s <= start_s:
        raise ValueError(f"the span [{start_s:g}, {end_s:g}] s is negative, reversed or empty")
    moment = Moment(query_id, split, query, plain_query, video_id_of(video), start_s, end_s, None, False)
    return moment.within(None if duration in (None, "") else seconds(duration, "duration"))


def seconds(value: Any, name: str) -> float:
    """Convert a value from JSON or CSV to a finite number of seconds; `mm:ss` and `hh:mm:ss` are times, too. Raises
    ValueError, which calls the value `name`, when that is not possible."""
    try:
        on_clock = _of_clock(value)
        number = math.nan if isinstance(value, bool) else float(value) if on_clock is None else on_clock
    except (TypeError, ValueError, OverflowError):  # the last one is for a whole number of hundreds of digits
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a number of seconds, got {value!r}")
    return number


_CLOCK = re.compile(r"(?:(\d{1,3}):)?(\d{1,2}):([0-5]?\d(?:\.\d+)?)")


def _of_clock(value: Any) -> float | None:
    """The seconds of a text like `1:02:03.5` or `2:03`; None for any other value."""
    found = _CLOCK.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        return None
    hours, minutes, rest = found.groups()
    return 3600 * int(hours or 0) + 60 * int(minutes) + float(rest)


@functools.lru_cache(maxsize=1 << 15)
def video_id_of(video: str) -> str:
    """The video id that a `video` field stands for: its path without a video suffix, with `/` between folders."""
    if not any(mark in video for mark in "./\\"):
        return video.strip()
    path = PurePosixPath(video.strip().replace("\\", "/"))
    known = path.suffix.lower() in VIDEO_SUFFIXES
    return str(path.with_suffix("")) if known else str(path)


def without_duplicates(rows: Iterable[tuple[str, Moment | BadLine]]) -> dict[str, Moment | BadLine]:
    """Convert (place, row) pairs to a mapping id -> row. A second row with the same id becomes a BadLine whose id is
    its place."""
    found: dict[str, Moment | BadLine] = {}
    places: dict[str, str] = {}
    for place, row in rows:
        query_id = row.query_id
        if query_id in found:
            found[place] = BadLine(place, f"{place}: the id {query_id!r} was used before, at {places[query_id]}")
        else:
            found[query_id], places[query_id] = row, place
    return found
