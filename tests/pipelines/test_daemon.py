"""A real `dagster dev` with its daemon over three fake stages: what the event log says ran after an edit."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

from pipelines.instance import dagster_home
from tests.fakes import write_numbers
from vsr1_core.datasets.registry import DatasetEntry, save_entry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]  # a busy machine takes eight minutes

ROOT = Path(__file__).resolve().parents[2]
START = {"a": 1, "b": 2, "c": 3}
SENSORS = ("watch_files", "run_what_changed")
MAX_SECONDS = 600
START_SENSOR = """
mutation($sensor: SensorSelector!) {
  startSensor(sensorSelector: $sensor) { __typename ... on PythonError { message } }
}
"""


@dataclass
class Server:
    """A running `dagster dev` of one home, and its event log."""

    home: Path
    instance: dg.DagsterInstance
    port: int

    def ask(self, query: str, variables: dict[str, Any]) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/graphql", body, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def is_up(self) -> bool:
        try:
            return bool(self.ask("{ version }", {})["data"]["version"])
        except OSError:
            return False

    def turn_on(self, sensor: str) -> None:
        """As the switch in the UI does."""
        location = {"repositoryLocationName": "tests.fake_location", "repositoryName": "__repository__"}
        said = self.ask(START_SENSOR, {"sensor": {**location, "sensorName": sensor}})
        assert said["data"]["startSensor"]["__typename"] == "Sensor", said

    def made(self) -> Counter[tuple[str, str]]:
        """(asset, dataset) -> how often it was materialised, by the event log."""
        events = self.instance.get_event_records(dg.EventRecordsFilter(dg.DagsterEventType.ASSET_MATERIALIZATION))
        return Counter((e.asset_key.to_user_string(), e.partition_key) for e in events if e.asset_key)

    def failed_checks(self) -> set[tuple[str, str]]:
        """(asset, dataset) whose blocking check failed, in any run."""
        events = self.instance.get_event_records(dg.EventRecordsFilter(dg.DagsterEventType.ASSET_CHECK_EVALUATION))
        found = [e.event_log_entry.dagster_event.event_specific_data for e in events]
        return {(check.asset_key.to_user_string(), check.partition) for check in found if not check.passed}

    def settle(self) -> Counter[tuple[str, str]]:
        """Wait until two looks in a row asked for nothing while nothing ran; what was made until then."""
        since = time.time()

        def is_quiet() -> bool:
            open_runs = self.instance.get_run_records(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES))
            ended = [record.end_time or 0.0 for record in self.instance.get_run_records(limit=5)]
            looked = [t for t in self.ticks() if t.timestamp > max([since, *ended]) and t.end_timestamp]
            return not open_runs and len(looked) >= 2 and not any(t.run_ids for t in looked)

        wait_for(is_quiet)
        return self.made()

    def ticks(self) -> list[Any]:
        """The last ones of the sensor that asks for runs."""
        states = self.instance.all_instigator_state(instigator_type=InstigatorType.SENSOR)
        state = next(s for s in states if s.instigator_name == "run_what_changed")
        return list(self.instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=5))


def wait_for(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + MAX_SECONDS
    while not holds():
        assert time.monotonic() < end, f"nothing for {MAX_SECONDS} s"
        time.sleep(0.5)


def free_port() -> int:
    """A port that nobody listens on, below those that the system gives to whoever asks for any: it stays free until
    the server has started."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Two datasets that were built once, and a server that has its sensors on."""
    save_entry(tmp_path, DatasetEntry("other", "toy", "", str(tmp_path / "data/other")))
    for dataset in ("toy", "other"):
        write_numbers(tmp_path, dataset, START)
    folder, port = dagster_home(tmp_path), free_port()
    environ = os.environ | {"VSR1_HOME": str(tmp_path), "VSR1_DEVICE": "cpu", "DAGSTER_HOME": str(folder)}
    environ["PYTHONPATH"] = str(ROOT)
    build = [sys.executable, "-m", "tests.fake_location", "toy", "other"]
    subprocess.run(build, env=environ, check=True, capture_output=True)
    log = (tmp_path / "dev.log").open("w")
    dev = [sys.executable, "-m", "dagster", "dev", "-m", "tests.fake_location", "-p", str(port)]
    with (
        dg.DagsterInstance.from_config(str(folder)) as instance,
        subprocess.Popen(dev, env=environ, stdout=log, stderr=log, start_new_session=True) as process,
    ):
        running = Server(tmp_path, instance, port)
        try:
            wait_for(running.is_up)
            for sensor in SENSORS:
                running.turn_on(sensor)
            yield running
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def chain(dataset: str) -> Counter[tuple[str, str]]:
    return Counter((asset, dataset) for asset in ("numbers", "squares", "total", "warehouse"))


@pytest.mark.long
def test_an_edit_runs_its_dataset_and_a_failed_blocking_check_holds_only_that(server: Server) -> None:
    built = server.settle()
    assert built == chain("toy") + chain("other"), "what is built runs no more"

    write_numbers(server.home, "toy", {**START, "b": 4})
    edited = server.settle()
    assert edited - built == chain("toy")

    write_numbers(server.home, "toy", {**START, "b": 13})
    write_numbers(server.home, "other", {**START, "b": 14})
    held = server.settle()
    assert held - edited == Counter([("numbers", "toy")]) + chain("other")
    assert server.failed_checks() == {("numbers", "toy")}

    write_numbers(server.home, "toy", {**START, "b": 15})
    assert server.settle() - held == chain("toy")
