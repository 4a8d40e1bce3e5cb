"""`vsr1`: the command line. A command parses its arguments, calls a function of another module, and prints the result.

An error that a user can cause says what is wrong, where, and what to do, and exits with code 1; `vsr1 --debug ...`
shows the traceback too.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

import vsr1_core
from pipelines import (
    build_command,
    compare_commands,
    completion,
    config_commands,
    correction_commands,
    dataset_commands,
    experiment_commands,
    hub_commands,
    prepared_commands,
    search_command,
    serve_command,
)
from pipelines.commands import (
    ConfigurationName,
    DatasetOption,
    UserError,
    WaitOption,
    check_choice,
    command,
    debugging,
    fail,
    free_port,
    known_configuration,
    require_dagster,
    say,
)
from pipelines.settings import prepare_process, read_settings

if TYPE_CHECKING:
    import polars as pl

    from vsr1_core.stages.base import View

EXAMPLES = """
[bold]Examples[/bold]

  vsr1 build --dataset toy                run everything on rendered videos, from videos to report

  vsr1 report --dataset toy               show the metrics

  vsr1 plan --dataset toy                 show what a build would do, and why

  vsr1 explain metrics sqr_sft/mrr        follow one row back to its source files

  vsr1 dataset add mine --videos ~/clips  register your own videos

  vsr1 build --dataset mine               decode, embed and index them

  vsr1 search "a dog jumps" -d mine       search them

  vsr1 serve                              search in the browser, with the models kept loaded

  vsr1 sql "select * from failures"       query the tables

  vsr1 experiment                         train on toy with three seeds: means and intervals

  vsr1 config new longer --set sft.steps=500   write your own settings, for: vsr1 dataset add ... --config longer

  vsr1 compare toy longer                 compare two builds of the same videos: metrics, queries won and lost

  vsr1 ui                                 show the graph in the browser

All files are kept under VSR1_HOME (default ./vsr1_home). VSR1_DEVICE, VSR1_WORKERS, VSR1_RAY and VSR1_MODEL_WORKERS
say what the work runs on. VSR1_CACHE_GB (default 20) is how many GiB of disk the cache of vision features may use; the
cache of query vectors may use as many again.
"""

DG = "from dagster_dg_cli.cli import main; main()"
"""Starts Dagster's command line `dg`, which has no module that `python -m` runs. `dagster dev` is superseded by it."""

