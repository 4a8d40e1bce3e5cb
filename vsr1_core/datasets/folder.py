"""Reads a folder of videos: finds the files, and parses annotations in a CSV file. `verified` reads the FIG schema."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from vsr1_core.datasets.csv_lines import csv_records
from vsr1_core.datasets.verified import (
    BadLine,
    Moment,
    make_moment,
    read_fig,
    read_fig_array,
    split_of,
    text_of,
    video_id_of,
    whole_text,
)
from vsr1_core.media.suffixes import VIDEO_SUFFIXES
from vsr1_core.rows.blocks import blocks
from vsr1_core.rows.columnar import LazyRows
from vsr1_core.rows.files import read_jsonl
from vsr1_core.rows.texts import half_character, visible
from vsr1_core.rows.versions import fingerprint

REQUIRED = ("video", "start", "end", "query")
OPTIONAL = ("id", "split", "duration")


def find_videos(folder: Path, *, by_name: bool = False) -> Mapping[str, list[Path]]:
    """Search a folder and all its subfolders, and map video_id -> its files: one file, unless several have the same id.

    The id is the path below `folder` without its suffix; with `by_name` it is only the last part of this path. Bytes of
    a name that are not UTF-8 are spelled in the id (`name_error`). Hidden files and folders are skipped. Links to
    folders are followed as `_walked` says; a file behind one gives way to one of the same id that is not. Raises
    FileNotFoundError when the folder does not exist, and OSError when it, or a folder in it, cannot be read: the videos
    in there are not gone.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"the video folder {folder} is not there: create it and put the videos into it")
    found = pl.concat([pl.DataFrame(schema=_FOUND), *(_framed(some) for some in blocks(_videos(str(folder), by_name)))])
    if found["is_linked"].any():
        own = found.filter(~pl.col("is_linked"))
        linked = found.filter(pl.col("is_linked") & ~pl.col("video_id").is_in(own["video_id"].implode()))
        found = pl.concat([own, linked])
    folder_of = functools.lru_cache(maxsize=16)(lambda place: Path(os.fsdecode(place)))
    if found["video_id"].n_unique() == found.height:  # lists take three times as much memory
        by_id = found.drop("is_linked").sort("video_id")
        return LazyRows(by_id, lambda _, place, name: [folder_of(place) / os.fsdecode(name)], most_kept=1)
    return LazyRows(
        found.group_by("video_id", maintain_order=True).agg("place", "name").sort("video_id"),
        lambda _, places, names: [folder_of(a) / os.fsdecode(b) for a, b in zip(places, names, strict=True)],
        most_kept=1,
    )


_FOUND = {"video_id": pl.String, "place": pl.Binary, "name": pl.Binary, "is_linked": pl.Boolean}
"""Folders and names are kept as the system spells them, which need not be UTF-8."""


def _framed(found: Sequence[tuple[str, bytes, bytes, bool]]) -> pl.DataFrame:
    return pl.DataFrame(found, schema=_FOUND, orient="row")


def _videos(root: str, by_name: bool) -> Iterator[tuple[str, bytes, bytes, bool]]:
    """The id, folder and name of each video below a folder, and whether it is behind a link."""
    for below, place, entries, is_linked in _walked(root):
        prefix, spelled = "" if by_name else below, os.fsencode(place)
        for entry in entries:
            stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122
            if suffix.lower() in VIDEO_SUFFIXES and _is_so(entry.is_file):
                yield visible(prefix + stem), spelled, os.fsencode(entry.name), is_linked


def _walked(root: str) -> Iterator[tuple[str, str, list[os.DirEntry[str]], bool]]:
    """(path below `root` with a slash behind it, folder, what is in it, whether it is behind a link) for a folder and
    all below it.

    No folder is read twice, whatever leads to it: those that are below `root` without a link come first, then of links
    those whose target may contain that of another one. A link to a folder that contains `root` is not followed. So
    links in a circle end, and one to what is there already adds nothing.
    """
    top, read, waiting = os.path.realpath(root), set[str](), [(root, "")]
    while waiting:
        starts = sorted((len(target := os.path.realpath(path)), path, below, target) for path, below in waiting)
        waiting = []
        for _, start, first, target in starts:
            left = [(start, first)] if start == root or os.path.commonpath([target, top]) != target else []
            while left:
                place, below = left.pop()
                real = target + place[len(start) :]
                if real not in read:
                    read.add(real)
                    entries = _listed(place)
                    inside = [entry for entry in reversed(entries) if _is_so(entry.is_dir)]
                    for entry in inside:
                        (waiting if entry.is_symlink() else left).append((entry.path, f"{below}{entry.name}/"))
                    yield below, place, entries, start != root


