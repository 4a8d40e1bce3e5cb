"""`vsr1 serve` as a process, and `vsr1 search` through a server that runs."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines import serve_command
from pipelines.cli import app
from pipelines.settings import read_token
from tests.core.serve.served import DATASET, FakeModels, client_of, running, state_of, write_home
from tests.waiting import until
from vsr1_core.home.running import RunningServer, address_path, announced, running_server, search_through
from vsr1_core.home.search import SearchRequest
from vsr1_core.home.search_result import Found
from vsr1_core.serve.state import ServerState

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "0123456789abcdef0123"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_home(tmp_path_factory.mktemp("served"))


def test_a_search_uses_the_running_server_of_its_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSR1_HOME", str(home))
    state = state_of(home, FakeModels())
    with running(state) as address, announced(home, RunningServer(address, TOKEN, state.instance)):
        arguments = ["search", "a dog", "-d", DATASET, "-k", "2", "--format", "json"]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert re.search(rf"^Searched by the server at {address} in \d+\.\d s\.$", result.stderr, re.MULTILINE)
        found = json.loads(result.stdout)
        assert (found["verdict"], found["hits"][0]["video"]) == ("matched in turn 2", "pool")
        assert found["hits"][0]["path"] == str(home / "videos/1.mkv"), "paths come from the tables of the home"
        refused = CliRunner().invoke(app, [*arguments[:1], "poison", *arguments[2:]])
        assert refused.exit_code == 1
        assert "refused the search: the server made a mistake" in refused.stderr
        with announced(home, RunningServer(address, TOKEN, "another")):
            assert running_server(home) is None, "another start has that address by now"
    assert not address_path(home).exists()


def test_a_server_of_another_version_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, asked = state_of(home, FakeModels()), SearchRequest("a dog", top_k=2)
    fields = Found.to_dict
    monkeypatch.setattr(Found, "to_dict", lambda found: {**fields(found), "hits": [{"place": 1}]})
    with running(state) as address:
        server = RunningServer(address, TOKEN, state.instance)
        with pytest.raises(ValueError, match="is of another version of this project: start it again"):
            search_through(server, DATASET, asked)


@pytest.mark.parametrize("obeys", [True, False])
def test_a_build_of_the_page_ends_with_its_server(home: Path, monkeypatch: pytest.MonkeyPatch, obeys: bool) -> None:
    ignore = "" if obeys else "signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    script = f"import os, signal, sys, time; {ignore} print(os.getpid(), file=sys.stderr, flush=True); time.sleep(600)"
    monkeypatch.setattr(serve_command, "PROGRAM", (sys.executable, "-c", script))
    monkeypatch.setattr(serve_command, "END_S", 120 if obeys else 0.1)
    state = dataclasses.replace(state_of(home, FakeModels()), builds=serve_command.page_builds(home))
    of = f"/api/datasets/{DATASET}/build"
    with client_of(state) as client:
        assert client.post(of).json()["state"] == "running"
        until(lambda: client.get(of).json()["lines"])
        (pid,) = client.get(of).json()["lines"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
    until(lambda: has_ended(state))  # its thread hears of it later
    state.builds.start(DATASET)
    until(lambda: has_ended(state))
    assert last_problem(state) == "the server stops", "none is started any more"


def has_ended(state: ServerState) -> bool:
    last = state.builds.last(DATASET)
    return last is not None and last.state != "running"


def last_problem(state: ServerState) -> str:
    last = state.builds.last(DATASET)
    assert last is not None
    return last.problem


@pytest.mark.slow
def test_a_server_says_where_it_is_while_it_runs(tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "VSR1_HOME": str(tmp_path), "VSR1_SERVE_TOKEN": TOKEN}
    command = [sys.executable, "-m", "vsr1_core", "serve", "--port", "0"]
    server = subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while (found := running_server(tmp_path)) is None:
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert server.stdout is not None
        assert f"{found.url}/?token={TOKEN}" in server.stdout.readline()
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=120)
    assert not address_path(tmp_path).exists(), "a stopped server leaves no address behind"


def test_a_taken_port_and_a_short_token_are_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSR1_HOME", str(tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = CliRunner().invoke(app, ["serve", "--port", str(taken.getsockname()[1])])
    assert result.exit_code == 1
    assert "choose another: --port 0" in result.stderr
    with pytest.raises(ValueError, match="at least 16"):
        read_token({"VSR1_SERVE_TOKEN": "short"})
    assert read_token({}) == ""
