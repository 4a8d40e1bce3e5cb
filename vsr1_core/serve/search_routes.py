"""Routes that search: the whole result as JSON, or turn by turn as server-sent events."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from vsr1_core.home.search import MAX_TEXT, MAX_TOP_K, MAX_TURNS, SearchRequest, method_of
from vsr1_core.home.search_result import Found, Hit, RankedVideo, ShownTurn
from vsr1_core.serve.engine import Failed, Job
from vsr1_core.serve.errors import answer_to, response_to
from vsr1_core.serve.state import ServerState, State

router = APIRouter(prefix="/api", tags=["search"])
KEEP_ALIVE_S = 15.0
Event = ShownTurn | Found | Failed


class SearchBody(BaseModel):
    """What to search for."""

    model_config = ConfigDict(extra="forbid")

    text: Annotated[str, Field(min_length=1, max_length=MAX_TEXT, description="What the moment shows, in words.")]
    dataset: Annotated[str, Field(max_length=100, description="A name that `/api/datasets` lists.")] = "toy"
    split: Annotated[str, Field(max_length=100, description="The split whose videos are searched.")] = "test"
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K, description="How many videos are returned.")] = 5
    method: Annotated[str | None, Field(max_length=100, description="The method that searches.")] = None
    verify: Annotated[bool, Field(description="Whether a policy is shown the videos.")] = True
    turns: Annotated[int | None, Field(ge=1, le=MAX_TURNS, description="Most videos that it is shown.")] = None

    def asked(self) -> SearchRequest:
        """The request. ValueError: its values contradict each other, or the text is blank."""
        return SearchRequest(self.text, self.split, self.top_k, self.method, self.verify, self.turns)


class FoundBody(BaseModel):
    """The result of a search: that of `vsr1 search --format json`, without paths."""

    verdict: str
    matched_turn: int | None
    text: str
    dataset: str
    split: str
    hits: list[Hit]
    first: list[RankedVideo]
    turns: list[ShownTurn]
    method: str | None
    checkpoint: str
    image: str | None
    unrelated_share: float | None
    seconds: float
    loading_s: float


@router.post("/search", response_model=FoundBody)
async def search(body: SearchBody, state: State) -> JSONResponse:
    """Search, and answer with the whole result."""
    async for event in _events(body, state):
        if isinstance(event, Found):
            return JSONResponse(event.with_paths({}).to_dict())
        if isinstance(event, Failed):
            return response_to(event.error)
    raise TimeoutError(f"the search did not end within {state.limits.search_s:g} s")


@router.post(
    "/search/events",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "`waiting`, `turn`, then `found` or `failed`"}
    },
)
async def search_events(body: SearchBody, state: State) -> StreamingResponse:
    """Search, and send each turn as it happens: events `waiting`, `turn`, and at last `found` or `failed`."""
    waiting = _events(body, state)
    await anext(waiting)  # a refusal is a status, and not an event
    return StreamingResponse(_as_text(waiting), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _events(body: SearchBody, state: ServerState) -> AsyncIterator[Event | None]:
    """What the engine tells about one search; None at the start, and where nothing was told for a while."""
    asked = body.asked()
    await asyncio.to_thread(_check, state, body.dataset, asked)
    loop, told = asyncio.get_running_loop(), asyncio.Queue[Event]()
    until = time.monotonic() + state.limits.search_s
    job = Job(body.dataset, asked, lambda event: _hand_over(loop, told, event), until)
    state.engine.submit(job)
    try:
        yield None
        while (left := until - time.monotonic()) > 0:
            try:
                event = await asyncio.wait_for(told.get(), min(left, KEEP_ALIVE_S))
            except TimeoutError:
                yield None
                continue
            yield event
            if isinstance(event, Found | Failed):
                return
        yield Failed(TimeoutError(f"the search did not end within {state.limits.search_s:g} s"))
    finally:
        job.is_cancelled = True


def _check(state: ServerState, dataset: str, asked: SearchRequest) -> None:
    """LookupError where the request names what is not there: it is refused before it waits."""
    method_of(state.library.view(dataset), asked)


def _hand_over(loop: asyncio.AbstractEventLoop, told: asyncio.Queue[Event], event: Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(told.put_nowait, event)


async def _as_text(events: AsyncIterator[Event | None]) -> AsyncIterator[str]:
    yield _text("waiting", {})
    try:
        async for event in events:
            if event is None:
                yield ": still searching\n\n"
            elif isinstance(event, ShownTurn):
                yield _text("turn", dataclasses.asdict(event))
            elif isinstance(event, Found):
                yield _text("found", event.with_paths({}).to_dict())
            else:
                yield _text("failed", {"detail": _said(event.error)})
    finally:
        await events.aclose()  # type: ignore[attr-defined]


def _text(name: str, data: dict[str, Any]) -> str:
    """One event. JSON has no raw line breaks, so the data is one line."""
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def _said(error: Exception) -> str:
    return answer_to(error)[1]
