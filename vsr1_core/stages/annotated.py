"""What the annotation files say, as a table. Each file is parsed once for its content: its table is kept in the lake.

A plan of 100,000 queries of which one text changed would otherwise parse all files and make 100,000 objects. Builds
keep the tables, and plans, which write nothing, read them; without them, files are parsed.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import polars as pl

from vsr1_core.datasets import sources
from vsr1_core.datasets.format import AnnotationFile
from vsr1_core.datasets.formats import get_format
from vsr1_core.datasets.line_table import IS_MOMENT, SCHEMA, line_tables
from vsr1_core.rows.files import atomic_path, check_name, digest_file
from vsr1_core.rows.frames import has_repeated, regrouped
from vsr1_core.rows.merged import BLOCK_ROWS, is_among, write_blocks
from vsr1_core.rows.packed import Packed, packed
from vsr1_core.rows.texts import half_character
from vsr1_core.rows.unreadable import scanned
from vsr1_core.rows.versions import code_digest, fingerprint
from vsr1_core.stages.base import View
from vsr1_core.stages.kept_ids import has_hashed_ids

GROUPED_LINES = 16384
Value = TypeVar("Value")
CODE = code_digest()
"""The code as it was loaded, whose tables are kept; Python decides as well what a text is without its spaces."""


def annotated_lines(view: View, columns: Sequence[str] = tuple(SCHEMA)) -> pl.DataFrame | None:
    """The lines of all annotation files in their order: their ids and these columns. None where that is not all there
    is to know of the moments: an id comes twice, there is no file, or the kind of dataset does not make its moments of
    files alone."""
    names = list(dict.fromkeys(["query_id", *columns]))
    found = _read(view, lambda table: table.select(names).collect())
    return None if found is None or has_repeated((lines := pl.concat(found))["query_id"]) else lines


def packed_lines(view: View) -> pl.DataFrame | Packed | None:
    """`annotated_lines`, few of which are spelled out at a time."""
    found = _read(view, lambda table: packed(_slices(table, tuple(SCHEMA))))
    if found is None:
        return None
    slices = (of_file.iter_slices() for of_file in found)  # none of a file without lines
    lines = packed(itertools.chain([pl.DataFrame(schema=SCHEMA)], *slices))
    return None if has_repeated(lines.to_series(0)) else lines


def lines_with(view: View, ids: Collection[str]) -> pl.DataFrame | None:
    """The lines with these ids, without a look at what others say; None as of `annotated_lines`, and where an id may be
    that of an earlier text."""
    every = annotated_lines(view, [])
    if every is None or has_hashed_ids(every["query_id"]):
        return None
    found = _read(view, lambda table: table.filter(is_among("query_id", ids)).select(*SCHEMA).collect())
    return None if found is None else pl.concat(found)


def annotated_splits(view: View) -> pl.DataFrame | None:
    """`video_id` of all moments, each once and in the order of the lines, and its sorted `splits`; None as of
    `annotated_lines`."""
    pairs = None if annotated_lines(view, []) is None else _read(view, _pairs)
    if pairs is None:
        return None
    by_video = pl.concat(pairs).group_by("video_id", maintain_order=True)
    return by_video.agg(splits=pl.col("split").unique().sort())


def _pairs(table: pl.LazyFrame) -> pl.DataFrame:
    """`video_id` and `split` of the moments of a file, and few pairs of them more than once. Groups of 100,000 lines
    would take 14 MB for a while, those of the pairs take 4."""
    moments = (some.filter(IS_MOMENT) for some in _slices(table, ("video_id", "split", "reason")))
    return pl.concat(some.select("video_id", "split").unique(maintain_order=True) for some in moments)


def _slices(table: pl.LazyFrame, names: Sequence[str]) -> Iterator[pl.DataFrame]:
    """These columns, some thousands of lines at a time: one frame or more."""
    yield pl.DataFrame(schema={name: SCHEMA[name] for name in names})
    for begin in range(0, table.select(pl.len()).collect().item(), GROUPED_LINES):
        yield table.slice(begin, GROUPED_LINES).select(names).collect()


def _read(view: View, read: Callable[[pl.LazyFrame], Value]) -> list[Value] | None:
    """What is read of the table of each file, one file after the other; None where there is no file, or no table of
    one."""
    files = _files(view)
    if not files or not all(map(_is_known, files)):
        return None
    found = []
    for file in files:
        of_file = _of_kept(_path(view, file), read)
        if of_file is None:
            if (table := _parsed(view.entry.kind, file)) is None:
                return None
            of_file = read(table.lazy())
        found.append(of_file)
    return found


def keep_lines(view: View) -> None:
    """Keep the table of each annotation file as it is now, and no others. A file is parsed anew for it.

    Tables outlast a power loss: Parquet has no checksums, so a page of zeros would be read as other lines.
    """
    wanted = {_path(view, file): file for file in _files(view) if _is_known(file)}
    for path, file in wanted.items():
        if _of_kept(path, lambda table: table.select("query_id").collect()) is None:
            _keep(view.entry.kind, file, path)
    for path in _folder(view).glob("*.parquet"):
        if path not in wanted:
            path.unlink(missing_ok=True)


def _files(view: View) -> list[AnnotationFile]:
    return [file for file in sources.annotation_files(view.entry, view.config).values() if file.error is None]


def _is_known(file: AnnotationFile) -> bool:
    """Whether a digest stands for the file's content, and a table can hold its name."""
    return bool(file.digest) and half_character(file.file_id) is None


def _of_kept(path: Path, read: Callable[[pl.LazyFrame], Value]) -> Value | None:
    """What is read of a kept table; None where it is not there, or damaged."""
    with contextlib.suppress(OSError, pl.exceptions.PolarsError):
        return read(scanned([path]))
    return None


class _Changed(Exception):
    """The file changed while it was parsed: under the digest of another content it would be taken for that content for
    ever."""


def _tables(kind: str, file: AnnotationFile) -> Iterator[pl.DataFrame]:
    """The table of a file, some thousands of lines at a time; nothing where there is none. Raises _Changed."""
    lines = get_format(kind).lines_of(file)
    if lines is not None:
        yield from line_tables(lines)
        if digest_file(file.path) != file.digest:
            raise _Changed


def _keep(kind: str, file: AnnotationFile, path: Path) -> None:
    tables = _tables(kind, file)
    with contextlib.suppress(_Changed, StopIteration):
        first = next(tables)
        with atomic_path(path) as temporary:
            write_blocks(temporary, regrouped(itertools.chain([first], tables), BLOCK_ROWS), SCHEMA)


def _made(kind: str, file: AnnotationFile) -> pl.DataFrame | None:
    """The table of a file; None where there is none, or where the file changed meanwhile."""
    with contextlib.suppress(_Changed):
        tables = list(_tables(kind, file))
        return pl.concat(tables) if tables else None
    return None


_parsed = functools.lru_cache(maxsize=8)(_made)
"""A plan asks three times for the lines of a file that moved."""


def _folder(view: View) -> Path:
    return view.lake.cache("annotations") / check_name(view.entry.name)


def _path(view: View, file: AnnotationFile) -> Path:
    """The place of the table of a file, which depends on all that its lines do."""
    name = fingerprint([CODE, sys.version, view.entry.kind, file.file_id, file.split, file.digest])
    return _folder(view) / f"{name}.parquet"
