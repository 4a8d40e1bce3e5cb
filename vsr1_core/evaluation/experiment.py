"""Combines several trainings of one configuration, which differ in their seed: means, intervals, ranges, differences.

This module uses plain numpy; it reads no tables and builds nothing. `claims` decides whether the paper's claims hold.

Two sources of chance are kept apart. Trainings with other seeds: 95 % intervals of the mean over seeds, by Student's t.
Other queries: a paired bootstrap over queries of the mean over the runs, with the same draws for all runs and methods.
A seed may be trained several times, with noise on the first weights that stands for another processor's rounding. The
runs of one seed are averaged first, because they share their data order and nearly their first weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from vsr1_core.evaluation.bootstrap import bootstrap, interval
from vsr1_core.evaluation.method_style import MethodStyles
from vsr1_core.evaluation.metrics import metrics_shown
from vsr1_core.evaluation.scores import Scores, values
from vsr1_core.evaluation.spans import FloatArray

T_POINTS = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""Two-sided 95 % points of Student's t with 1, 2, 3, ... degrees of freedom; `t_point` has those beyond."""
NORMAL_POINT = 1.959964
"""Two-sided 95 % point of the normal distribution, which is that of Student's t with endless degrees of freedom."""
ROUNDING = 1e-9
"""By how much two means of equal values may differ: the order of a sum decides its last bits."""


class Run(NamedTuple):
    """One training of everything: its seed, and the draw of its noise (0: none)."""

    seed: int
    noise: int = 0


@dataclass(frozen=True)
class Estimate:
    """A number averaged over the runs."""

    value: float
    samples: FloatArray
    """(R,): the same number on resampled queries."""

    def __sub__(self, other: Estimate) -> Estimate:
        return Estimate(self.value - other.value, self.samples - other.samples)

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(self.value + other.value, self.samples + other.samples)

    def over(self, other: Estimate) -> Estimate:
        """The relative gain on `other`: self / other - 1."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return Estimate(_ratio(self.value, other.value) - 1, self.samples / other.samples - 1)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval (low, high) over queries."""
        return interval(self.samples)


def _ratio(a: float, b: float) -> float:
    return a / b if b else float("nan")


