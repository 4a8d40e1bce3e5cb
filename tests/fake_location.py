"""A code location over three fake stages, as `dagster dev` loads it: home and device come from the environment.

It differs from the real one in its graph, in looking as often as the daemon can, in taking one process a run, and in a
blocking check that a test can make fail by editing a file. `python -m tests.fake_location NAME ...` builds datasets.
"""

from __future__ import annotations

import sys

import dagster as dg

from pipelines import automation_sensor, definitions, watching
from pipelines.instance import open_instance
from pipelines.resources import WorkplaceResource
from pipelines.settings import read_settings
from tests.fakes import Numbers, fake_stages
from vsr1_core.stages.base import Check, Stage, View

UNLUCKY = 13


class FakeWorkplace(WorkplaceResource):
    def stages(self) -> dict[str, Stage]:
        return fake_stages()


def unlucky(view: View, asset: str) -> str:
    return f"{UNLUCKY} is unlucky" if UNLUCKY in view.rows(asset, ["value"])["value"].to_list() else ""


Numbers.checks = (Check("is_lucky", f"No {UNLUCKY}.", unlucky),)
automation_sensor.SECONDS_BETWEEN_TICKS = watching.SECONDS_BETWEEN_TICKS = 1
definitions.executor = lambda: dg.in_process_executor
_settings = read_settings()
_workplace = FakeWorkplace(home=str(_settings.home), device=_settings.device)
defs = definitions.build_defs(_settings, fake_stages(), {"workplace": _workplace})


if __name__ == "__main__":
    with open_instance(_settings.home) as instance:
        for dataset in sys.argv[1:]:
            defs.resolve_implicit_global_asset_job_def().execute_in_process(instance=instance, partition_key=dataset)
