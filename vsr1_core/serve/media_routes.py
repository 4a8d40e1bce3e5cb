"""Routes for videos and thumbnails. Videos are named by their ids; byte ranges are Starlette's."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import FileResponse

from vsr1_core.serve import media
from vsr1_core.serve.data_routes import NOT_THERE, Id
from vsr1_core.serve.state import State

router = APIRouter(prefix="/api/datasets/{dataset}/video", tags=["videos"], responses=NOT_THERE)
PRIVATE = {"Cache-Control": "private, max-age=60"}


@router.get("")
def video(dataset: str, state: State, id: Id) -> dict[str, Any]:  # noqa: A002
    """What the player has to know of a video: length, clock, codec, and the times of its thumbnails."""
    return dataclasses.asdict(media.facts_of(state.library.view(dataset), id))


@router.get("/file", response_class=FileResponse)
def file(dataset: str, state: State, id: Id, converted: bool = False) -> FileResponse:  # noqa: A002
    """The video's file, or with `converted` a copy that every browser plays, made when it is first asked for."""
    view = state.library.view(dataset)
    found = state.conversions.get(view, id) if converted else media.original(view, id)
    return FileResponse(found.path, media_type=found.media_type, headers=PRIVATE)


@router.get("/thumbnail", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
def thumbnail(
    dataset: str,
    state: State,
    id: Id,  # noqa: A002
    frame: Annotated[int, Query(ge=0, le=100_000)] = 0,
) -> Response:
    """A stored frame as a small JPEG; `frame` counts the times in `frames_s` of the video, from 0."""
    return Response(media.thumbnail(state.library.view(dataset), id, frame), media_type="image/jpeg", headers=PRIVATE)
