"""Dagster's own state under `<home>/dagster`: made on first use, and cleaned of runs whose process is gone."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import dagster as dg

PID_TAG, HOST_TAG = "vsr1/pid", "vsr1/host"


def dagster_home(home: Path) -> Path:
    """The folder of Dagster's state, with our settings in it."""
    folder = home / "dagster"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "dagster.yaml").exists():
        shutil.copyfile(Path(__file__).with_name("dagster.yaml"), folder / "dagster.yaml")
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
