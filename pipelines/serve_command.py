"""`vsr1 serve`: the page and the API over a home. The address and the token are decided here."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands import UserError, command, free_port, say
from pipelines.settings import execution_of, read_settings, read_token

if TYPE_CHECKING:
    from vsr1_core.serve.builds import Builds

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PROGRAM = (sys.executable, "-m", "vsr1_core")
"""`vsr1` of this installation, as a build starts it."""
END_S = 8.0
"""How long a build may take to end with the server, in seconds. `docker stop` kills both after 10."""
NOT_INSTALLED = (
    "`vsr1 serve` needs FastAPI and uvicorn, which are not installed; run: pip install 'videosearch-r1[serve]' "
    "(from a checkout: pip install -c constraints.txt -e '.[serve]')"
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: [bold]vsr1 serve[/bold], then open the address that it prints")(serve)


@command
def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8321,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Any other than this machine's own asks visitors for a token.")
    ] = "127.0.0.1",
    name: Annotated[
        list[str] | None, typer.Option(help="Host name by which visitors address the server; may be repeated.")
    ] = None,
    ui: Annotated[str, typer.Option(help="Address of Dagster's UI, for links to its assets.")] = "",
) -> None:
    """Search in the browser, with the models kept loaded: a page and a JSON API. Ctrl-C stops it.

    VSR1_SERVE_TOKEN is the token that is asked for; without it, one is made up where visitors of other machines can
    come.
    """
    try:
        from vsr1_core.serve.app import serve as run
        from vsr1_core.serve.app import state_of_home
        from vsr1_core.serve.guards import Access
    except ImportError as error:
        raise UserError(NOT_INSTALLED) from error
    settings = read_settings()
    port = free_port(host, port)
    token = read_token() or ("" if host in LOOPBACK else secrets.token_urlsafe(24))
    access = Access(token, frozenset([*(name or []), *_own_names(host)]), any_address=host not in LOOPBACK)
    state = state_of_home(
        settings.home, lambda: execution_of(settings, lambda _line: None), ui_url=ui, builds=page_builds(settings.home)
    )
    url = f"http://{_local_name(host)}:{port}"
    typer.echo(f"Serving {settings.home} on {url}{f'/?token={token}' if token else ''}  (Ctrl-C stops it)")
    run(settings.home, state, access, host, port, url)


def page_builds(home: Path) -> Builds:
    """The builds of the page: `vsr1 build` as a child, a Dagster run that the UI of this home shows. Without Dagster
    there are none."""
    from vsr1_core.serve.builds import Builds

    child = ChildBuild(home)
    return Builds(child.run, child.end) if find_spec("dagster") is not None else Builds()


class ChildBuild:
    """Runs `vsr1 build` in a home, one at a time, until `end` is called."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._lock, self._has_ended = threading.Lock(), False
        self._child: subprocess.Popen[str] | None = None

    def run(self, dataset: str, told: Callable[[str], None]) -> str:
        """Build a dataset of the home. Returns why the build stopped; empty where it ended well."""
        with self._lock:
            if self._has_ended:
                return "the server stops"
            child = self._child = self._started(dataset)
        errors = list[str]()
        with child:
            for line in child.stderr or ():
                if errors or line.startswith("error: "):
                    errors.append(line.strip().removeprefix("error: "))
                told(line.rstrip())
        return "" if child.returncode == 0 else " ".join(errors) or f"the build ended with status {child.returncode}"

    def _started(self, dataset: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*PROGRAM, "build", f"--dataset={dataset}"],
            env={**os.environ, "VSR1_HOME": str(self._home)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )

    def end(self) -> None:
        """Stop the build that runs, and start no other. Dagster takes SIGTERM as it takes Ctrl-C; a build that has not
        ended `END_S` later is killed."""
        with self._lock:
            self._has_ended, child = True, self._child
        if child is None or child.poll() is not None:
            return
        say("Stopping the build that was started on the page; what is finished is kept.")
        child.terminate()
        try:
            child.wait(END_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _own_names(host: str) -> list[str]:
    return [] if host in LOOPBACK else [socket.gethostname().lower(), socket.getfqdn().lower()]


def _local_name(host: str) -> str:
    """How this machine itself reaches the server."""
    if host in ("0.0.0.0", "::", ""):  # compared, not bound
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
