"""Dagster runs as holders of a dataset's lease: all steps of a run share it, in however many processes they run."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator, Mapping

import dagster as dg

from vsr1_core.stages.base import View
from vsr1_core.stages.graph import writing

LEASE_TAG = "vsr1/lease"
"""Tag of a run whose lease the process that started it holds as well: the id under which the lease is shared."""
MAX_FIRST_EVENTS = 5
"""One of the first events of a run that the UI or the daemon launched names its process."""


@contextlib.contextmanager
def writing_in_run(view: View, run: dg.DagsterRun, instance: dg.DagsterInstance) -> Iterator[View]:
    """The view, for the block as the only writer of its dataset beside the other steps of `run`.

    A step does not wait for another run: it may hold a place in a pool that the other run needs next. Runs of one
    dataset that the UI starts queue before they start (`tag_concurrency_limits`).
    """
    shared = run.tags.get(LEASE_TAG, run.run_id)
    with writing(view, f"run {run.run_id[:8]} of Dagster", shared, also=_process_of_run(run, instance)) as held:
        yield held


def _process_of_run(run: dg.DagsterRun, instance: dg.DagsterInstance) -> list[int]:
    """The process that starts the steps of the run, where this is another one: it keeps the lease between two steps.

    The parent of a step that runs in the process of its run is a code server, which lives on when the run has ended.
    """
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None:
        return []
    return [parent.pid] if parent.pid in dict(process_events(run, instance)) else []


def process_events(run: dg.DagsterRun, instance: dg.DagsterInstance) -> Iterator[tuple[int, float]]:
    """(process id, seconds since 1970) of the first events of a run that name a process."""
    first = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT, limit=MAX_FIRST_EVENTS)
    for record in first.records:
        metadata: Mapping[str, dg.MetadataValue] = record.event_log_entry.get_dagster_event().engine_event_data.metadata  # type: ignore[union-attr]
        if "pid" in metadata:
            yield int(str(metadata["pid"].value)), record.event_log_entry.timestamp
