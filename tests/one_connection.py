"""A Dagster instance in memory that opens its database once."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Any

import dagster as dg

from pipelines.event_log import read_migrations_once


@contextlib.contextmanager
def instance_in_memory(kept: tuple[bytes, ...] = ()) -> Iterator[dg.DagsterInstance]:
    """`DagsterInstance.ephemeral` opens a connection for each question, and sends two statements that set it up before
    each: a sixth of the processor time of an evaluation of the automation conditions. Its two databases have one
    connection each that stays open, which answers all questions here.

    kept: what `databases_of` gave of another instance, which this one goes on from.
    """
    read_migrations_once()
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

        for database, content in zip(_databases(instance), kept, strict=bool(kept)):
            _fill(database, content)
        events._connect, runs.connect = to_events, to_runs
        yield instance


def databases_of(instance: dg.DagsterInstance) -> tuple[bytes, ...]:
    """All that an instance in memory knows."""
    return tuple(database.serialize() for database in _databases(instance))


def _fill(database: sqlite3.Connection, content: bytes) -> None:
    with contextlib.closing(sqlite3.connect(":memory:")) as source:
        source.deserialize(content)
        source.backup(database)  # its content is shared by connections, from which `deserialize` would cut it off


def _databases(instance: Any) -> list[sqlite3.Connection]:
    held = (instance.event_log_storage._held_conn, instance.run_storage._held_conn)
    return [connection.connection.dbapi_connection for connection in held]
