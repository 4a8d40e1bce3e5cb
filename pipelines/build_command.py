"""`vsr1 build`: one Dagster run of a dataset, what it did, and which command comes next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines import completion
from pipelines.commands import (
    AllowRemovalsOption,
    DatasetOption,
    WaitOption,
    check_choice,
    command,
    debugging,
    fail,
    require_dagster,
)
from pipelines.settings import Settings, read_settings

if TYPE_CHECKING:
    from pipelines.builds import BuildOptions
    from vsr1_core.stages.base import View


def register(app: typer.Typer) -> None:
    """Add the command."""
    example = "Example: [bold]vsr1 build --dataset toy --assets first_ranking[/bold] (and everything it needs)"
    app.command(epilog=example)(build)


@command
def build(
    dataset: DatasetOption = "toy",
    assets: Annotated[
        str,
        typer.Option(
            help="Asset names, groups or Dagster selections, separated by commas (default: all assets).",
            autocompletion=completion.asset_list,
        ),
    ] = "",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed rows again.")] = False,
    allow_removals: AllowRemovalsOption = False,
    wait: WaitOption = False,
    executor: Annotated[str, typer.Option(help="in-process, or multiprocess (one process per step).")] = "in-process",
) -> None:
    """Build a dataset. Only rows that are new or stale are computed."""
    from vsr1_core.datasets.registry import get_entry

    check_choice("executor", executor, "in-process", "multiprocess")
    settings = read_settings()
    get_entry(settings.home, dataset)
    require_dagster("vsr1 build")
    from pipelines.builds import BuildOptions

    build_and_show(settings, dataset, assets, BuildOptions(retry_failed, allow_removals, wait, executor))  # type: ignore[arg-type]


def build_and_show(settings: Settings, dataset: str, assets: str, options: BuildOptions) -> None:
    """Build, and print what was made, what failed, and what to do next. Exits with code 1 where the build stopped."""
    from pipelines import show
    from pipelines.builds import run_build
    from vsr1_core.stages.graph import open_view

    result = run_build(settings, dataset, assets, options)
    view = open_view(settings.home, dataset)
    show.console().print(show.build_table(view, result.assets))
    if not result.success:
        if debugging["on"]:
            typer.echo(result.trace, err=True)
        more = f"for tracebacks run: vsr1 --debug build --dataset {dataset}, or look at the run in: vsr1 ui"
        fail("\n".join([f"the build of {dataset} stopped", *result.problems, more]))
    num_failed = sum(asset.num_failed for asset in result.assets)
    if num_failed:
        reasons = f"vsr1 sql \"select * from failures where dataset='{dataset}'\""
        typer.echo(f"{num_failed:,} rows failed; to see why: {reasons}")
    for line in _what_next(view):
        typer.echo(line)


def _what_next(view: View) -> Iterator[str]:
    """The commands that show what was built."""
    from vsr1_core.home.adding import search_command

    name = view.entry.name
    if "metrics" in view.stages and view.versions("metrics"):
        yield f"Metrics: vsr1 report --dataset {name}"
    if "video_index" in view.stages and view.versions("video_index"):
        yield f"Search: {search_command(name)}"
