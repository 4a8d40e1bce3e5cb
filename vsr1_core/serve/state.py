"""What the routes of one server share."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from vsr1_core.serve.builds import Builds
from vsr1_core.serve.engine import Engine, Limits
from vsr1_core.serve.library import Library
from vsr1_core.serve.media import Conversions
from vsr1_core.serve.metrics import RequestCounts


@dataclass
class ServerState:
    """open_datasets: names of the datasets whose models are open. instance: tells this start from others. ui_url: where
    Dagster's UI runs, for links to assets; empty for none. builds: those that the page started."""

    library: Library
    engine: Engine
    conversions: Conversions
    limits: Limits = field(default_factory=Limits)
    open_datasets: Callable[[], list[str]] = list
    ui_url: str = ""
    builds: Builds = field(default_factory=Builds)
    requests: RequestCounts = field(default_factory=RequestCounts)
    instance: str = field(default_factory=lambda: secrets.token_hex(8))


def state_of(request: Request) -> ServerState:
    """The state of the server that got the request."""
    state: ServerState = request.app.state.server
    return state


State = Annotated[ServerState, Depends(state_of)]
"""The parameter of a route that gets the server's state."""
