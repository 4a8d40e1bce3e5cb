"""Dagster's event log in SQLite, with connections that stay open.

Dagster 1.13 opens and closes the database for each of the about 25 events of a step, and SQLite copies its log into the
database whenever the last connection closes. That was half of the processor time, and most of the waiting for the disk,
of a build that makes few rows. Files and tables are Dagster's own; other processes use them at the same time.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import dagster as dg
import yaml
from alembic.config import Config
from alembic.script import ScriptDirectory
from dagster._core.instance import InstanceRef
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.sql import ALEMBIC_SCRIPTS_LOCATION
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from dagster._serdes import ConfigurableClassData
from sqlalchemy import create_engine, event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import StaticPool

MAX_OPEN = 4
"""Databases that stay open: the index and those of a few runs."""


class EventLog(SqliteEventLogStorage):
    """One connection for each of the last few databases, which threads use in turns (Dagster's own lock sees to that).

    A commit does not wait until it has reached the disk: after a loss of power the last events may be missing. Nothing
    else can be damaged, and what is built is told by the tables.
    """

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._open: OrderedDict[tuple[int, str], Engine] = OrderedDict()
        super().__init__(base_dir, inst_data)

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> EventLog:
        return cls(inst_data=inst_data, **config_value)

    @contextlib.contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        with self._db_lock:
            engine = self._engine(shard)
            if shard not in self._initialized_dbs:
                self._initdb(engine)
                self._initialized_dbs.add(shard)
            with engine.connect() as connection, connection.begin():
                yield connection

    def _engine(self, shard: str) -> Engine:
        key = os.getpid(), shard  # SQLite's connections must not be used after a fork
        if key not in self._open:
            self._open[key] = _opened(self.conn_string_for_shard(shard))
        self._open.move_to_end(key)
        while len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)[1].dispose()
        return self._open[key]

    def wipe(self) -> None:
        self._close()
        super().wipe()

    def dispose(self) -> None:
        super().dispose()
        self._close()

    def _close(self) -> None:
        with self._db_lock:
            while self._open:
                self._open.popitem()[1].dispose()


def _opened(address: str) -> Engine:
    arguments = {"timeout": SQLITE_BUSY_TIMEOUT_SECONDS, "check_same_thread": False}
    engine = create_engine(address, poolclass=StaticPool, connect_args=arguments)
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=NORMAL"))
    return engine


@functools.cache
def read_migrations_once() -> None:
    """Let this process read Dagster's migration scripts once. Dagster looks for the last one whenever it opens a
    database, of which an instance has three and each run one, and executes the 89 files each time, in 15 ms. They are
    part of its package.
    """
    read: Any = ScriptDirectory.from_config
    kept: Any = functools.lru_cache(maxsize=8)(read)
    once: Any = lambda config: kept(config) if _is_dagsters(config) else read(config)  # noqa: E731
    ScriptDirectory.from_config = once  # type: ignore[method-assign]


def _is_dagsters(config: Config) -> bool:
    """Dagster keeps its three configurations for the process, and changes none."""
    return config.get_main_option("script_location") == ALEMBIC_SCRIPTS_LOCATION


def instance_of(folder: Path) -> dg.DagsterInstance:
    """The Dagster instance whose settings are in `folder`, with this event log where they name no other storage."""
    read_migrations_once()
    settings = yaml.safe_load((folder / "dagster.yaml").read_text(encoding="utf-8")) or {}
    place = {"base_dir": str((folder / "history" / "runs").absolute())}  # Dagster's own place for them
    ours = {"event_log_storage": {"module": EventLog.__module__, "class": EventLog.__name__, "config": place}}
    overrides = {} if {"storage", "event_log_storage"} & settings.keys() else ours
    return dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(folder), overrides=cast(Any, overrides)))
