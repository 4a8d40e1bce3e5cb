"""Which of the assets of its run one is, as its heading in the log says."""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg


def place_in_run(context: dg.AssetExecutionContext) -> tuple[int, int]:
    """(which asset of its run this is, from 1; how many there are).

    The place follows from the job alone, so that it is the same in a process of the step's own, where no event of the
    other steps is read. It is that of `start_order`.
    """
    job, only = context.job_def, context.run.step_keys_to_execute
    names = [node.name for node in job.nodes_in_topological_order if only is None or node.name in only]
    needed = {
        name: {output.node_name for output in job.dependency_structure.all_upstream_outputs_from_node(name)} & {*names}
        for name in names
    }
    started = start_order(needed)
    return started.index(context.node_handle.name) + 1, len(started)


def start_order(needed: Mapping[str, set[str]]) -> list[str]:
    """The steps in the order in which Dagster starts them, one at a time: each queues as soon as what it needs is done.
    needed: step -> the steps before it; without a circle."""
    queue: list[str] = []
    for number in range(len(needed)):
        done = {*queue[:number]}
        queue += [name for name, before in needed.items() if name not in queue and before <= done]
    return queue
