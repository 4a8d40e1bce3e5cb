"""What the annotation files say, as a table. Each file is parsed once for its content: its table is kept in the lake.

A plan of 100,000 queries of which one text changed would otherwise parse all files and make 100,000 objects. Builds
keep the tables, and plans, which write nothing, read them; without them, files are parsed.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from vsr1_core.datasets import sources
from vsr1_core.datasets.format import AnnotationFile
from vsr1_core.datasets.formats import get_format
from vsr1_core.datasets.line_table import IS_MOMENT, SCHEMA, line_table
from vsr1_core.rows.files import atomic_path, check_name, digest_file
from vsr1_core.rows.texts import half_character
from vsr1_core.rows.versions import code_digest, fingerprint
from vsr1_core.stages.base import View

CODE = code_digest()
"""The code as it was loaded, whose tables are kept; Python decides as well what a text is without its spaces."""


def annotated_lines(view: View, columns: Sequence[str] = tuple(SCHEMA)) -> pl.DataFrame | None:
    """The lines of all annotation files in their order: their ids and these columns. None where that is not all there
    is to know of the moments: an id comes twice, or the kind of dataset does not make its moments of files alone. None
    also where no file is kept: all of them are parsed then, as moments."""
    names, files = list(dict.fromkeys(["query_id", *columns])), _files(view)
    if not all(map(_is_known, files)):
        return None
    kept = [_kept(_path(view, file), names) for file in files]
    if all(table is None for table in kept):
        return None
    tables = []
    for file, table in zip(files, kept, strict=True):
        if (found := _parsed(view.entry.kind, file) if table is None else table) is None:
            return None
        tables.append(found[names])
    lines = pl.concat(tables)
    return None if lines["query_id"].n_unique() < lines.height else lines


def annotated_splits(view: View) -> list[tuple[str, str]] | None:
    """(video_id, split) of all moments, each pair once and in the order of the lines; None as of `annotated_lines`."""
    lines = annotated_lines(view, ["video_id", "split", "reason"])
    if lines is None:
        return None
    return lines.filter(IS_MOMENT).select("video_id", "split").unique(maintain_order=True).rows()


def keep_lines(view: View) -> None:
    """Keep the table of each annotation file as it is now, and no others. A file is parsed anew for it.

    Tables outlast a power loss: Parquet has no checksums, so a page of zeros would be read as other lines.
    """
    wanted = {_path(view, file): file for file in _files(view) if _is_known(file)}
    for path, file in wanted.items():
        if _kept(path, ["query_id"]) is None:
            table = _made(view.entry.kind, file)
            if table is not None:
                with atomic_path(path) as temporary:
                    table.write_parquet(temporary)
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


def _made(kind: str, file: AnnotationFile) -> pl.DataFrame | None:
    """The table of a file; None where there is none, or where the file changed meanwhile: under the digest of another
    content it would be taken for that content for ever."""
    lines = get_format(kind).lines_of(file)
    table = None if lines is None else line_table(lines)
    return table if digest_file(file.path) == file.digest else None


_parsed = functools.lru_cache(maxsize=8)(_made)
"""A plan asks three times for the lines of a file that moved."""


def _folder(view: View) -> Path:
    return view.lake.cache("annotations") / check_name(view.entry.name)


def _path(view: View, file: AnnotationFile) -> Path:
    """The place of the table of a file, which depends on all that its lines do."""
    name = fingerprint([CODE, sys.version, view.entry.kind, file.file_id, file.split, file.digest])
    return _folder(view) / f"{name}.parquet"
