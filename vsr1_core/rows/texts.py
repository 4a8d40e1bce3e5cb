"""Foreign text (queries, captions, file names, what models wrote): what no file can hold, and how odd characters are
shown. Nothing here changes a text that is stored or searched for."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

_HALF = re.compile("[\ud800-\udfff]")
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufdd0-\ufdef\ud800-\udfff]"
)
"""Characters that a terminal or a browser obeys instead of showing: control characters (NUL, ESC), marks that reverse
the direction of what follows, separators of lines; and halves of characters."""


def half_character(text: str) -> str | None:
    """What is wrong with a text that contains half of a surrogate pair, which UTF-8 cannot hold; None for any other.

    Python reads a byte that is not UTF-8 as such a half, in file names and with `errors="surrogateescape"`.
    """
    found = _HALF.search(text)
    if found is None:
        return None
    if "\udc80" <= found[0] <= "\udcff":
        return f"character {found.start() + 1} is the byte 0x{ord(found[0]) - 0xDC00:02X}, which is not UTF-8"
    return (
        f"character {found.start() + 1} of the text is U+{ord(found[0]):04X}, half of a surrogate pair, which is no "
        "character: write the text in UTF-8, or as a whole pair of escapes"
    )


def parsed_json(text: str, object_of: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text; `object_of` makes its objects of their pairs, if it is given. Raises
    ValueError (JSONDecodeError where it is not valid) also for what is nested so deeply that Python cannot read it."""
    try:
        return json.loads(text, object_pairs_hook=object_of)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for a misspelt name, to go between what is wrong and what there is; empty where no known
    name is near."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_text(text: str) -> str:
    """`text` itself. Raises ValueError if it contains half of a surrogate pair."""
    problem = half_character(text)
    if problem:
        raise ValueError(problem)
    return text


def visible(text: str) -> str:
    """`text` with each control character, and each mark that turns the direction of text, spelled as `\\u202e`. Line
    breaks and tabs stay."""
    if text.isprintable():  # none of these characters is: a plan asks for the names of all files
        return text
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
