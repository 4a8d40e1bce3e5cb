"""Warns where refining queries makes the search worse instead of better, from rows of the table `metrics`."""

from __future__ import annotations

import polars as pl

GUARDED_K = 10
"""The k of the recall that refinement must not lower. R@1 alone hides a failure: a training that did not learn to
search still lifts a few queries to the first place while it loses many others."""


def refinement_warnings(metrics: pl.DataFrame) -> list[str]:
    """One sentence for each method whose R@10 is lower in the last ranking than in the first.

    `metrics` has the columns method, metric and value, and the rows of one split.
    """
    first, last = f"first_recall_at_{GUARDED_K}", f"recall_at_{GUARDED_K}"
    found = metrics.filter(pl.col("metric").is_in([first, last]), pl.col("value").is_not_null())
    value = {(row["method"], row["metric"]): row["value"] for row in found.iter_rows(named=True)}
    return [
        f"refinement lowers R@{GUARDED_K} of {method} from {100 * value[method, first]:.1f} to {100 * after:.1f} %"
        for (method, metric), after in value.items()
        if metric == last and after < value.get((method, first), 0.0)
    ]


def warnings_by_split(metrics: pl.DataFrame) -> list[str]:
    """The same for rows of several splits, whose names are in the column split."""
    splits = metrics.partition_by("split", as_dict=True, maintain_order=True)
    return [f"{text} on {split}" for (split,), rows in splits.items() for text in refinement_warnings(rows)]
