"""Routes for videos and thumbnails. Videos are named by their ids; byte ranges are Starlette's."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from starlette.requests import ClientDisconnect

from vsr1_core.serve import media
from vsr1_core.serve.data_routes import NOT_THERE, Id
from vsr1_core.serve.engine import Busy
from vsr1_core.serve.state import ServerState, State
from vsr1_core.stages.base import View

router = APIRouter(prefix="/api/datasets/{dataset}/video", tags=["videos"], responses=NOT_THERE)
PRIVATE = {"Cache-Control": "private, max-age=60"}
LOOKS_S = 0.2
"""How often a request looks whether another video's conversion has ended."""


@router.get("")
def video(dataset: str, state: State, id: Id) -> dict[str, Any]:  # noqa: A002
    """What the player has to know of a video: length, clock, codec, and the times of its thumbnails."""
    return dataclasses.asdict(media.facts_of(state.library.view(dataset), id))


@router.get("/file", response_class=FileResponse)
async def file(
    dataset: str,
    state: State,
    request: Request,
    id: Id,  # noqa: A002
    converted: bool = False,
) -> FileResponse:
    """The video's file, or with `converted` a copy that every browser plays, made when it is first asked for."""
    view = await run_in_threadpool(state.library.view, dataset)
    found = await (_converted(state, view, id, request) if converted else run_in_threadpool(media.original, view, id))
    return FileResponse(found.path, media_type=found.media_type, headers=PRIVATE)


async def _converted(state: ServerState, view: View, video_id: str, request: Request) -> media.Playable:
    """The converted video, once it is its turn. Waiting takes no thread: the server has 40 of them, and the requests
    of 40 videos that a person opened and left kept all others waiting. Busy: nobody waits for it any more."""
    wanted = await run_in_threadpool(state.conversions.wanted, view, video_id)
    while (found := await run_in_threadpool(state.conversions.made, wanted)) is None:
        await asyncio.sleep(LOOKS_S)
        if await _has_left(request):
            raise Busy("nobody waits for this video any more")
    return found


async def _has_left(request: Request) -> bool:
    """Whether the client closed its connection, which is told after the body, here an empty one."""
    try:
        await request.body()
    except ClientDisconnect:
        return True
    return await request.is_disconnected()


@router.get("/thumbnail", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
def thumbnail(
    dataset: str,
    state: State,
    id: Id,  # noqa: A002
    frame: Annotated[int, Query(ge=0, le=100_000)] = 0,
) -> Response:
    """A stored frame as a small JPEG; `frame` counts the times in `frames_s` of the video, from 0."""
    return Response(media.thumbnail(state.library.view(dataset), id, frame), media_type="image/jpeg", headers=PRIVATE)
