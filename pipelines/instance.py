"""Dagster's own state, in `<home>/dagster` or in PostgreSQL: made on first use, and cleaned of runs whose process is
gone.
"""

from __future__ import annotations

import os
import socket
from importlib.util import find_spec
from pathlib import Path

import dagster as dg

from pipelines.resources import POSTGRES_URL, uses_postgres
from vsr1_core.lake import atomic_path

PID_TAG, HOST_TAG = "vsr1/pid", "vsr1/host"
POSTGRES_STORAGE = f"""
# The URL itself, with its password, stays in the environment.
storage:
  postgres:
    postgres_url:
      env: {POSTGRES_URL}
"""


def dagster_home(home: Path) -> Path:
    """The folder of Dagster's state, with our settings in it. With a database it holds these and captured logs only,
    and is another folder: neither history is shown as the other's.

    Raises ImportError where a database is asked for and the package for it is not installed.
    """
    with_database = uses_postgres()
    folder = home / ("dagster_postgres" if with_database else "dagster")
    if with_database and find_spec("dagster_postgres") is None:
        raise ImportError(f"{POSTGRES_URL} is set, but dagster-postgres is missing: pip install -e '.[postgres]'")
    if not (folder / "dagster.yaml").exists():
        text = Path(__file__).with_name("dagster.yaml").read_text(encoding="utf-8")
        with atomic_path(folder / "dagster.yaml") as temporary:
            temporary.write_text(text + (POSTGRES_STORAGE if with_database else ""), encoding="utf-8")
    return folder


def open_instance(home: Path) -> dg.DagsterInstance:
    """The instance that the UI shows too."""
    return dg.DagsterInstance.from_config(str(dagster_home(home)))


def process_tags() -> dict[str, str]:
    """Who runs this: with these a later build can tell that the process is gone."""
    return {PID_TAG: str(os.getpid()), HOST_TAG: socket.gethostname()}


def close_dead_runs(instance: dg.DagsterInstance) -> int:
    """Mark runs of killed builds on this host as failed and free their pool slots; a slot kept would block for ever."""
    filters = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING],
        tags={HOST_TAG: socket.gethostname()},
    )
    dead = [run for run in instance.get_runs(filters) if not _is_alive(int(run.tags[PID_TAG]))]
    for run in dead:
        instance.report_run_failed(run, "The process of this build is gone; finished shards are kept.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return len(dead)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
