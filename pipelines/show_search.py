"""Prints the result of a search: as tables, as one field per line, or as JSON."""

from __future__ import annotations

import json

import typer

from pipelines.show import console, table
from vsr1_core.home.search_result import Found, Hit, ShownTurn
from vsr1_core.rows.texts import visible


def print_found(found: Found, output: str) -> None:
    """Print the result as `table`, `record` or `json`."""
    if output == "json":
        typer.echo(json.dumps(found.to_dict(), ensure_ascii=False, indent=2))
        return
    lines = _record if output == "record" else _tables
    lines(found)


def _tables(found: Found) -> None:
    out = console()
    out.print(visible(f"{found.dataset}, {found.split}: {_asked(found)}"), markup=False, highlight=False)
    out.print(found.verdict, style="bold", highlight=False)
    if found.turns:
        header = ["turn", "video_id", "last rank", "decision", "probability", "start_s", "end_s", "reasoning"]
        out.print(table("What the policy was shown", header, map(_turn_cells, found.turns)))
    header = ["rank", "last ranking", "score", "first rank", "turn", "decision", "start_s", "end_s", "first ranking"]
    firsts = (place.video for place in found.first)
    parts = ["window"] if any(hit.window_start_s is not None for hit in found) else []
    rows = (
        [*_hit_cells(hit), first, *(_window(hit) for _ in parts), hit.path]
        for hit, first in zip(found, firsts, strict=False)
    )
    out.print(table("The last ranking, and the first one beside it", [*header, *parts, "path"], rows))
    out.print(_searched_by(found), markup=False, highlight=False)


def _asked(found: Found) -> str:
    return found.text if found.image is None else f"the picture {found.image}"


def _turn_cells(turn: ShownTurn) -> list[object]:
    probability = _short(turn.matched_probability)
    return [
        *(turn.turn, turn.video, turn.last_rank, turn.decision, probability),
        *(turn.start_s, turn.end_s, turn.new_query or turn.reasoning),
    ]


def _hit_cells(hit: Hit) -> list[object]:
    return [hit.rank, hit.video, hit.score, hit.first_rank, hit.turn, hit.decision, hit.start_s, hit.end_s]


def _searched_by(found: Found) -> str:
    return f"Searched by {found.method or 'the embedder alone'}, checkpoint {found.checkpoint}."


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _record(found: Found) -> None:
    first = " > ".join(place.video for place in found.first)
    _fields({"query": _asked(found), "verdict": found.verdict, "method": found.method, "checkpoint": found.checkpoint})
    _fields({"first ranking": first, "last ranking": " > ".join(hit.video for hit in found)})
    for turn in found.turns:
        _block(f"turn {turn.turn}")
        _fields(
            {
                "video": turn.video,
                "window": _window(turn),
                "place in the last ranking": turn.last_rank,
                "decision": turn.decision,
                "probability of a match": _short(turn.matched_probability),
                "span": _span(turn),
                "reasoning": turn.reasoning,
                "new query": turn.new_query,
            }
        )
    for hit in found:
        _block(f"rank {hit.rank}")
        places = {"video": hit.video, "window": _window(hit), "score": hit.score, "first rank": hit.first_rank}
        _fields({**places, "turn": hit.turn, "decision": hit.decision, "span": _span(hit), "path": hit.path})


def _span(said: Hit | ShownTurn) -> str | None:
    return None if said.start_s is None else f"{said.start_s:g} to {said.end_s:g} s"


def _window(said: Hit | ShownTurn) -> str | None:
    """The window of a long video; None for a whole one."""
    return None if said.window_start_s is None else f"{said.window_start_s:g} to {said.window_end_s:g} s"


def _block(name: str) -> None:
    typer.echo(f"\n{name}")


def _fields(values: dict[str, object]) -> None:
    """One line per field that has a value."""
    for name, value in values.items():
        if value not in (None, ""):
            typer.echo(f"  {name}: {visible(str(value))}")
