"""Dagster's own state, in `<home>/dagster` or in PostgreSQL. It is made on first use; runs whose process is gone are
closed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import socket
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import dagster as dg
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.tags import GRPC_INFO_TAG

from assets._runs import LEASE_TAG, process_events
from pipelines.event_log import instance_of
from pipelines.settings import POSTGRES_URL, uses_postgres
from vsr1_core.rows.files import atomic_path
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.lease import SILENT_S, silent_since
from vsr1_core.rows.process_identity import ProcessIdentity, identity_of, started_at_s

PID_TAG, HOST_TAG, PROCESS_TAG = "vsr1/pid", "vsr1/host", "vsr1/process"
"""The first two are for people, the third one is the identity of the process."""
DEAD_SILENCE_S = SILENT_S[False]
"""Seconds without a heartbeat after which a run that cannot be looked up counts as dead."""
SECONDS_BETWEEN_ASSIGNMENTS = 15.0
CLOCK_S = 5.0
"""By how much the clocks of the processes' start times and of events may differ."""
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
    return instance_of(dagster_home(home))


def process_tags() -> dict[str, str]:
    """Tags that say which process runs this. With them a later build can tell that the process is gone."""
    here = identity_of()
    return {PID_TAG: str(here.pid), HOST_TAG: here.host, PROCESS_TAG: json.dumps(dataclasses.asdict(here))}


def close_dead_runs(instance: dg.DagsterInstance, home: Path) -> int:
    """Mark runs whose process is gone as failed, and free their places in the pools.

    These are runs of killed builds, and of a UI that was killed together with its runs. A place in a pool that is not
    freed blocks all later runs for ever.

    Returns:
        How many runs were closed.
    """
    statuses = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.CANCELING]
    runs = instance.get_runs(dg.RunsFilter(statuses=statuses))
    dead = [run for run in runs if _is_gone(instance, run, home)]
    for run in dead:
        instance.report_run_failed(run, "The process of this run is gone; what is finished is kept.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return len(dead)


def assign_free_places(instance: dg.DagsterInstance) -> None:
    """Give free places of pools to the steps that wait for them.

    In Dagster 1.13 a step that asks for a place while it is being given back enters the list of those that wait after
    the other step has looked there, and waits for ever beside a free place.
    """
    storage = instance.event_log_storage
    if isinstance(storage, SqlEventLogStorage):
        storage.assign_pending_steps(list(storage.get_concurrency_keys()))


@contextlib.contextmanager
def free_places_assigned(instance: dg.DagsterInstance) -> Iterator[None]:
    """For the block, `assign_free_places` again and again."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(SECONDS_BETWEEN_ASSIGNMENTS):
            assign_free_places(instance)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _is_gone(instance: dg.DagsterInstance, run: dg.DagsterRun, home: Path) -> bool:
    """Whether nothing carries this run on any more; False where that cannot be told from here."""
    if PROCESS_TAG in run.tags:
        state = ProcessIdentity(**json.loads(run.tags[PROCESS_TAG])).state()
        silent_s = _silent_s(run, home)
        return state == "dead" or silent_s == math.inf or (state == "unknown" and silent_s > DEAD_SILENCE_S)
    if uses_postgres() or json.loads(run.tags.get(GRPC_INFO_TAG, "{}")).get("host") != "localhost":
        return False
    named = next(process_events(run, instance), None)
    return named is not None and not _is_alive(*named)


def _silent_s(run: dg.DagsterRun, home: Path) -> float:
    """Seconds since a run that `vsr1 build` started was last heard of; infinite where it lost the lease of its dataset,
    which it holds from before it starts until after it has ended. This tells of a container's process that cannot be
    looked up. 0 where the run holds none, or may be one of another home in the same database.
    """
    shared, dataset = run.tags.get(LEASE_TAG), run.tags.get("dagster/partition")
    if shared is None or dataset is None or (uses_postgres() and run.tags.get(HOST_TAG) != socket.gethostname()):
        return 0.0
    return silent_since(Lake(home / "lake").lease_folder(dataset), shared)


def _is_alive(pid: int, named_at_s: float) -> bool:
    """Whether the process that was named at this time is alive, and not a later one with the same id."""
    at_s = started_at_s(pid)
    return bool(identity_of(pid).started) and (at_s is None or at_s < named_at_s + CLOCK_S)
