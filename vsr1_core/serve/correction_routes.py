"""Routes that change something: corrections of annotations, and the builds that follow from them."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from vsr1_core.datasets import corrections as kept
from vsr1_core.datasets.corrections import Action, State
from vsr1_core.home import correcting
from vsr1_core.home.correcting import MAX_QUERY, MAX_WHO, WantedCorrection
from vsr1_core.home.status import summary_of
from vsr1_core.serve.data_routes import NOT_THERE
from vsr1_core.serve.state import ServerState
from vsr1_core.serve.state import State as Server
from vsr1_core.stages.graph import plan_graph

Text = Annotated[str, Field(max_length=1000)]
Seconds = Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)]
Who = Annotated[str, Field(max_length=MAX_WHO, description="The name of the person, as it is kept.")]
REFUSED: dict[int | str, dict[str, Any]] = {
    **NOT_THERE,
    400: {"description": "The values cannot be used; the answer says why."},
    409: {"description": "What was asked for does not fit what is there by now."},
}
router = APIRouter(prefix="/api/datasets/{dataset}", tags=["corrections"], responses=REFUSED)


class AnnotatedBody(BaseModel):
    """What a query is annotated with."""

    model_config = ConfigDict(extra="forbid")

    query: Annotated[str, Field(max_length=MAX_QUERY)]
    video_id: Text
    start_s: Seconds
    end_s: Seconds
    split: Text


class ChangesBody(BaseModel):
    """What of it is to change; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    query: Annotated[str | None, Field(max_length=MAX_QUERY)] = None
    video_id: Text | None = None
    start_s: Seconds | None = None
    end_s: Seconds | None = None
    split: Text | None = None


class CorrectionBody(BaseModel):
    """A correction. before: what the person saw; where the query says something else by now, it is refused."""

    model_config = ConfigDict(extra="forbid")

    action: Literal["change", "add", "reject"]
    query_id: Annotated[str, Field(max_length=1000, description="The query; empty for a new one.")] = ""
    changes: ChangesBody = ChangesBody()
    before: AnnotatedBody | None = None
    who: Who = ""


class UndoBody(BaseModel):
    """The correction that no longer holds."""

    model_config = ConfigDict(extra="forbid")

    correction_id: Annotated[str, Field(min_length=1, max_length=100)]
    who: Who = ""


class JudgedBody(BaseModel):
    """A correction and what became of it."""

    correction_id: str
    who: str
    when: str
    action: Action
    query_id: str
    before: AnnotatedBody | None
    after: AnnotatedBody | None
    state: State
    detail: str


class CorrectionsBody(BaseModel):
    """Corrections, newest first. now: what the asked query says with them; None where it is rejected or was not asked
    for."""

    corrections: list[JudgedBody]
    now: AnnotatedBody | None


class PlanBody(BaseModel):
    """What a build would do."""

    says: str
    num_rows: int
    num_dropped: int
    assets: dict[str, int]
    later: list[str]


class BuildBody(BaseModel):
    """The build that runs, or that ran last. state: none, running, done or failed."""

    can_build: bool
    state: Literal["none", "running", "done", "failed"]
    problem: str
    seconds: float
    lines: list[str]


@router.get("/corrections")
def corrections(dataset: str, state: Server, id: Annotated[str, Query(max_length=1000)] = "") -> CorrectionsBody:  # noqa: A002
    """Every correction of the dataset, or of one query, with what became of it."""
    view = state.library.view(dataset)
    moment = correcting.corrected_moments(view).moments.get(id) if id else None
    judged = correcting.listed_corrections(view, id)
    return CorrectionsBody.model_validate(
        {
            "corrections": [
                dataclasses.asdict(one.correction) | {"state": one.state, "detail": one.detail} for one in judged
            ],
            "now": _fields(kept.Annotated.of(moment)),
        }
    )


@router.post("/corrections", status_code=201)
def add_correction(dataset: str, body: CorrectionBody, state: Server) -> JudgedBody:
    """Append a correction. The published annotation files are not touched, and nothing is built."""
    before = kept.Annotated(**body.before.model_dump()) if body.before is not None else None
    wanted = WantedCorrection(body.action, body.query_id, body.changes.model_dump(), before, body.who)
    return _made(correcting.correct(state.library.view(dataset), wanted), "applied")


@router.post("/corrections/undo", status_code=201)
def undo_correction(dataset: str, body: UndoBody, state: Server) -> JudgedBody:
    """Append that a correction no longer holds."""
    return _made(correcting.undo(state.library.view(dataset), body.correction_id, body.who), "applied")


@router.get("/plan")
def plan(dataset: str, state: Server) -> PlanBody:
    """What a build would make, asset by asset."""
    found = summary_of(plan_graph(state.library.view(dataset)))
    return PlanBody(says=found.says, **{f.name: getattr(found, f.name) for f in dataclasses.fields(found)})


@router.get("/build")
def build(dataset: str, state: Server) -> BuildBody:
    """How the build goes that this server started last."""
    state.library.view(dataset)
    return _build(state, dataset)


@router.post("/build", status_code=202)
def start_build(dataset: str, state: Server) -> BuildBody:
    """Start a build of the dataset."""
    state.library.view(dataset)
    state.builds.start(dataset)
    return _build(state, dataset)


def _build(state: ServerState, dataset: str) -> BuildBody:
    last, can_build = state.builds.last(dataset), state.builds.can_build
    if last is None:
        return BuildBody(can_build=can_build, state="none", problem="", seconds=0.0, lines=[])
    return BuildBody(
        can_build=can_build,
        state=last.state,  # type: ignore[arg-type]
        problem=last.problem,
        seconds=round(last.seconds, 1),
        lines=list(last.lines),
    )


def _made(correction: kept.Correction, state: State) -> JudgedBody:
    return JudgedBody.model_validate(dataclasses.asdict(correction) | {"state": state, "detail": ""})


def _fields(annotated: kept.Annotated | None) -> dict[str, Any] | None:
    return None if annotated is None else dataclasses.asdict(annotated)
