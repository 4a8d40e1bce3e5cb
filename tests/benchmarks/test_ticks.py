"""What a tick of the sensor costs that finds nothing moved, against one that evaluates all conditions."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from pipelines.automation_sensor import QUIET
from tests.benchmarks.measuring import PROCESSOR, Measured, in_seconds, line
from tests.cheap_stages import cheap_stages
from tests.small_world import SmallWorld, build, fill
from tests.ticker import Ticker
from vsr1_core.configurations import NANO

NUM_DATASETS, REPEATS = 10, 5


def test_a_tick_with_nothing_moved(tmp_path: Path) -> None:
    for number in range(NUM_DATASETS):
        world = fill(SmallWorld(tmp_path, f"small{number}"), num_train=2, num_test=1).register()
        build(world.view(cheap_stages(), NANO))
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
        ticker = Ticker(tmp_path, instance, cheap_stages)
        full, quiet = Measured(), Measured()
        full.run(ticker.ask, PROCESSOR)
        for _ in range(REPEATS):
            quiet.run(ticker.ask, PROCESSOR)
        assert full.result == quiet.result == {}
        assert ticker.told.skip_message == QUIET
    what = f"a tick with nothing moved, {NUM_DATASETS} datasets"
    times = in_seconds(full.median, quiet.median)
    print(line(what, *times, quiet.median / full.median, "at most 0.2 s", against="the first", judged=quiet.median))
