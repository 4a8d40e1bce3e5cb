"""The server of a home, as other processes of the same machine find it: a small file with its address, and its client.

`vsr1 serve` writes `<home>/serve.json`, which only its owner can read, because it has the token. The server is
`vsr1_core.serve`; nothing here imports it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vsr1_core.home.search_result import Found
from vsr1_core.rows.files import read_json, write_json

if TYPE_CHECKING:
    from vsr1_core.home.search import SearchRequest

ALIVE_S, ANSWER_S = 2.0, 600.0
"""How long a health check and a search may take, in seconds."""


@dataclass(frozen=True)
class RunningServer:
    """A server of a home. url: without a slash at the end. token: what it asks for; empty for none. instance: a random
    word of this start, by which another server that has the same address by now is told apart."""

    url: str
    token: str
    instance: str

    @property
    def headers(self) -> dict[str, str]:
        """What a request to the server needs."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


def address_path(home: Path) -> Path:
    """The file that says where the server of a home is."""
    return home / "serve.json"


@contextlib.contextmanager
def announced(home: Path, server: RunningServer) -> Iterator[None]:
    """Keep the file with the server's address while the block runs. The file of a later server is left alone."""
    path = address_path(home)
    home.mkdir(parents=True, exist_ok=True)
    before = os.umask(0o077)
    try:
        write_json(path, dataclasses.asdict(server), lasting=False)
    finally:
        os.umask(before)
    try:
        yield
    finally:
        if _read(path) == server:
            path.unlink(missing_ok=True)


def running_server(home: Path) -> RunningServer | None:
    """The server of this home; None where there is none, or where it does not answer."""
    server = _read(address_path(home))
    if server is None:
        return None
    import httpx2

    try:
        with _client(server, ALIVE_S) as client:
            answer = client.get("/api/health")
            alive = answer.status_code == 200 and answer.json().get("instance") == server.instance
    except (httpx2.HTTPError, ValueError, AttributeError):
        return None
    return server if alive else None


def search_through(server: RunningServer, dataset: str, request: SearchRequest) -> Found:
    """Let the server search. The hits have no paths.

    Raises:
        ValueError: The server refused the request, and the message is its own; or it is of another version.
        OSError: The server does not answer any more.
    """
    import httpx2

    asked = {**dataclasses.asdict(request), "dataset": dataset}
    try:
        with _client(server, ANSWER_S) as client:
            answer = client.post("/api/search", json=asked)
    except httpx2.HTTPError as error:
        raise OSError(f"the server at {server.url} did not answer ({error}); search without it: --local") from error
    if answer.status_code != 200:
        raise ValueError(f"the server at {server.url} refused the search: {_reason(answer)}")
    try:
        return Found.from_dict(answer.json())
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"the server at {server.url} is of another version of this project: start it again, or search without it: "
            "--local"
        ) from error


def _client(server: RunningServer, timeout_s: float) -> Any:
    import httpx2

    # Proxies of the environment are for other machines.
    return httpx2.Client(base_url=server.url, headers=server.headers, timeout=timeout_s, trust_env=False)


def _reason(answer: Any) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}"


def _read(path: Path) -> RunningServer | None:
    try:
        return RunningServer(**read_json(path))
    except (OSError, ValueError, TypeError):
        return None