app = typer.Typer(
    help="VideoSearch-R1: find the video, and the moment in it, that a text describes.",
    epilog=EXAMPLES,
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
build_command.register(app)
app.add_typer(dataset_commands.datasets, name="dataset")
app.add_typer(config_commands.configs, name="config")
app.add_typer(correction_commands.corrections, name="corrections")
app.add_typer(hub_commands.hub)
app.add_typer(experiment_commands.experiments)
app.add_typer(compare_commands.comparisons)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vsr1 {vsr1_core.__version__}")
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    debugging["on"] = debug
    prepare_process()


@app.command()
@command
def doctor(
    config: Annotated[
        str,
        typer.Option(
            click_type=ConfigurationName(),
            help="Also check what this configuration needs (default: the configuration of the dataset).",
        ),
    ] = "",
    dataset: Annotated[
        str, typer.Option("--dataset", "-d", help="Also check what this dataset lacks, and forecast its build.")
    ] = "",
    tries: Annotated[
        bool,
        typer.Option("--try", help="Load the models, embed a video, run an episode and a training step."),
    ] = False,
) -> None:
    """Check this machine (versions, disk, threads), say what to do if something is missing, and forecast a build."""
    from pipelines import doctor, show
    from pipelines import doctor_build as checks
    from vsr1_core.datasets.registry import configuration_of, get_entry

    settings = read_settings()
    entry = get_entry(settings.home, dataset) if dataset else None
    name = config or (entry.config if entry else "tiny")
    if entry is not None and not config:
        configuration = configuration_of(settings.home, entry)
    else:
        configuration = known_configuration(settings, name)
    findings = list(doctor.examine(settings))
    findings += checks.examine_build(settings, configuration, entry)
    estimates = checks.forecast(settings, configuration, entry) if entry else []
    findings += checks.room(settings, estimates) if estimates else []
    rows = [[f.name, f.level, f.found, f.advice] for f in findings]
    show.console().print(show.table("vsr1 doctor", ["check", "", "found", "what to do"], rows))
    if estimates:
        show.print_forecast(f"{dataset} with {name} on {checks.forecast_device(configuration)[0]}", estimates)
    if tries:
        show.print_trial(name, checks.examine_trial(settings, configuration))
    if any(f.level == "problem" for f in findings):
        fail("some checks found a problem; the last column of the table says what to do")


@app.command()
@command
def plan(
    dataset: DatasetOption = "toy",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Show what a build would do, asset by asset, and why. Nothing is written."""
    from pipelines import show
    from vsr1_core.stages.graph import open_view, plan_graph

    settings = read_settings()
    view = open_view(settings.home, dataset)
    plans = plan_graph(view)
    if as_json:
        typer.echo(show.plan_json(plans))
    else:
        show.console().print(show.plan_table(view, plans))


@app.command(epilog="Example: [bold]vsr1 explain query_embeddings 2000010_fig --dataset toy[/bold]")
@command
def explain(
    asset: Annotated[
        str, typer.Argument(help="Name of the asset, as in vsr1 status.", autocompletion=completion.assets)
    ],
    row: Annotated[str, typer.Argument(help="Id of the row, as in the first column of the table.")],
    dataset: DatasetOption = "toy",
    output: Annotated[str, typer.Option("--format", "-f", help="tree or json.")] = "tree",
    max_rows: Annotated[
        int, typer.Option("--rows", min=1, help="How many upstream rows of each input are followed.")
    ] = 2,
) -> None:
    """Follow one row back to its sources: its version, why a build would compute it, its input rows and files."""
    from pipelines import show
    from pipelines.explain import tree
    from vsr1_core.home.explain import explain as explain_row
    from vsr1_core.stages.graph import open_view

    check_choice("format", output, "tree", "json")
    settings = read_settings()
    explained = explain_row(open_view(settings.home, dataset), asset, row, max_rows)
    if output == "json":
        typer.echo(explained.to_json())
    else:
        show.console().print(tree(explained))


@app.command()
@command
def status(dataset: DatasetOption = "toy") -> None:
    """Show what has been built of a dataset, and when."""
    from pipelines import show
    from vsr1_core.stages.graph import open_view

    settings = read_settings()
    show.console().print(show.status_table(open_view(settings.home, dataset)))


@app.command(epilog="Example: [bold]vsr1 prune --days 30 --delete[/bold]")
@command
def prune(
    days: Annotated[float, typer.Option(min=1, help="Only files that were written at least this many days ago.")] = 1.0,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete the files; without this option they are only listed.")
    ] = False,
    wait: WaitOption = False,
) -> None:
    """List or delete files that no row points to any more: earlier checkpoints, frames of videos that are gone."""
    from pipelines import show
    from vsr1_core.home.unused import DAY_S, delete_unused, unused_files
    from vsr1_core.rows.lake import Lake
    from vsr1_core.stages.graph import all_stages

    lake, stages, num_deleted = Lake(read_settings().home / "lake"), all_stages(), 0
    if delete:
        found, num_deleted = delete_unused(lake, stages, days * DAY_S, wait, say)
    else:
        found = list(unused_files(lake, stages, days * DAY_S))
    if not found:
        typer.echo(f"There are no unused files that were written at least {days:g} days ago.")
        return
    show.console().print(show.unused_table(found))
    if not delete:
        typer.echo("Nothing was deleted. To delete these files, add --delete.")
        return
    typer.echo(f"Deleted {num_deleted:,} of {len(found):,}.")


@app.command(epilog="Example: [bold]vsr1 sql \"select method, value from metrics where metric = 'mrr'\"[/bold]")
@command
def sql(
    query: Annotated[
        str, typer.Argument(help="SQL of DuckDB. Without a query, the views are listed with what they contain.")
    ] = "",
    output: Annotated[
        str, typer.Option("--format", "-f", help="table, record (one line per column), csv or json.")
    ] = "table",
    unrestricted: Annotated[
        bool,
        typer.Option("--unrestricted", help="Allow more than reading this home: COPY ... TO, files elsewhere."),
    ] = False,
) -> None:
    """Query the tables with SQL (DuckDB): predictions, turns, outcomes, metrics, failures, moments, videos, ..."""
    from pipelines import show
    from vsr1_core.home import warehouse

    check_choice("format", output, "table", "record", "csv", "json")
    home = read_settings().home
    frame = warehouse.query(home, query, not unrestricted) if query.strip() else warehouse.views(home)
    out = show.console()
    if output == "table" and show.fits(frame.width, out.width):
        out.print(show.table("", frame.columns, frame.rows()))
    elif output in ("table", "record"):
        show.print_records(frame)
    else:
        show.print_frame(frame, output)


@app.command()
@command
def report(dataset: DatasetOption = "toy") -> None:
    """Show the metrics of a dataset, and where its report is."""
    from pipelines import show
    from vsr1_core.evaluation.refinement import warnings_by_split
    from vsr1_core.stages.graph import open_view

    settings = read_settings()
    view = open_view(settings.home, dataset)
    view.table("metrics").manifest()  # raises an error that says how to build the table if it is missing
    metrics = view.rows("metrics")
    if metrics.is_empty():
        raise UserError(
            f"{dataset} has no metrics, because none of its queries was evaluated; see: vsr1 status --dataset {dataset}"
        )
    show.console().print(show.metrics_table(dataset, metrics))
    if view.entry.kind == "toy":
        _say_what_is_expected(view, metrics)
    for warning in warnings_by_split(metrics):
        typer.echo(f"Warning: {warning}")
    for path in view.rows("report")["path"].to_list():
        typer.echo(f"Report: {path}")


def _say_what_is_expected(view: View, metrics: pl.DataFrame) -> None:
    """Print the metrics beside the range of several runs of the same configuration, or that there is none."""
    from pipelines import show
    from vsr1_core.evaluation.expected import expected_ranges

    expected = expected_ranges(view.config)
    if expected is None:
        command = f"vsr1 experiment --config {view.config.name} --seeds 1,2,3,4,5,6 --perturb 1"
        typer.echo(f"How far runs of this configuration differ has not been measured. To measure it: {command}")
        return
    beside, verdict = show.expected_lines(metrics, expected)
    show.console().print(beside)
    typer.echo(verdict)


@app.command()
@command
def ui(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the web UI; 0 takes a free one.")] = 3000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Start the web UI of Dagster with the runs of this home. Ctrl-C stops it."""
    require_dagster("vsr1 ui", "ui", "dagster_dg_cli")
    from pipelines.instance import dagster_home
    from pipelines.location import location_arguments

    settings = read_settings()
    port = free_port(host, port)
    environ = {**os.environ, "VSR1_HOME": str(settings.home), "DAGSTER_HOME": str(dagster_home(settings.home))}
    arguments = ["dev", *location_arguments(), "--host", host, "--port", str(port)]
    os.execve(sys.executable, [sys.executable, "-c", DG, *arguments], environ)


prepared_commands.register(app)
search_command.register(app)
serve_command.register(app)


if __name__ == "__main__":
    app()
