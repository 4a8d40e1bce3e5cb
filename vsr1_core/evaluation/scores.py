"""Scores: what each query adds to every metric of a method, so that metrics can be computed on resampled queries.

A metric is a ratio of sums over queries, or a median over queries. The metrics themselves are in `metrics`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vsr1_core.evaluation.spans import FloatArray


@dataclass(frozen=True)
class Ratio:
    """A metric whose value is sum(numerators) / sum(denominators) over the queries; both of shape (Q,).

    A query with denominator 0 is not judged.
    """

    numerators: FloatArray
    denominators: FloatArray


@dataclass(frozen=True)
class Median:
    """A metric whose value is the median of `per_query`, of shape (Q,), over the queries."""

    per_query: FloatArray


Parts = Ratio | Median
"""What the queries add to one metric."""


@dataclass(frozen=True)
class Scores:
    """All metrics of one method over the same queries: `parts` maps a metric's name to its parts."""

    query_ids: tuple[str, ...]
    parts: Mapping[str, Parts]

    def __post_init__(self) -> None:
        expected = (len(self.query_ids),)
        for name, part in self.parts.items():
            shapes = {array.shape for array in vars(part).values()}
            if shapes != {expected}:
                raise ValueError(
                    f"metric {name!r} gave arrays of shape {', '.join(map(str, sorted(shapes)))}; it needs one number "
                    f"per query, shape {expected}"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics' names, in the order of the tables."""
        return tuple(self.parts)

    @cached_property
    def ratios(self) -> dict[str, Ratio]:
        return {name: part for name, part in self.parts.items() if isinstance(part, Ratio)}

    @cached_property
    def medians(self) -> dict[str, Median]:
        return {name: part for name, part in self.parts.items() if isinstance(part, Median)}

    @cached_property
    def numerators(self) -> FloatArray:
        """(Q, M) in the order of `ratios`."""
        return self._columns([part.numerators for part in self.ratios.values()])

    @cached_property
    def denominators(self) -> FloatArray:
        """(Q, M) in the order of `ratios`."""
        return self._columns([part.denominators for part in self.ratios.values()])

    def _columns(self, columns: Sequence[FloatArray]) -> FloatArray:
        return np.stack(columns, axis=1) if columns else np.empty((len(self.query_ids), 0))

    def num_judged(self, name: str) -> int:
        """How many queries the metric `name` judges."""
        part = self.parts[name]
        return int((part.denominators > 0).sum()) if isinstance(part, Ratio) else len(self.query_ids)

    @staticmethod
    def joined(scores: Sequence[Scores]) -> Scores:
        """Several scores of the same queries as one."""
        return Scores(scores[0].query_ids, {name: part for each in scores for name, part in each.parts.items()})


def values(scores: Scores) -> dict[str, float]:
    """Each metric's value over all queries, by its name, in the order of `scores.names`.

    A value is NaN where nothing is judged (grounding without an accepted right video, for example), and a median is
    infinite where more than half of the queries have no rank.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = scores.numerators.sum(axis=0) / scores.denominators.sum(axis=0)
    found = dict(zip(scores.ratios, ratios.tolist(), strict=True))
    found |= {name: median(part.per_query) for name, part in scores.medians.items()}
    return {name: found[name] for name in scores.names}


def median(numbers: FloatArray) -> float:
    """The median of numbers of shape (Q,), which may be infinite. NaN for no numbers."""
    ordered = np.sort(numbers)
    if not ordered.size:
        return float("nan")
    return float((ordered[(ordered.size - 1) // 2] + ordered[ordered.size // 2]) / 2)
