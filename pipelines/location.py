"""The code location as `vsr1 ui` loads it: how `dagster dev` is told of it, and how a run says that it is one of it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    from dagster._core.remote_origin import CodeLocationOrigin, RemoteJobOrigin

WORKSPACE = Path(__file__).resolve().parent.parent / "workspace.yaml"
"""Names the code location. It exists in a checkout, not in a wheel, where Dagster names it as its module."""
MODULE = "pipelines.definitions"


def location_arguments() -> list[str]:
    """The arguments by which `dagster dev` loads the code location."""
    return ["-w", str(WORKSPACE)] if WORKSPACE.exists() else ["-m", MODULE]


def mark_runs(instance: dg.DagsterInstance, job: str) -> None:
    """Let the runs that `instance` makes from now on belong to this job of the code location.

    Dagster's calls that run a job in this process have no argument for it, and the timeline of the UI leaves out each
    run that belongs to no code location.
    """
    made = functools.partial(instance.create_run_for_job, remote_job_origin=job_origin(job))
    instance.create_run_for_job = made  # type: ignore[method-assign]


def job_origin(job: str) -> RemoteJobOrigin:
    """Where the UI finds this job."""
    from dagster._core.definitions.repository_definition.valid_definitions import SINGLETON_REPOSITORY_NAME
    from dagster._core.remote_origin import RemoteJobOrigin, RemoteRepositoryOrigin

    return RemoteJobOrigin(RemoteRepositoryOrigin(_location_origin(), SINGLETON_REPOSITORY_NAME), job)


def _location_origin() -> CodeLocationOrigin:
    from dagster._core.workspace.load import location_origin_from_module_name, location_origins_from_yaml_paths

    if not WORKSPACE.exists():
        return location_origin_from_module_name(MODULE, attribute=None, working_directory=None)
    (origin,) = location_origins_from_yaml_paths([str(WORKSPACE)])
    return origin
