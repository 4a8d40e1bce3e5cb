"""A Dagster instance in memory that opens its database once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import dagster as dg


@contextlib.contextmanager
def instance_in_memory() -> Iterator[dg.DagsterInstance]:
    """`DagsterInstance.ephemeral` opens a connection for each question, and sends two statements that set it up before
    each: a sixth of the processor time of an evaluation of the automation conditions. Its two databases have one
    connection each that stays open, which answers all questions here."""
    with dg.DagsterInstance.ephemeral() as instance:
        events: Any = instance.event_log_storage
        runs: Any = instance.run_storage

        @contextlib.contextmanager
        def to_events() -> Iterator[Any]:
            with events._db_lock, events._held_conn.begin():
                yield events._held_conn

        @contextlib.contextmanager
        def to_runs() -> Iterator[Any]:
            with runs._held_conn.begin():
                yield runs._held_conn

        events._connect, runs.connect = to_events, to_runs
        yield instance
