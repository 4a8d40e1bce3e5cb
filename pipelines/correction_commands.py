"""`vsr1 corrections ...`: what people corrected in the annotations of a dataset, on the page of `vsr1 serve`."""

from __future__ import annotations

import dataclasses
import getpass
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands import DatasetOption, check_choice, command
from pipelines.settings import read_settings

if TYPE_CHECKING:
    from vsr1_core.datasets.corrections import Annotated as Said
    from vsr1_core.datasets.corrections import Judged
    from vsr1_core.stages.base import View

corrections = typer.Typer(
    help="Corrections of annotations: list them, undo one, write the annotations with all of them applied.",
    no_args_is_help=True,
)


def _view(dataset: str) -> View:
    from vsr1_core.stages.graph import open_view

    return open_view(read_settings().home, dataset)


@corrections.command("list")
@command
def corrections_list(
    dataset: DatasetOption = "toy",
    output: Annotated[str, typer.Option("--format", "-f", help="table or json.")] = "table",
) -> None:
    """List every correction with who made it, what it changed, and whether it is applied."""
    from pipelines import show
    from vsr1_core.home import correcting

    check_choice("format", output, "table", "json")
    judged = correcting.listed_corrections(_view(dataset))
    if output == "json":
        fields = [dataclasses.asdict(one.correction) | {"state": one.state, "detail": one.detail} for one in judged]
        typer.echo(json.dumps(fields, ensure_ascii=False, indent=2))
        return
    rows = [_row(one) for one in judged]
    header = ["id", "when", "who", "query", "what", "state"]
    show.console().print(show.table(f"Corrections of {dataset}", header, rows))
    for one in judged:
        if one.state == "conflict":
            typer.echo(f"{one.correction.correction_id} is not applied: {one.detail}")


def _row(judged: Judged) -> list[str]:
    one = judged.correction
    return [one.correction_id, one.when, one.who, one.query_id, _what(one.before, one.after), judged.state]


def _what(before: Said | None, after: Said | None) -> str:
    """What a correction changes, in a few words."""
    if after is None:
        return "rejected"
    if before is None:
        return f"added: {after.query} ({after.video_id}, {after.start_s:g} to {after.end_s:g} s)"
    old, new = dataclasses.asdict(before), dataclasses.asdict(after)
    return "; ".join(f"{name}: {old[name]} -> {new[name]}" for name in old if old[name] != new[name])


@corrections.command("undo")
@command
def corrections_undo(
    correction_id: Annotated[str, typer.Argument(help="The id of a correction, as in vsr1 corrections list.")],
    dataset: DatasetOption = "toy",
) -> None:
    """Undo one correction. Its line stays in the file; the next build brings the old rows back."""
    from vsr1_core.home import correcting

    correcting.undo(_view(dataset), correction_id, _own_name())
    typer.echo(f"Undone. To see what a build makes again: vsr1 plan --dataset {dataset}")


def _own_name() -> str:
    """The name of the person; empty for a user without one, such as that of `docker run --user 1234`."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on
        return ""


@corrections.command("export")
@command
def corrections_export(
    target: Annotated[Path, typer.Argument(help="A new file that ends in .jsonl.")],
    dataset: DatasetOption = "toy",
) -> None:
    """Write the annotations of all splits with all corrections applied, as one file in the FIG schema."""
    from vsr1_core.home import correcting

    written = correcting.export_fig(_view(dataset), target.expanduser())
    typer.echo(f"Wrote {written.num_queries:,} queries to {target}.")
    for sentence in written.left_out:
        typer.echo(f"Left out: {sentence}")
    typer.echo(f"To use the file: vsr1 dataset add NAME --videos FOLDER --annotations {target}")
