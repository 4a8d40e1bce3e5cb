"""`vsr1 dataset sync`: what changed among a dataset's files since its last build, and then the build of what is due."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.build_command import build_and_show
from pipelines.commands import AllowRemovalsOption, NameArgument, UserError, WaitOption, command, require_dagster
from pipelines.settings import read_settings

if TYPE_CHECKING:
    from vsr1_core.stages.base import View
    from vsr1_core.stages.graph import StagePlan


def register(datasets: typer.Typer) -> None:
    """Add the command."""
    example = "Example: [bold]vsr1 dataset sync mine --dry-run[/bold]"
    datasets.command("sync", epilog=example)(sync)


@command
def sync(
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Build what is due without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what changed and what is due.")] = False,
    allow_removals: AllowRemovalsOption = False,
    wait: WaitOption = False,
) -> None:
    """Bring a dataset up to date with its files: say what is new, changed and gone, and build what is due."""
    from pipelines import show
    from vsr1_core.stages.graph import open_view, plan_graph

    settings = read_settings()
    view = open_view(settings.home, name)
    plans = plan_graph(view)
    show.console().print(show.table(f"Files of {name} since its last build", CHANGES, changes(view, plans)))
    due = due_text(plans)
    if not due:
        typer.echo(f"Nothing is due: {name} is built from the files as they are.")
        return
    typer.echo(f"Due: {due}. What runs, and why: vsr1 plan --dataset {name}")
    if dry_run:
        return
    require_dagster("vsr1 dataset sync")
    if not yes and not is_asked_by_a_person():
        raise UserError("nobody can be asked here: give --yes to build what is due, or --dry-run to only see it")
    if not yes and not typer.confirm("Build it?"):
        return
    from pipelines.builds import BuildOptions

    build_and_show(settings, name, "", BuildOptions(allow_removals=allow_removals, wait=wait))


def is_asked_by_a_person() -> bool:
    """Whether a question can be answered."""
    return sys.stdin.isatty()


CHANGES = ["what", "new", "changed", "gone", "as before"]


def changes(view: View, plans: Sequence[StagePlan]) -> list[list[object]]:
    """What is new, changed and gone of each kind of thing on disk, by the plans of the stages that read it."""
    from vsr1_core.stages.removals import FromDisk

    rows: list[list[object]] = []
    for item in plans:
        stage = view.stages[item.asset]
        if isinstance(stage, FromDisk):
            counts = item.plan.counts() if item.plan else {}
            before = counts.get("unchanged", 0) + counts.get("failed", 0)
            rows.append([stage.thing, *(counts.get(state, 0) for state in ("new", "stale", "orphaned")), before])
    return rows


def due_text(plans: Sequence[StagePlan]) -> str:
    """How many rows of how many assets are made or dropped, in words; empty where none is."""
    known = [item.plan for item in plans if item.plan and (item.plan.due() or item.plan.orphaned)]
    made, dropped = sum(len(plan.due()) for plan in known), sum(len(plan.orphaned) for plan in known)
    waiting = sum(item.plan is None for item in plans)
    if not known:
        return ""
    told = [f"{made:,} rows to make", *([f"{dropped:,} to drop"] if dropped else [])]
    more = f", and {waiting} assets that are known when these are built" if waiting else ""
    return f"{' and '.join(told)} in {len(known)} assets{more}"
