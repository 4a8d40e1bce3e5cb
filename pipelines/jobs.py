"""The jobs: the whole graph, and the parts one runs by hand. All are partitioned by dataset."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import dagster as dg

WHOLE_GRAPH = "whole_graph"

PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "corpus": ("Sources to frames: what is there to search.", ("sources", "corpus", "media")),
    "search": ("Embeddings, index and first ranking.", ("embeddings", "retrieval")),
    "training": ("Training data and checkpoints.", ("checkpoints", "sft", "grpo")),
    "evaluation": ("Predictions, metrics, report and warehouse.", ("evaluation", "warehouse")),
}
"""Job name -> what it does, and the groups it builds."""


def build_jobs(partitions_def: dg.PartitionsDefinition, groups: Iterable[str]) -> list[Any]:
    """The jobs for the groups that are there."""
    present = set(groups)
    whole = dg.define_asset_job(
        WHOLE_GRAPH, dg.AssetSelection.all(), description="Raw videos to report.", partitions_def=partitions_def
    )
    parts = [
        dg.define_asset_job(
            name,
            dg.AssetSelection.groups(*(g for g in of_job if g in present)),
            description=text,
            partitions_def=partitions_def,
        )
        for name, (text, of_job) in PARTS.items()
        if present.intersection(of_job)
    ]
    return [whole, *parts]
