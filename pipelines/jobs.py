"""The jobs: the whole graph, and the parts one runs by hand. All are partitioned by dataset."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable
from typing import Any

import dagster as dg

WHOLE_GRAPH = "whole_graph"

MAX_CONCURRENT_STEPS = 2
"""Steps of a run at once, each a process. Dagster's default is one a core; with torch in each, 2 fill a laptop."""

_BASE_MODELS = dg.AssetSelection.key_substring("base_models")

PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "corpus": ("1. Sources to frames: what there is to search.", ("sources", "corpus", "media")),
    "search": ("2. Base models, embeddings, index, first ranking. Needs the corpus.", ("embeddings", "retrieval")),
    "training": ("3. Training data and checkpoints. Needs the search.", ("checkpoints", "sft", "grpo")),
    "evaluation": (
        "4. Predictions, metrics, report and warehouse. Needs the training.",
        ("evaluation", "warehouse"),
    ),
}
"""Job name -> what it does, and its groups. Run in this order, each finds what it reads."""


def executor() -> dg.ExecutorDefinition:
    """One process per step: one that dies takes no other with it, and its memory comes back. It is forked from one that
    has imported this code location and done nothing else, since most steps of a small change take less time than that
    import. Where nothing can be forked (Windows), each step imports.
    """
    config: dict[str, Any] = {"max_concurrent": MAX_CONCURRENT_STEPS}
    if "forkserver" in multiprocessing.get_all_start_methods():
        config["start_method"] = {"forkserver": {"preload_modules": ["pipelines.definitions"]}}
    return dg.multiprocess_executor.configured(config)


def build_jobs(partitions_def: dg.PartitionsDefinition, groups: Iterable[str]) -> list[Any]:
    """The whole graph, and the parts of which something is there."""
    present = set(groups)
    whole = dg.define_asset_job(
        WHOLE_GRAPH,
        dg.AssetSelection.all(),
        description="Raw videos to report, all in one run.",
        partitions_def=partitions_def,
    )
    parts = [
        dg.define_asset_job(name, _selection(name, present), description=text, partitions_def=partitions_def)
        for name, (text, of_job) in PARTS.items()
        if present.intersection(of_job)
    ]
    return [whole, *parts]


def _selection(name: str, present: set[str]) -> dg.AssetSelection:
    """The job's groups; `base_models` is a checkpoint, but embedding needs it long before any training."""
    selection = dg.AssetSelection.groups(*(group for group in PARTS[name][1] if group in present))
    if name == "search":
        return selection | _BASE_MODELS
    return selection - _BASE_MODELS