def _listed(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder and not hidden, sorted by name. An entry knows what it is without a look at the disk."""
    try:
        with os.scandir(folder) as entries:
            return sorted((one for one in entries if not one.name.startswith(".")), key=lambda one: one.name)
    except OSError as error:
        if Path(folder).name == "lost+found":  # of a file system's root; only root may read it
            return []
        raise OSError(
            f"the video folder {folder} cannot be read ({error.strerror}): make it readable, or move it away",
        ) from error


def _is_so(asked: Callable[[], bool]) -> bool:
    """What the system says of an entry; no where it cannot say, as of a link that leads to itself."""
    try:
        return asked()
    except OSError:
        return False


def clash_error(video_id: str, paths: list[Path]) -> str:
    """The message for several files that have the same video id."""
    names = ", ".join(visible(str(p)) for p in paths)
    return f"{len(paths)} files have the same video id {video_id!r}: {names}; rename or remove all but one"


def name_error(paths: Sequence[Path]) -> str | None:
    """The message for a file whose path is not UTF-8, which no table can hold; None if all `paths` are."""
    for path in paths:
        problem = half_character(str(path))
        if problem:
            return f"the name of {visible(str(path))} cannot be stored: {problem}; rename the file"
    return None


def read_annotations(path: Path) -> Iterator[tuple[str, Moment | BadLine]]:
    """Yield (`<file>:<line>`, moment) from a `.csv` file, or from a `.jsonl` file in the FIG schema, which may also be
    one JSON array of the same objects. The split is `test` unless a row says otherwise. A line that is not a valid
    moment becomes a BadLine.

    Raises FileNotFoundError or ValueError when the file as a whole cannot be used.
    """
    if not path.is_file():
        raise FileNotFoundError(f"the annotation file {path} is not there")
    if path.suffix.lower() == ".csv":
        yield from _read_csv(path)
    elif path.suffix.lower() in (".jsonl", ".json", ".ndjson"):
        read = read_fig_array if _is_array(path) else read_fig
        yield from read(path, "test")
    else:
        raise ValueError(f"{path} must be a .jsonl file (FIG schema) or a .csv file with {', '.join(REQUIRED)}")


def _is_array(path: Path) -> bool:
    """Whether a JSON file begins with an array, and not with one object per line."""
    return next((line.lstrip().startswith("[") for _, line in read_jsonl(path)), False)


def _read_csv(path: Path) -> Iterator[tuple[str, Moment | BadLine]]:
    """Read a CSV file with the columns video, start, end and query (start and end in seconds), and optionally id, split
    and duration. The columns may be in any order and letter case."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        records = csv_records(file.readlines())
        header = _csv_header(path, next(records, (1, []))[1])
        seen: Counter[str] = Counter()
        whole: dict[tuple[Any, ...], str] = {}
        for number, cells in records:
            place = f"{path.name}:{number}"
            try:
                fields = _csv_fields(header, cells)
                moment = _csv_moment(fields, seen)
                if not fields.get("id", "").strip():
                    _refuse_twice(moment, place, whole)
                yield place, moment
            except ValueError as error:
                yield place, BadLine(place, f"{place}: {visible(str(error))}")


def _csv_header(path: Path, cells: list[str] | str) -> list[str]:
    """The names of the columns in lower case. Raises ValueError where they cannot be read, one is missing, or one that
    is read is there twice."""
    if isinstance(cells, str):
        raise ValueError(f"{path}, line 1: {cells}")
    header = [name.strip().lower() for name in cells]
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}; line 1 must name {', '.join(REQUIRED)}")
    twice = [name for name in (*REQUIRED, *OPTIONAL) if header.count(name) > 1]
    if twice:
        raise ValueError(f"{path} has more than one column {', '.join(twice)}; remove or rename all but one")
    return header


def _refuse_twice(moment: Moment, place: str, whole: dict[tuple[Any, ...], str]) -> None:
    """Raise ValueError for a line without an id that says the same as an earlier one: it would count twice."""
    said = (moment.video_id, moment.query, moment.split, moment.start_s, moment.end_s)
    if said in whole:
        raise ValueError(
            f"the line says the same as {whole[said]}: remove one of them, or give both an id in a column `id`"
        )
    whole[said] = place


def _csv_fields(header: Sequence[str], cells: list[str] | str) -> dict[str, str]:
    """Column -> cell. Raises ValueError for a line that cannot be split, or has cells beyond the last column."""
    if isinstance(cells, str):
        raise ValueError(cells)
    if any(cell.strip() for cell in cells[len(header) :]):
        raise ValueError(
            f"{len(cells)} cells for {len(header)} columns: put a text that contains a comma into double quotes"
        )
    return dict(zip(header, cells, strict=False))


def _csv_moment(fields: Mapping[str, str], seen: Counter[str]) -> Moment:
    """Convert one line to a moment. Without an id column, the id is computed from the video and the query and not from
    the span, so that a corrected span stays the same row. `seen` counts the ids, to number repeated ones."""
    video, query = text_of(fields, "video"), text_of(fields, "query")
    own_id = whole_text(fields.get("id", ""), "id")
    if not own_id:
        own_id = fingerprint([video_id_of(video), query])[:12]
        seen[own_id] += 1
        own_id += f"-{seen[own_id]}" if seen[own_id] > 1 else ""
    return make_moment(
        query_id=f"{own_id}_fig",
        split=split_of(whole_text(fields.get("split", ""), "split") or "test"),
        query=query,
        plain_query=query,
        video=video,
        span=(fields.get("start"), fields.get("end")),
        duration=fields.get("duration", "").strip() or None,
    )
