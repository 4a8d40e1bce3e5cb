"""Dagster's own state, in `<home>/dagster` or in PostgreSQL. It is made on first use; runs whose process is gone are
closed.
"""

from __future__ import annotations

import json
import os
import socket
from importlib.util import find_spec
from pathlib import Path

import dagster as dg
from dagster._core.storage.tags import GRPC_INFO_TAG

from pipelines.settings import POSTGRES_URL, uses_postgres
from vsr1_core.rows.files import atomic_path

PID_TAG, HOST_TAG = "vsr1/pid", "vsr1/host"
MAX_FIRST_EVENTS = 5
"""One of the first events of a run that the UI or the daemon launched names its process."""
POSTGRES_STORAGE = f"""
# The URL itself, with its password, stays in the environment.
storage:
  postgres:
    postgres_url:
      env: {POSTGRES_URL}
"""


def dagster_home(home: Path) -> Path:
    """The folder of Dagster's state, with our settings in it.

    With a database, another folder is used, which holds only the settings and captured logs: so neither history is
    taken for the other.

    Raises:
        ImportError: A database is asked for, and the package for it is not installed.
    """
    with_database = uses_postgres()
    folder = home / ("dagster_postgres" if with_database else "dagster")
    if with_database and find_spec("dagster_postgres") is None:
        raise ImportError(f"{POSTGRES_URL} is set, but dagster-postgres is missing; run: pip install -e '.[postgres]'")
    if not (folder / "dagster.yaml").exists():
        text = Path(__file__).with_name("dagster.yaml").read_text(encoding="utf-8")
        with atomic_path(folder / "dagster.yaml") as temporary:
            temporary.write_text(text + (POSTGRES_STORAGE if with_database else ""), encoding="utf-8")
    return folder


def open_instance(home: Path) -> dg.DagsterInstance:
    """Open the Dagster instance of this home, which is also the one that the UI shows."""
    return dg.DagsterInstance.from_config(str(dagster_home(home)))


def process_tags() -> dict[str, str]:
    """Tags that say which process runs this. With them a later build can tell that the process is gone."""
    return {PID_TAG: str(os.getpid()), HOST_TAG: socket.gethostname()}


def close_dead_runs(instance: dg.DagsterInstance) -> int:
    """Mark runs on this host whose process is gone as failed, and free their places in the pools.

    These are runs of killed builds, and of a UI that was killed together with its runs. A place in a pool that is not
    freed blocks all later runs for ever.

    Returns:
        How many runs were closed.
    """
    statuses = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.CANCELING]
    runs = instance.get_runs(dg.RunsFilter(statuses=statuses))
    dead = [run for run in runs if (pid := _pid_on_this_host(instance, run)) is not None and not _is_alive(pid)]
    for run in dead:
        instance.report_run_failed(run, "The process of this run is gone; finished shards are kept.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return len(dead)


def _pid_on_this_host(instance: dg.DagsterInstance, run: dg.DagsterRun) -> int | None:
    """The process id of a run; None if the run is on another host, or not known to be on this one."""
    if run.tags.get(HOST_TAG) == socket.gethostname():
        return int(run.tags[PID_TAG])
    if uses_postgres() or json.loads(run.tags.get(GRPC_INFO_TAG, "{}")).get("host") != "localhost":
        return None
    records = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT, limit=MAX_FIRST_EVENTS)
    events = [record.event_log_entry.get_dagster_event().engine_event_data.metadata for record in records.records]
    return next((int(str(metadata["pid"].value)) for metadata in events if "pid" in metadata), None)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
