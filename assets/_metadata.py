"""Makes tables and pictures for the UI, as Markdown and PNG data URIs. It only shows values, and computes none."""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from vsr1_core.evaluation.markdown import escaped
from vsr1_core.rows.files import atomic_path, digest_file
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.table import BASE_COLUMNS, Table
from vsr1_core.rows.versions import fingerprint
from vsr1_core.stages.base import Stage

PICTURE_VERSION = 1
"""Increase it when a picture of the same values shall look different."""
_MAX_CELL = 60
_GAP = 2
"""Pixels between the frames of a contact sheet."""
_MAX_WIDTH = 1000
"""Pixels. On the screen of a laptop, the dialog of the UI cuts off a wider picture."""
_MAX_COLUMNS = 4
_MAX_TURNED = 2
"""How many rows stand side by side in a transposed table."""
_MAX_TURNED_CELL = 40
_MAX_REASON = 400
"""Characters. The reason of a failed row ends with what to do, so it is hardly ever cut."""


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]], max_cell: int = _MAX_CELL) -> str:
    """A Markdown table. Cells are shortened to `max_cell` characters, and their text cannot break the table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(cell(value, max_cell) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def cell(value: Any, max_cell: int = _MAX_CELL) -> str:
    """The text of `value` in a table cell: floats have 4 digits; long lists and texts are cut, paths at their start."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        inner = ", ".join(cell(item) for item in value[:3])
        return f"[{inner}, ... {len(value)} in all]" if len(value) > 3 else f"[{inner}]"
    text = "" if value is None else str(value)
    if len(text) > max_cell:
        text = "…" + text[1 - max_cell :] if text.startswith("/") and " " not in text else text[: max_cell - 1] + "…"
    return escaped(" ".join(text.split()))


def sample_table(table: Table, num_rows: int = 5) -> str:
    """The first ok rows as Markdown, without bookkeeping columns, without columns that are empty in all of these rows,
    and without nested tables (turns, curves), which would make a row as tall as a page. A wide table is transposed,
    because the UI cuts off columns that do not fit.
    """
    names = [name for name, dtype in table.schema.items() if name not in BASE_COLUMNS and not _is_table(dtype)]
    first = table.ok_rows([table.key])[table.key].head(num_rows).to_list()
    shown = without_empty_columns(table.rows(names, first))
    if not shown.height:
        return "No ok rows."
    if shown.width <= _MAX_COLUMNS:
        return markdown_table(shown.columns, shown.rows())
    shown = shown.head(_MAX_TURNED)
    values = {name: shown[name].to_list() for name in shown.columns}
    header = ["column", *values.pop(table.key)]
    return markdown_table(header, [(name, *of_rows) for name, of_rows in values.items()], _MAX_TURNED_CELL)


def _is_table(dtype: Any) -> bool:
    return isinstance(dtype, pl.Struct) or (isinstance(dtype, pl.List) and isinstance(dtype.inner, pl.Struct))


def without_empty_columns(frame: pl.DataFrame) -> pl.DataFrame:
    """`frame` without the columns that hold nothing but nulls."""
    return frame.select(column for column in frame if column.null_count() < frame.height)


def failure_table(table: Table, num_rows: int = 20) -> str:
    """The first failed rows and their reasons as Markdown; empty if no row failed."""
    frame = table.rows([table.key, "status", "error"]).filter(pl.col("status") != "ok")
    if frame.is_empty():
        return ""
    shown = markdown_table([table.key, "error"], frame.select(table.key, "error").head(num_rows).rows(), _MAX_REASON)
    return shown if frame.height <= num_rows else f"{shown}\n\n{frame.height:,} failed rows in all."


def reason_table(why: Mapping[str, int]) -> str:
    """Why rows ran, as a Markdown table with the most frequent reason first."""
    return markdown_table(["rows", "why"], [(number, reason) for reason, number in why.items()])


def column_schema(stage: Stage) -> dg.TableSchema:
    """The columns of a stage's table, bookkeeping last."""
    columns = {stage.key: pl.String, **stage.dtypes, **BASE_COLUMNS}
    return dg.TableSchema(
        columns=[dg.TableColumn(name, str(dtype), stage.meaning(name)) for name, dtype in columns.items()]
    )


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`; 0 if the folder does not exist."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a temporary file of another run, renamed meanwhile
                total += (Path(root) / name).stat().st_size
    return total


def picture(png: bytes, alt: str) -> dg.MetadataValue:
    """A PNG inside Markdown, so that the UI shows it without a file server."""
    return dg.MetadataValue.md(f"![{alt}]({_data_uri(png)})")


def drawn(lake: Lake, what: Any, draw: Callable[[], bytes]) -> bytes:
    """The PNG that `draw` makes, from the cache if it was drawn before: drawing takes most of the time of a build that
    has nothing to do. `what` is everything that the picture shows; its fingerprint is the key in the cache."""
    path = lake.cache("pictures") / f"{fingerprint([PICTURE_VERSION, what])}.png"
    if not path.exists():
        png = draw()
        with atomic_path(path) as temporary:
            temporary.write_bytes(png)
    return path.read_bytes()


def with_pictures(lake: Lake, markdown: str, folder: Path) -> dg.MetadataValue:
    """Markdown whose links to PNG files of `folder` are replaced by the pictures themselves."""
    for path in sorted(folder.glob("*.png")):
        link = f"]({path.name})"
        if link in markdown:
            png = drawn(lake, ["fitting", digest_file(path)], functools.partial(_fitting_file, path))
            markdown = markdown.replace(link, f"]({_data_uri(png)})")
    return dg.MetadataValue.md(markdown)


def _fitting_file(path: Path) -> bytes:
    return fitting(path.read_bytes())


def fitting(png: bytes) -> bytes:
    """The PNG, made smaller if it is too wide for the UI. The event log keeps a copy of it for each materialisation."""
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.thumbnail((_MAX_WIDTH, 10 * _MAX_WIDTH))
    return _png_of(image.quantize(128))


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def contact_sheet(paths: Sequence[str], num_columns: int = 8, cell_pixels: int = 96) -> bytes:
    """A PNG with one line per video: evenly spaced frames of the files of stored frames `paths`."""
    from PIL import Image, ImageOps

    from vsr1_core.media.frame_store import frames_shape, read_frames, spread_numbers

    sheet = Image.new("RGB", (num_columns * cell_pixels, len(paths) * cell_pixels), "white")
    for line, path in enumerate(paths):
        numbers = spread_numbers(frames_shape(path)[0], num_columns)
        for column, frame in enumerate(read_frames(path, numbers)):
            image = ImageOps.contain(Image.fromarray(frame), (cell_pixels - _GAP, cell_pixels - _GAP))
            sheet.paste(image, (column * cell_pixels, line * cell_pixels))
    return _png_of(sheet)


def _png_of(image: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    return out.getvalue()
