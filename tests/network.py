"""Network namespaces as machines: a head and two nodes, each with an address and links of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

HEAD, NODES = "10.77.0.1", ("10.77.0.2", "10.77.0.3")
ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Network:
    """names: address -> namespace. The bridge is in the namespace of the head; `port-1`, `port-2` lead to the nodes."""

    names: dict[str, str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, address: str, *command: str, **environment: str) -> subprocess.Popen[str]:
        """A program on one of the machines, whose output goes into a pipe."""
        environ = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        environ |= {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", **environment}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        inside = ["ip", "netns", "exec", self.names[address]]
        program = subprocess.Popen([*inside, *command], env=environ, cwd=ROOT, **pipes)
        self.started.append(program)
        return program

    def set_link(self, number: int, state: str) -> None:
        """Cut the link of a node (`down`), or mend it (`up`)."""
        _ip("-n", self.names[HEAD], "link", "set", f"port-{number}", state)

    def close(self) -> None:
        """End everything that runs on the machines, and remove them."""
        for name in self.names.values():
            for pid in _ip("netns", "pids", name).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _ip("netns", "del", name)
        for program in self.started:
            program.wait()


@contextlib.contextmanager
def three_machines() -> Iterator[Network]:
    """A head and two nodes, connected by a bridge. Skips the test where namespaces are not permitted."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        pytest.skip("needs Linux with the program `ip` (iproute2)")
    made = Network({})
    try:
        for number, address in enumerate((HEAD, *NODES)):
            name = f"vsr1-{os.getpid()}-{number}"
            _ip("netns", "add", name)
            made.names[address] = name
            _ip("-n", name, "link", "set", "lo", "up")
        _connect(made.names)
    except subprocess.CalledProcessError as error:
        made.close()
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
    try:
        yield made
    finally:
        made.close()


def _connect(names: dict[str, str]) -> None:
    _ip("-n", names[HEAD], "link", "add", "bridge", "type", "bridge")
    _ip("-n", names[HEAD], "address", "add", f"{HEAD}/24", "dev", "bridge")
    _ip("-n", names[HEAD], "link", "set", "bridge", "up")
    for number, address in enumerate(NODES, 1):
        ends = ["netns", names[HEAD], "type", "veth", "peer", "name", "network", "netns", names[address]]
        _ip("link", "add", f"port-{number}", *ends)
        _ip("-n", names[HEAD], "link", "set", f"port-{number}", "master", "bridge", "up")
        _ip("-n", names[address], "address", "add", f"{address}/24", "dev", "network")
        _ip("-n", names[address], "link", "set", "network", "up")


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout
