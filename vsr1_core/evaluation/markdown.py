"""Formats tables, cells and numbers of Markdown texts: the report, the table over several seeds, and model cards."""

from __future__ import annotations

from collections.abc import Sequence


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


def text_cell(text: str | None, limit: int) -> str:
    """Any text as one line that cannot break a table or carry markup; cut to `limit` characters before escaping."""
    line = " ".join((text or "").split())
    line = line if len(line) <= limit else line[: limit - 1] + "…"
    for character, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("`", "'")):
        line = line.replace(character, written)
    return line


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
