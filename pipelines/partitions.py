"""One partition per dataset. There is not one per video, because an unchanged partition costs seconds and an unchanged
row costs microseconds."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from vsr1_core.datasets.registry import load_entries


def dataset_partitions(home: Path) -> dg.StaticPartitionsDefinition:
    """The built-in and registered datasets as they are now. A dataset that is added later appears after the code
    location is reloaded."""
    return dg.StaticPartitionsDefinition(sorted(load_entries(home)))
