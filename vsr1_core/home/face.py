"""The two functions of the face: one search, one query. `Home` and `Index` are in modules of their own."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from vsr1_core.home.home import Home
from vsr1_core.home.search import Hit

if TYPE_CHECKING:
    import polars as pl


@functools.lru_cache(maxsize=1)
def _kept_home(path: Path) -> Home:
    """The home that was asked last, with its models open."""
    return Home(path)


def search(
    text: str, dataset: str = "toy", *, home: str | Path = "vsr1_home", split: str = "test", top_k: int = 5
) -> list[Hit]:
    """Find videos of a built dataset for a text, and the moment in those that the policy was shown.

    The models stay open for the next search of the same home.

    Args:
        text: What happens in the moment, in words.
        dataset: A dataset of the home; it has to be built.
        home: The home folder.
        split: Which videos to search.
        top_k: How many videos to return.

    Returns:
        At most `top_k` hits, best first.

    Raises:
        ValueError: The text is blank, or `top_k` is less than 1.
        LookupError: There is no such dataset, or it is not built; the message has the command.

    Example:
        >>> import vsr1_core as vsr1
        >>> vsr1.search("a red circle moves left", "toy", top_k=1)[0].video   # doctest: +SKIP
        'toy_test_00042'
    """
    return _kept_home(Path(home).expanduser().absolute()).search(text, dataset, split, top_k)


def sql(query: str, *, home: str | Path = "vsr1_home") -> pl.DataFrame:
    """The result of one SQL statement (DuckDB) on the views of a home.

    Args:
        query: For example `from metrics`, or `describe predictions`. A view holds the rows of all datasets.
        home: The home folder.

    Returns:
        The result as a polars frame.

    Raises:
        ValueError: What DuckDB says of bad SQL, in one line, and the names of the views.

    Example:
        >>> import vsr1_core as vsr1
        >>> vsr1.sql("select method, value from metrics where metric = 'mrr'")   # doctest: +SKIP
    """
    return Home(home).sql(query)
