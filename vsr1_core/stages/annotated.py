"""What the annotation files say, as a table. Each file is parsed once for its content: its table is kept in the lake.

A plan of 100,000 queries of which one text changed would otherwise parse all files and make 100,000 objects. Builds
keep the tables, and plans, which write nothing, read them; without them, files are parsed.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from vsr1_core.datasets import sources
from vsr1_core.datasets.format import AnnotationFile
from vsr1_core.datasets.formats import get_format
from vsr1_core.datasets.line_table import IS_MOMENT, SCHEMA, line_tables
from vsr1_core.rows.files import atomic_path, check_name, digest_file
from vsr1_core.rows.merged import BLOCK_ROWS, regrouped, write_blocks
from vsr1_core.rows.texts import half_character
from vsr1_core.rows.versions import code_digest, fingerprint
from vsr1_core.stages.base import View

CODE = code_digest()
"""The code as it was loaded, whose tables are kept; Python decides as well what a text is without its spaces."""


def annotated_lines(view: View, columns: Sequence[str] = tuple(SCHEMA)) -> pl.DataFrame | None:
    """The lines of all annotation files in their order: their ids and these columns. None where that is not all there
    is to know of the moments: an id comes twice, there is no file, or the kind of dataset does not make its moments of
    files alone."""
    names, files = list(dict.fromkeys(["query_id", *columns])), _files(view)
    if not files or not all(map(_is_known, files)):
        return None
    tables = [pl.DataFrame(schema={name: SCHEMA[name] for name in names})]
    for file in files:
        table = _kept(_path(view, file), names)
        if table is None and (table := _parsed(view.entry.kind, file)) is None:
            return None
        tables.append(table[names])
    lines = pl.concat(tables)
    return None if lines["query_id"].n_unique() < lines.height else lines


def annotated_splits(view: View) -> pl.DataFrame | None:
    """`video_id` of all moments, each once and in the order of the lines, and its sorted `splits`; None as of
    `annotated_lines`."""
    lines = annotated_lines(view, ["video_id", "split", "reason"])
    if lines is None:
        return None
    pairs = lines.filter(IS_MOMENT).group_by("video_id", maintain_order=True)
    return pairs.agg(splits=pl.col("split").unique().sort())


def keep_lines(view: View) -> None:
    """Keep the table of each annotation file as it is now, and no others. A file is parsed anew for it.

    Tables outlast a power loss: Parquet has no checksums, so a page of zeros would be read as other lines.
    """
    wanted = {_path(view, file): file for file in _files(view) if _is_known(file)}
    for path, file in wanted.items():
        if _kept(path, ["query_id"]) is None:
            _keep(view.entry.kind, file, path)
    for path in _folder(view).glob("*.parquet"):
        if path not in wanted:
            path.unlink(missing_ok=True)


def _files(view: View) -> list[AnnotationFile]:
    return [file for file in sources.annotation_files(view.entry, view.config).values() if file.error is None]


def _is_known(file: AnnotationFile) -> bool:
    """Whether a digest stands for the file's content, and a table can hold its name."""
    return bool(file.digest) and half_character(file.file_id) is None


def _kept(path: Path, names: list[str]) -> pl.DataFrame | None:
    with contextlib.suppress(OSError, pl.exceptions.PolarsError):
        return pl.read_parquet(path, columns=names, glob=False, hive_partitioning=False)
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
