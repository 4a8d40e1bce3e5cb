"""The jobs: the whole graph, and parts of it that can be run by hand. All are partitioned by dataset."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable
from typing import Any

import dagster as dg

WHOLE_GRAPH = "whole_graph"

MAX_CONCURRENT_STEPS = 2
"""How many steps of a run go on at once, each in a process. Dagster's default is one per core; as each process imports
torch, 2 fill a laptop."""

_BASE_MODELS = dg.AssetSelection.key_substring("base_models")

PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "corpus": (
        "1. Reads annotations and videos, and samples frames: everything that is searched.",
        ("sources", "corpus", "media"),
    ),
    "search": (
        "2. Makes base models, embeddings, the index and the first ranking. Needs the job corpus.",
        ("embeddings", "retrieval"),
    ),
    "training": (
        "3. Makes training data and trains checkpoints. Needs the job search.",
        ("checkpoints", "sft", "grpo"),
    ),
    "evaluation": (
        "4. Makes predictions, metrics, the report and the warehouse. Needs the job training.",
        ("evaluation", "warehouse"),
    ),
}
"""Job name -> what the job does, and the groups it builds. In this order, each job finds what it reads."""


def executor() -> dg.ExecutorDefinition:
    """An executor with one process per step: a step that dies stops no other, and its memory is freed.

    Each process is forked from one that has imported this code location and done nothing else, because most steps of a
    small change take less time than that import. Where processes cannot be forked (Windows), each step imports it.
    """
    config: dict[str, Any] = {"max_concurrent": MAX_CONCURRENT_STEPS}
    if "forkserver" in multiprocessing.get_all_start_methods():
        config["start_method"] = {"forkserver": {"preload_modules": ["pipelines.definitions"]}}
    return dg.multiprocess_executor.configured(config)


def build_jobs(partitions_def: dg.PartitionsDefinition, groups: Iterable[str]) -> list[Any]:
    """The job of the whole graph, and one job for each part that has at least one of `groups`."""
    present = set(groups)
    whole = dg.define_asset_job(
        WHOLE_GRAPH,
        dg.AssetSelection.all(),
        description="Builds everything in one run, from raw videos to the report.",
        partitions_def=partitions_def,
    )
    parts = [
        dg.define_asset_job(name, _selection(name, present), description=text, partitions_def=partitions_def)
        for name, (text, of_job) in PARTS.items()
        if present.intersection(of_job)
    ]
    return [whole, *parts]


def _selection(name: str, present: set[str]) -> dg.AssetSelection:
    """The assets of a job's groups. `base_models` is in the group of checkpoints but belongs to the job search, because
    embedding needs it before any training."""
    selection = dg.AssetSelection.groups(*(group for group in PARTS[name][1] if group in present))
    if name == "search":
        return selection | _BASE_MODELS
    return selection - _BASE_MODELS
