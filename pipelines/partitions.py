"""One partition a dataset. Not one a video: an unchanged partition costs seconds, an unchanged row microseconds."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from vsr1_core.datasets.registry import load_entries


def dataset_partitions(home: Path) -> dg.StaticPartitionsDefinition:
    """The built-in and registered datasets, as they are now; an added one appears after a reload."""
    return dg.StaticPartitionsDefinition(sorted(load_entries(home)))
