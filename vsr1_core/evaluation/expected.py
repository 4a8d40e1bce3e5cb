"""The ranges in which the numbers of a configuration are to be expected: those of several runs of it.

`expected_ranges.json` beside this module owns these numbers. `vsr1 experiment` writes a file of this form
(`ranges.json`) with its results; the file here is a copy of one. A range belongs to a configuration as it was when it
was measured: after any change of the configuration, nothing is expected until it is measured again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vsr1_core.configurations import with_seed
from vsr1_core.evaluation.experiment import ROUNDING, Experiment, t_point
from vsr1_core.evaluation.metrics import metrics_shown
from vsr1_core.recipes import Configuration
from vsr1_core.rows.files import read_json
from vsr1_core.rows.versions import fingerprint

OWNER = Path(__file__).with_name("expected_ranges.json")


@dataclass(frozen=True)
class Range:
    """What one metric of one method was in several runs, one value per run."""

    values: tuple[float, ...]

    @property
    def expected(self) -> tuple[float, float]:
        """Where a further run lies with a probability of 95 % (the prediction interval of Student's t), from low to
        high; without bounds for a single run. The range from the lowest to the highest of n runs is narrower: one in
        (n + 1) / 2 further runs lies outside of it."""
        if len(self.values) < 2:
            return -np.inf, np.inf
        mean, count = float(np.mean(self.values)), len(self.values)
        half = t_point(count) * float(np.std(self.values, ddof=1)) * (1 + 1 / count) ** 0.5
        return mean - half, mean + half

    def __contains__(self, value: float) -> bool:
        low, high = self.expected
        return low - ROUNDING <= value <= high + ROUNDING


@dataclass(frozen=True)
class ExpectedRanges:
    """The ranges of one configuration.

    configuration: its `configuration_key`. command: what measured them. split: whose queries were searched. num_runs:
    how many trainings the ranges are of. ranges: method -> metric -> range; shares are in [0, 1].
    """

    configuration: str
    command: str
    split: str
    num_runs: int
    ranges: Mapping[str, Mapping[str, Range]]


def configuration_key(config: Configuration) -> str:
    """The fingerprint of a configuration without its seeds and noise."""
    return fingerprint(with_seed(config, 0))


def measured_ranges(experiment: Experiment, configuration: str, command: str, split: str) -> dict[str, Any]:
    """The ranges of an experiment's runs in JSON types, in the form of `expected_ranges.json`."""
    ranges: dict[str, dict[str, list[float]]] = {}
    for method in experiment.methods:
        found = {m.name: experiment.values(method, m.name) for m in metrics_shown("experiment")}
        ranges[method] = {name: values.tolist() for name, values in found.items() if np.isfinite(values).all()}
    return {
        "configuration": configuration,
        "command": command,
        "split": split,
        "num_runs": len(experiment.runs),
        "ranges": ranges,
    }


def expected_ranges(config: Configuration, owner: Path = OWNER) -> ExpectedRanges | None:
    """The ranges that were measured with this configuration, whatever its seed; None if there are none."""
    stored = read_json(owner)
    if stored["configuration"] != configuration_key(config):
        return None
    ranges = {
        method: {name: Range(tuple(values)) for name, values in of.items()} for method, of in stored["ranges"].items()
    }
    return ExpectedRanges(**{**stored, "ranges": ranges})
