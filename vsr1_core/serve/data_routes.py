"""Routes that read tables: datasets, videos, and what each method answered to the evaluated queries."""

from __future__ import annotations

import math
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, PlainTextResponse

from vsr1_core.serve.library import OUTCOMES, QueryFilter
from vsr1_core.serve.metrics import exposition
from vsr1_core.serve.state import State

router = APIRouter(tags=["tables"])
Id = Annotated[str, Query(min_length=1, max_length=1000)]
Word = Annotated[str, Query(max_length=200)]
Offset = Annotated[int, Query(ge=0, le=10_000_000)]
Limit = Annotated[int, Query(ge=1, le=200)]
NOT_THERE: dict[int | str, dict[str, Any]] = {404: {"description": "There is no such dataset, video or query."}}


@router.get("/api/health")
def health(state: State) -> dict[str, Any]:
    """Whether the server answers, which start of it, and what it does."""
    from vsr1_core import __version__

    return {
        "instance": state.instance,
        "version": __version__,
        "open": state.open_datasets(),
        "waiting": state.engine.num_waiting,
        "ui_url": state.ui_url,
    }


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(state: State) -> str:
    """Counts, for Prometheus."""
    return exposition(state.requests, state.engine, len(state.open_datasets()))


@router.get("/api/datasets")
def datasets(state: State) -> JSONResponse:
    """Every dataset that can be searched, with its splits and methods; why others cannot be read; names of outcomes."""
    found, problems = state.library.datasets()
    return _json({"datasets": found, "problems": problems, "outcomes": OUTCOMES})


@router.get("/api/datasets/{dataset}/videos", responses=NOT_THERE)
def videos(dataset: str, state: State, text: Word = "", offset: Offset = 0, limit: Limit = 50) -> JSONResponse:
    """Videos by id; `text` is what the id contains."""
    return _json(state.library.videos(dataset, text, offset, limit))


@router.get("/api/datasets/{dataset}/predictions", responses=NOT_THERE)
def predictions(
    dataset: str,
    state: State,
    method: Word = "",
    split: Word = "",
    outcome: Word = "",
    text: Word = "",
    beside: Word = "",
    differs: bool = False,
    offset: Offset = 0,
    limit: Limit = 50,
) -> JSONResponse:
    """Evaluated queries, with how each search ended.

    `beside` is a method whose outcomes stand beside, or `@earlier` for those from before the last build that changed
    them; `differs` leaves out where both are the same.
    """
    wanted = QueryFilter(method, split, outcome, text, offset, limit, beside, differs)
    return _json(state.library.queries(dataset, wanted))


@router.get("/api/datasets/{dataset}/prediction", responses=NOT_THERE)
def prediction(dataset: str, state: State, id: Id) -> JSONResponse:  # noqa: A002  # the name in the address
    """One evaluated query: what is annotated, what each method answered, turn by turn, and after earlier builds."""
    return _json(state.library.query(dataset, id))


def _json(value: Any) -> JSONResponse:
    """JSON has no NaN: it becomes null."""
    return JSONResponse(_finite(value))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(of) for name, of in value.items()}
    if isinstance(value, list):
        return [_finite(of) for of in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
