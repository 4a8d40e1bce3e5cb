"""Paths in what a home keeps. One inside the home is kept relative to it (`./lake/files/...`), so that a home may be
moved or copied; in memory every path is absolute.

Homes were once written with absolute paths throughout. They are read as well, and the next build rewrites its tables.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

INSIDE = "./"
"""How a kept path begins that is relative to the home. No id of a model on the hub begins like this."""
PATH_COLUMNS = ("path", "source")
"""Columns of tables that may hold paths. `source` may be a hub id or a sentence instead, which stay as they are."""
_IN_A_LAKE = re.compile(r"/.*/(lake/(?:files|imported)/.+)", re.DOTALL)


@dataclass(frozen=True)
class Places:
    """Turns paths into what is kept and back, for the home in the folder `home`."""

    home: Path

    @cached_property
    def _prefix(self) -> str:
        return f"{self.home.absolute()}/"

    @cached_property
    def _prefixes(self) -> tuple[str, ...]:
        """How paths inside the home may begin: users may name it, or a file in it, through a link."""
        return tuple(dict.fromkeys([self._prefix, f"{os.path.realpath(self._prefix)}/"]))

    def stored(self, path: str) -> str:
        """What is kept of an absolute path: one outside the home, or a text that is no path, as it is."""
        for prefix in self._prefixes:
            if path.startswith(prefix):
                return INSIDE + path.removeprefix(prefix)
        return path

    def placed(self, kept: str) -> str:
        """The path or text that `stored` was given, for the place where the home is now."""
        if kept.startswith(INSIDE):
            return self._prefix + kept.removeprefix(INSIDE)
        return self._from_before(kept)

    def _from_before(self, kept: str) -> str:
        """An absolute path that was kept for a file of the lake when the home was elsewhere: the file here. The names
        of such files tell their versions, so one of the same name in another home has the same content."""
        found = _IN_A_LAKE.fullmatch(kept)
        if found is None or kept.startswith(self._prefix) or not Path(self._prefix, found[1]).exists():
            return kept
        return self._prefix + found[1]

    def stored_rows(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows as they are kept: the columns of paths, and the input `path` in `row_inputs`."""
        return self._changed(rows, self._stored_expression)

    def placed_rows(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Kept rows with absolute paths in their columns. The inputs stay as they are kept, because versions are made
        of them."""
        placed = self._changed(rows, self._placed_expression)
        for name in _of_paths(rows):
            kept = placed[name]
            is_other = kept.str.contains("/lake/", literal=True) & ~kept.str.starts_with(self._prefix)
            if is_other.any():
                texts = [None if text is None else self._from_before(text) for text in kept]
                placed = placed.with_columns(pl.Series(name, texts, pl.String))
        return placed

    def _changed(self, rows: pl.DataFrame, change: Callable[[str], pl.Expr]) -> pl.DataFrame:
        changes = [change(name) for name in _of_paths(rows)]
        if "row_inputs" in rows.columns:
            changes.append(self._inputs_expression())
        return rows.with_columns(changes) if changes else rows

    def _stored_expression(self, name: str) -> pl.Expr:
        found = pl.col(name)
        for prefix in self._prefixes:
            inside = pl.lit(INSIDE) + pl.col(name).str.strip_prefix(prefix)
            found = pl.when(pl.col(name).str.starts_with(prefix)).then(inside).otherwise(found)
        return found.alias(name)

    def _placed_expression(self, name: str) -> pl.Expr:
        inside = pl.lit(self._prefix) + pl.col(name).str.strip_prefix(INSIDE)
        return pl.when(pl.col(name).str.starts_with(INSIDE)).then(inside).otherwise(pl.col(name)).alias(name)

    def _inputs_expression(self) -> pl.Expr:
        found = pl.col("row_inputs")
        for prefix in self._prefixes:
            begin = json.dumps(prefix).removesuffix('"')
            found = found.str.replace(f'"path": {begin}', f'"path": "{INSIDE}', literal=True)
        return found


def _of_paths(rows: pl.DataFrame) -> list[str]:
    return [name for name in PATH_COLUMNS if name in rows.columns]
