"""Which process this is, in a form that another process, also after a restart, can compare with those that are alive.

A process id alone is reused: a container's first process is number 1 again after each restart. With the start time it
is unique within one boot of a machine. Processes of another pid namespace (container) or machine cannot be looked up.
"""

from __future__ import annotations

import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["alive", "dead", "unknown"]
_PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessIdentity:
    """host: the machine's name. boot: an id of its current boot. namespace: of process ids. started: when the process
    started, as the system spells it."""

    host: str
    boot: str
    namespace: str
    pid: int
    started: str

    def state(self) -> State:
        """Whether the process is alive; `unknown` for one that cannot be looked up from here."""
        if (self.host, self.boot, self.namespace) != _place():
            return "unknown"
        return "alive" if self.started and _started(self.pid) == self.started else "dead"

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def identity_of(pid: int | None = None) -> ProcessIdentity:
    """The identity of a process of this machine and namespace, by default of this process."""
    pid = os.getpid() if pid is None else pid
    return ProcessIdentity(*_place(), pid, _started(pid))


def _place() -> tuple[str, str, str]:
    """Host, boot and pid namespace of this process. The last two are empty where the system does not tell them."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return socket.gethostname(), boot, os.readlink(_PROC / "self/ns/pid")  # noqa: PTH115  # no path
    except OSError:
        return socket.gethostname(), "", ""


def _started(pid: int) -> str:
    """Start time of a process; empty where there is no such process, or only what is left of an ended one."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return "" if (_PROC / "self").exists() else _started_by_ps(pid)
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return "" if fields[0] in ("Z", "X") else fields[19]


def started_at_s(pid: int) -> float | None:
    """When a process started, in seconds since 1970; None where the system does not tell it."""
    ticks = _started(pid)
    if not ticks.isdigit():
        return None
    booted = next(line for line in (_PROC / "stat").read_text().splitlines() if line.startswith("btime "))
    return int(booted.split()[1]) + int(ticks) / os.sysconf("SC_CLK_TCK")


def _started_by_ps(pid: int) -> str:
    found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.strip()
