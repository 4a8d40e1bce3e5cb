"""A Ray cluster on this machine for tests, and what becomes of its processes."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vsr1_core.rows.results import Result

NODE_MEMORY = {"object_store_memory": 80 << 20}
START_S = 120
"""Within so many seconds all nodes have to be there."""


@contextlib.contextmanager
def small_cluster() -> Iterator[Any]:
    """A head that does no work, and a node with 2 CPUs."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_health_check_period_ms", "500")  # a dead node is noticed sooner
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")  # else a machine whose memory others use loses workers
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **NODE_MEMORY})
        made.add_node(num_cpus=2, **NODE_MEMORY)
        made.wait_for_nodes(START_S)
        yield made
        made.shutdown()


def outcomes(results: Iterator[Result[Any, Any]]) -> dict[Any, Result[Any, Any]]:
    """Item -> its result; each item must have one."""
    found: dict[Any, Result[Any, Any]] = {}
    for result in results:
        assert result.item not in found
        found[result.item] = result
    return found


def model_workers(cluster: Any) -> list[int]:
    """Processes of the model workers on the cluster's nodes."""
    raylets = {process.pid for node in cluster.list_all_nodes() for process in _raylets(node)}
    return sorted(pid for pid, parent, name in _processes() if parent in raylets and name.startswith("ray::ModelWork"))


def kill_model_workers(cluster: Any) -> None:
    """Kill those that are there now."""
    for pid in model_workers(cluster):
        with contextlib.suppress(ProcessLookupError):  # one of earlier work was about to end
            os.kill(pid, signal.SIGKILL)


def _raylets(node: Any) -> Iterator[Any]:
    return (started.process for started in node.all_processes.get("raylet", ()))


def _processes() -> Iterator[tuple[int, int, str]]:
    """(process, parent, title) of all processes."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            yield int(folder.name), parent, (folder / "cmdline").read_text().strip("\0 ")


def listening() -> set[str]:
    """The addresses on which this process and its descendants accept connections."""
    parents = {pid: parent for pid, parent, _ in _processes()}
    family = {os.getpid()}
    for _ in range(6):
        family |= {pid for pid, parent in parents.items() if parent in family}
    sockets = {str(fd.readlink()) for pid in family for fd in _open_files(pid)}
    return {address for address, inode in _listening_sockets() if f"socket:[{inode}]" in sockets}


def _open_files(pid: int) -> list[Path]:
    with contextlib.suppress(OSError):
        return [fd for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()]
    return []


def _listening_sockets() -> Iterator[tuple[str, str]]:
    """(IP address, inode) of every TCP socket of this machine that accepts connections."""
    for line in [line for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]:
        (
            _,
            local,
            _,
            state,
            *_,
        ) = line.split()
        if state == "0A":
            yield _ip(local.partition(":")[0]), line.split()[9]


def _ip(digits: str) -> str:
    """An address as /proc spells it: words of 32 bits, each with its last byte first."""
    words = [bytes.fromhex(digits[i : i + 8])[::-1] for i in range(0, len(digits), 8)]
    address = ipaddress.ip_address(b"".join(words))
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)
