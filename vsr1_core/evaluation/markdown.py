"""Formats tables, cells and numbers of Markdown texts: the report, the table over several seeds, and model cards."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vsr1_core.rows.texts import visible

_PLAIN_ID = re.compile(r"[\w.:/@+=, -]+")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; no lines if there are no rows.

    The first column is aligned to the left, and each other column to the right if all of its cells are short. Cells are
    written as they are: text that may contain markup has to go through `text_cell` first.
    """
    if not rows:
        return []
    is_long = [max(len(row[i]) for row in rows) > 40 for i in range(len(header))]
    rule = ["---" if i == 0 or is_long[i] else "---:" for i in range(len(header))]
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]


_MARKUP = re.compile(r"[&<>|`*\\~]|\](?=[(\[:])|(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.|^#|^[+-](?=\s)")


def escaped(text: str) -> str:
    """Foreign text as Markdown and HTML that shows it: no markup, link, picture or cell border comes from it, and
    characters that a browser would obey are spelled."""
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", visible(text))


def text_cell(text: str | None, limit: int) -> str:
    """Any text as one line that cannot break a table or carry markup; cut to `limit` characters before escaping."""
    line = " ".join((text or "").split())
    return escaped(line if len(line) <= limit else line[: limit - 1] + "…")


def code(text: str) -> str:
    """An id or a path as code, or escaped where a code span cannot hold it."""
    return f"`{text}`" if _PLAIN_ID.fullmatch(text) else escaped(text)


def with_interval(value: float | None, low: float | None, high: float | None, scale: float) -> str:
    """`value [low, high]`, each times `scale`; a dash if there is no value, and no brackets if there is no interval."""
    if value is None:
        return "-"
    if low is None:
        return f"{scale * value:.1f}"
    bounds = f"{scale * low:.1f}, " + (f"{scale * high:.1f}" if high is not None else "∞")
    return f"{scale * value:.1f} [{bounds}]"


def signed_with_interval(value: float | None, low: float | None, high: float | None, scale: float) -> str:
    """A difference with its interval, in bold if the interval does not contain zero; a dash if it is not known."""
    if value is None or low is None or high is None:
        return "-"
    text = f"{scale * value:+.1f} [{scale * low:+.1f}, {scale * high:+.1f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def three_digits(value: float | None) -> str:
    """`value` with three significant digits; a dash if there is no value."""
    return "-" if value is None else f"{value:.3g}"


def counted(count: int, one: str, many: str) -> str:
    """`count` with the noun in the singular `one` or the plural `many`."""
    return f"{count:,} {one if count == 1 else many}"
