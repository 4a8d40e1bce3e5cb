"""Registers functions as metrics: the decorators, what they say about a metric, and where it is shown.

The metrics themselves are in `metrics`; other modules read them from there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from vsr1_core.evaluation.episodes import Episodes
from vsr1_core.evaluation.probes import Probes
from vsr1_core.evaluation.scores import Parts, Ratio

Section = Literal[
    "first ranking",
    "last ranking",
    "windows",  # of datasets whose long videos are searched in windows; others have no rows of these metrics
    "moments",
    "best answers",
    "verification",
    "balanced set",
    "tokens",
    "further",
]
"""The table of the report that a metric is a column of."""
Place = Literal[
    "overview",  # the report's first table
    "differences",  # compared between two methods, with paired intervals
    "experiment",  # the table over several seeds
    "turns",  # measured again for each number of turns allowed; reads neither `best_iou` nor probes
    "soft tokens",  # measured again for each number of soft tokens; reads `rank` and nothing else
    "turns plot",
    "soft tokens plot",
    "history",  # numbers that the UI plots over builds
    "card",  # the metadata of a pushed checkpoint
    "warning",  # a fall from one build to the next is a warning
]
"""Where a metric is shown beside its own table."""
Places = tuple[Place, ...] | Mapping[Place, Sequence[float]]
"""Places; or, for a family of metrics, place -> the parameters that are shown there."""


@dataclass(frozen=True)
class Metric:
    """One metric: its texts, where it is shown, and how it is measured."""

    name: str
    """The name in the table `metrics`."""
    label: str
    """The name that people read; it is clear without context."""
    short: str
    """The head of a column, if there is little room."""
    says: str
    """What it means, in one sentence."""
    better: Literal["higher", "lower"]
    unit: Literal["share", "rank", "tokens"]
    """A share is in [0, 1] and shown in percent; the others are shown as they are."""
    source: Literal["episodes", "probes"]
    section: Section
    places: frozenset[Place]
    measure: Callable[[Episodes, Probes | None], Parts]
    """What each query adds, of shape (Q,). Without probes, a metric of probes judges nothing."""

    @property
    def scale(self) -> float:
        """The factor by which a value is multiplied when it is shown."""
        return 100.0 if self.unit == "share" else 1.0


REGISTERED: dict[str, Metric] = {}
"""The metrics by name, in the order in which they were registered."""


def episode_metric(
    name: str,
    *,
    label: str,
    says: str,
    short: str = "",
    better: Literal["higher", "lower"] = "higher",
    unit: Literal["share", "rank", "tokens"] = "share",
    section: Section = "further",
    places: Places = (),
    **family: Sequence[float],
) -> Callable[[Callable[..., Parts]], Callable[..., Parts]]:
    """Register a function of `Episodes` as a metric, or as a family of metrics.

    Args:
        name: The metric's name. In a family it names the parameter, as in `recall_at_{k}`.
        label: What people call it; may name the parameter too.
        says: What it means, in one sentence; may name the parameter too.
        short: The head of a column; if it is empty, the label is used.
        better: Whether a higher or a lower value is better.
        unit: The unit of its values.
        section: The table of the report that has it as a column.
        places: Where else it is shown. In a family this may be a mapping from a place to the parameters shown there.
        **family: The parameter of a family and its values, as in `k=(1, 5, 10)`. The function takes it by this name.

    Returns:
        A decorator that gives the function back unchanged. The function takes `Episodes` over Q queries and returns a
        `Ratio` or a `Median` of arrays of shape (Q,).

    Raises:
        ValueError: A metric of this name exists already, a place does not exist, or a metric that is not a share has
            the place `warning`.
    """

    def register(function: Callable[..., Parts]) -> Callable[..., Parts]:
        def measured(**parameter: float) -> Callable[[Episodes, Probes | None], Parts]:
            return lambda episodes, probes: function(episodes, **parameter)

        texts = {"name": name, "label": label, "short": short or label, "says": says}
        _add(measured, texts, places, family, better=better, unit=unit, source="episodes", section=section)
        return function

    return register


def probe_metric(
    name: str,
    *,
    label: str,
    says: str,
    short: str = "",
    better: Literal["higher", "lower"] = "higher",
    section: Section = "further",
    places: Places = (),
    **family: Sequence[float],
) -> Callable[[Callable[..., Parts]], Callable[..., Parts]]:
    """Register a function of `Probes` as a metric whose unit is a share. Everything else is as in `episode_metric`."""

    def register(function: Callable[..., Parts]) -> Callable[..., Parts]:
        def measured(**parameter: float) -> Callable[[Episodes, Probes | None], Parts]:
            def measure(episodes: Episodes, probes: Probes | None) -> Parts:
                nothing = np.zeros(len(episodes.query_ids))
                return Ratio(nothing, nothing) if probes is None else function(probes, **parameter)

            return measure

        texts = {"name": name, "label": label, "short": short or label, "says": says}
        _add(measured, texts, places, family, better=better, unit="share", source="probes", section=section)
        return function

    return register


def _add(
    measured: Callable[..., Callable[[Episodes, Probes | None], Parts]],
    texts: Mapping[str, str],
    places: Places,
    family: Mapping[str, Sequence[float]],
    *,
    unit: Literal["share", "rank", "tokens"],
    **facts: Any,
) -> None:
    """Put a metric, or each metric of a family, into `REGISTERED`. facts: further fields of `Metric`."""
    parameters = [dict(zip(family, each, strict=True)) for each in itertools.product(*family.values())]
    for parameter in parameters:
        formatted: dict[str, Any] = {field: text.format(**parameter) for field, text in texts.items()}
        name, shown = formatted["name"], frozenset(_places_of(places, parameter))
        if name in REGISTERED:
            raise ValueError(f"there is a metric {name!r} already; give the new one another name")
        if unknown := sorted(shown - set(get_args(Place))):
            raise ValueError(
                f"metric {name!r}: there is no place {unknown[0]!r}; there are: {', '.join(get_args(Place))}"
            )
        if "warning" in shown and unit != "share":
            raise ValueError(
                f"metric {name!r}: only a share can have the place 'warning', because a fall is judged in percentage "
                "points; leave it out"
            )
        REGISTERED[name] = Metric(**formatted, **facts, unit=unit, places=shown, measure=measured(**parameter))


def _places_of(places: Places, parameter: Mapping[str, float]) -> list[Place]:
    if isinstance(places, Mapping):
        return [place for place, shown in places.items() if set(parameter.values()) <= set(shown)]
    return list(places)