@dataclass
class Experiment:
    """Several trainings of one configuration. Only methods that all runs have are compared.

    Raises:
        ValueError: The runs have different queries, or no method in common.
    """

    config: str
    """Name of the configuration."""
    runs: Mapping[Run, Mapping[str, Scores]]
    """Run -> method -> its scores, all over the same queries. Each seed has equally many runs."""
    styles: MethodStyles
    """How the methods are ordered."""
    num_resamples: int = 1000
    seed: int = 42
    _bootstrap: dict[tuple[Run, str], dict[str, FloatArray]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        queries = {scores.query_ids for run in self.runs.values() for scores in run.values()}
        if len(queries) != 1 or not self.methods:
            raise ValueError(
                f"the runs of {self.config} cannot be compared: they have {len(queries)} sets of queries and "
                f"{len(self.methods)} methods in common; build them with the same configuration and corpus"
            )

    @property
    def methods(self) -> list[str]:
        """The methods that every run has, the weakest design first."""
        return self.styles.ordered(set.intersection(*(set(run) for run in self.runs.values())))

    @property
    def num_queries(self) -> int:
        return len(next(iter(next(iter(self.runs.values())).values())).query_ids)

    def values(self, method: str, metric: str) -> FloatArray:
        """One value per run, NaN where nothing is judged."""
        return np.array([values(run[method]).get(metric, np.nan) for run in self.runs.values()])

    @property
    def seeds(self) -> list[int]:
        """The seeds, in the order of their first runs."""
        return list(dict.fromkeys(run.seed for run in self.runs))

    def by_seed(self, numbers: FloatArray) -> FloatArray:
        """The mean of each seed, from one number per run."""
        of_seed = np.array([run.seed for run in self.runs])
        return np.array([numbers[of_seed == seed].mean() for seed in self.seeds])

    def estimate(self, method: str, metric: str) -> Estimate:
        """A metric of a method, averaged over the runs."""
        samples = [self._samples(run, method)[metric] for run in self.runs]
        return Estimate(float(self.values(method, metric).mean()), np.mean(samples, axis=0))

    def has(self, *methods: str) -> bool:
        """Whether every run has these methods."""
        return set(methods) <= set(self.methods)

    def _samples(self, run: Run, method: str) -> dict[str, FloatArray]:
        if (run, method) not in self._bootstrap:
            scores = self.runs[run][method]
            self._bootstrap[run, method] = bootstrap(scores, self.num_resamples, self.seed)
        return self._bootstrap[run, method]


def t_point(count: int) -> float:
    """The two-sided 95 % point of Student's t for the mean of `count` numbers, at least 2.

    Beyond the table these are the first terms of its expansion about the normal point, right to 0.001.
    """
    freedom, z = count - 1, NORMAL_POINT
    if freedom <= len(T_POINTS):
        return T_POINTS[freedom - 1]
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def mean_interval(numbers: Sequence[float] | FloatArray) -> tuple[float, float, float]:
    """Mean of one number per seed and its 95 % interval by Student's t, as (mean, low, high).

    The bounds are NaN for a single seed.
    """
    array = np.asarray(numbers, dtype=np.float64)
    if array.size < 2:
        return float(array.mean()), float("nan"), float("nan")
    half = t_point(array.size) * array.std(ddof=1) / np.sqrt(array.size)
    return float(array.mean()), float(array.mean() - half), float(array.mean() + half)


_FLOATS = ("mean", "low", "high", "lowest", "highest")
RESULT_SCHEMA: dict[str, Any] = {"method": pl.String, "metric": pl.String, **dict.fromkeys(_FLOATS, pl.Float64)}
DIFFERENCE_SCHEMA: dict[str, Any] = {
    **dict.fromkeys(("before", "after", "metric"), pl.String),
    **dict.fromkeys(("difference", "low", "high", "seeds_low", "seeds_high"), pl.Float64),
}


def results(experiment: Experiment) -> pl.DataFrame:
    """Every metric and curve point over the seeds.

    Returns:
        (method, metric, mean, low, high, lowest, highest, values): values has one number per run, lowest and highest
        are the range of these, null where a run has nothing to judge; low and high bound the 95 % interval of the mean
        over seeds and are null for a single seed.
    """
    first = next(iter(experiment.runs.values()))
    rows = []
    for method in experiment.methods:
        for metric in first[method].names:
            found = experiment.values(method, metric)
            of_runs = float(found.min()), float(found.max()), found.tolist()
            rows.append((method, metric, *mean_interval(experiment.by_seed(found)), *of_runs))
    schema = {**RESULT_SCHEMA, "values": pl.List(pl.Float64)}
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(pl.col(*_FLOATS).fill_nan(None))


def differences(experiment: Experiment) -> pl.DataFrame:
    """Compare each method with the method before it, and each method that has an option with the same method without.

    Returns:
        (before, after, metric, difference, low, high, seeds_low, seeds_high), one row per pair and compared metric.
        low and high bound the interval over queries (paired bootstrap), seeds_low and seeds_high the interval over
        seeds.
    """
    pairs = experiment.styles.successive(experiment.methods) + experiment.styles.ablations(experiment.methods)
    rows = []
    for before, after in pairs:
        for metric in (metric.name for metric in metrics_shown("differences")):
            gain = experiment.estimate(after, metric) - experiment.estimate(before, metric)
            of_runs = experiment.values(after, metric) - experiment.values(before, metric)
            of_seeds = mean_interval(experiment.by_seed(of_runs))[1:]
            rows.append((before, after, metric, gain.value, *gain.interval, *of_seeds))
    return pl.DataFrame(rows, schema=DIFFERENCE_SCHEMA, orient="row").fill_nan(None)
