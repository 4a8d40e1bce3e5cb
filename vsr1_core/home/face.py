"""The two functions of the public interface, `search` and `sql`. `Home` and `Index` have modules of their own."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from vsr1_core.home.home import Home
from vsr1_core.home.search_result import Found

if TYPE_CHECKING:
    import polars as pl


@functools.lru_cache(maxsize=1)
def _kept_home(path: Path) -> Home:
    """The home that was used last, with its models still open."""
    return Home(path)


def search(
    text: str,
    dataset: str = "toy",
    *,
    home: str | Path = "vsr1_home",
    split: str = "test",
    top_k: int = 5,
    method: str | None = None,
    verify: bool = True,
    turns: int | None = None,
) -> Found:
    """Find videos of a built dataset for a text, and the moment in each video that the policy was shown.

    The models stay open for the next search of the same home.

    Args:
        text: Description of what happens in the moment.
        dataset: Name of a dataset of the home; it has to be built.
        home: The home folder.
        split: Which videos to search.
        top_k: How many videos to return.
        method: Name of the method that searches; by default the last one of the report whose checkpoint is built.
        verify: Whether a policy is shown the videos; False ranks them by the embedder alone.
        turns: Most videos that the policy is shown; by default what the dataset's configuration says.

    Returns:
        The result: a sequence of at most `top_k` hits, best first, with the verdict and every turn.

    Raises:
        ValueError: The text is blank, or a number is out of its range.
        LookupError: There is no such dataset, split or method, or it is not built; the message has the command that
            builds it.

    Example:
        >>> import vsr1_core as vsr1
        >>> vsr1.search("a red circle moves left", "toy", top_k=1)[0].video   # doctest: +SKIP
        'toy_test_00042'
    """
    return _kept_home(Path(home).expanduser().absolute()).search(
        text, dataset, split, top_k, method=method, verify=verify, turns=turns
    )


def sql(query: str, *, home: str | Path = "vsr1_home") -> pl.DataFrame:
    """The result of one SQL statement (DuckDB) on the views of a home.

    Args:
        query: For example `from metrics`, or `describe predictions`. A view holds the rows of all datasets.
        home: The home folder.

    Returns:
        The result as a polars frame.

    Raises:
        ValueError: The SQL is bad; the message has DuckDB's error in one line, and the names of the views.

    Example:
        >>> import vsr1_core as vsr1
        >>> vsr1.sql("select method, value from metrics where metric = 'mrr'")   # doctest: +SKIP
    """
    return Home(home).sql(query)
