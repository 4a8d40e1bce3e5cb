"""The connection to a Ray cluster, and what every node needs before it may work. What runs there is in `ray_workers`
(row work) and `ray_actors` (models)."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from vsr1_core.rows.versions import code_digest

THIS_MACHINE = "local"
"""The address that stands for a cluster of this machine alone, which is started for the work and ends with it."""

_LOCAL: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 256 << 20}
"""How the cluster of this machine is started. Only rows travel, so that little memory for objects is enough."""

_LOOPBACK = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
"""What lets Ray 2.58 listen on 127.0.0.1 only, on Linux too: without it a cluster of one machine listens to everyone,
also with `_node_ip_address="127.0.0.1"`. Ray reads it when it is imported."""


@contextlib.contextmanager
def connected(address: str) -> Iterator[ModuleType]:
    """Yield Ray, connected to the cluster at `address`. A connection that this process already has is used and stays
    open. Raises ValueError when Ray is not installed or the cluster cannot be joined."""
    if address == THIS_MACHINE:
        os.environ.setdefault(*_LOOPBACK)
    try:
        import ray
    except ModuleNotFoundError:
        needs = "VSR1_MODEL_WORKERS" if address == THIS_MACHINE else "VSR1_RAY"
        raise ValueError(f'{needs} needs Ray: pip install -c constraints.txt -e ".[ray]"') from None
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    try:
        if address not in ("auto", THIS_MACHINE):  # without this check Ray would try to connect for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, **quiet, **(_LOCAL if address == THIS_MACHINE else {}))
    except Exception as error:  # of no other class where a node is not there within 30 s
        if address == THIS_MACHINE:
            raise ValueError(f"Ray cannot be started on this machine: {error}") from error
        hint = "Is it running, with this Python and this Ray, and is this machine one of its nodes (`ray start`)?"
        raise ValueError(f"cannot join the Ray cluster of VSR1_RAY={address}: {error}. {hint}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Needed:
    """What a node needs. sign: a file that the node has to see, in a folder that it has to be able to write to.
    folders: other folders that it has to see. code: the digest of this library's Python files."""

    sign: Path
    folders: Sequence[Path]
    code: str

    def check(self) -> None:
        """Raise ValueError, which says what is missing, when this node does not have everything."""
        for path in (self.sign, *self.folders):
            if not path.exists():
                place = path.parent if path == self.sign else path
                raise ValueError(f"it does not see {place}, which has to be on storage that all nodes share")
        with tempfile.NamedTemporaryFile(dir=self.sign.parent, prefix=".ray-"):
            pass
        if code_digest() != self.code:
            raise ValueError("it has another version of this project")


@contextlib.contextmanager
def joined(address: str, folders: Sequence[Path]) -> Iterator[tuple[ModuleType, Needed]]:
    """Yield Ray, connected to the cluster at `address`, and what its nodes need: they have to see all `folders`, and
    have to be able to write to the first one, which is created if it is missing. Raises ValueError as `connected`
    does."""
    folders[0].mkdir(parents=True, exist_ok=True)
    seen = [folder.absolute() for folder in folders[1:] if folder.is_dir()]
    with connected(address) as ray, tempfile.NamedTemporaryFile(dir=folders[0].absolute(), prefix=".ray-") as sign:
        yield ray, Needed(Path(sign.name), seen, code_digest())
