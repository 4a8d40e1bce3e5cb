"""Puts a server together: routes, guards, and the engine with the models of a home; and runs it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from fastapi import FastAPI
from starlette.types import ASGIApp

from vsr1_core.home.opened_datasets import OpenedDatasets
from vsr1_core.home.running import RunningServer, announced
from vsr1_core.home.search import SearchRequest, Told, search_together
from vsr1_core.home.search_result import Found
from vsr1_core.rows.lake import Lake
from vsr1_core.serve import correction_routes, data_routes, errors, media_routes, page_routes, search_routes
from vsr1_core.serve.builds import Builds
from vsr1_core.serve.engine import Engine, Limits
from vsr1_core.serve.guards import Access, Guards
from vsr1_core.serve.library import Library
from vsr1_core.serve.media import Conversions
from vsr1_core.serve.state import ServerState
from vsr1_core.stages.execution import Execution

ROUTERS = (
    search_routes.router,
    data_routes.router,
    correction_routes.router,
    media_routes.router,
    page_routes.router,
)
NUM_OPEN_DATASETS = 2
"""How many datasets keep their models open at once."""


def create_app(
    state: ServerState, access: Access, during: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
) -> ASGIApp:
    """The ASGI app of a server, with its guards. The engine ends with it, and so does a build that it runs. during:
    entered while the app runs; uvicorn raises the signal that stopped it again once the app has ended, so nothing after
    it would run."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with during():
            yield
        state.builds.close()
        state.engine.close()

    # FastAPI's own pages for docs load scripts from a CDN.
    app = FastAPI(
        title="VideoSearch-R1",
        description="Find the video, and the moment in it, that a text describes.",
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.server = state
    for router in ROUTERS:
        app.include_router(router)
    errors.add_to(app)
    return Guards(app, access, state.limits, state.requests.add)


def state_of_home(
    home: Path,
    execution: Callable[[], Execution],
    limits: Limits | None = None,
    ui_url: str = "",
    builds: Builds | None = None,
) -> ServerState:
    """The state of a server of `home`, whose models are opened by its first search. builds: those of the page; None
    where this machine cannot build."""
    limits = limits or Limits()
    opened = OpenedDatasets(home, execution, NUM_OPEN_DATASETS)

    def run(dataset: str, requests: Sequence[SearchRequest], told: Told) -> list[Found]:
        return search_together(opened.get(dataset), requests, told)

    return ServerState(
        library=Library(home),
        engine=Engine(run, limits.num_waiting, execution().batch_size),
        conversions=Conversions(
            Lake(home / "lake").cache("converted_videos"), limits.converted_bytes, limits.conversion_s
        ),
        limits=limits,
        open_datasets=opened.names,
        ui_url=ui_url,
        builds=builds or Builds(),
    )


def serve(home: Path, state: ServerState, access: Access, host: str, port: int, url: str) -> None:
    """Answer requests until the process is stopped. `url` is how other processes of this machine reach it."""
    import uvicorn

    from vsr1_core.home import warehouse

    warehouse.refresh(home)  # views from before an update lack columns
    config = uvicorn.Config(
        create_app(state, access, lambda: announced(home, RunningServer(url, access.token, state.instance))),
        host=host,
        port=port,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=3,
        limit_concurrency=200,
    )
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run()
