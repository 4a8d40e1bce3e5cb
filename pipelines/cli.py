"""`vsr1`: the command line. Commands parse, call, and print; what they call lives elsewhere.

Errors a user can cause say what, where, and what to do, and exit with 1; `vsr1 --debug ...` shows the traceback.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer

from pipelines import show
from pipelines.resources import Settings, choose_device, prepare_process, read_settings
from vsr1_core.configurations import CONFIGURATIONS
from vsr1_core.datasets.registry import DatasetEntry, get_entry, load_entries, remove_entry, save_entry
from vsr1_core.graph import open_view, plan_graph
from vsr1_core.stages.base import Execution, NotYetKnown

EXAMPLES = """
[bold]Examples[/bold]

  vsr1 build --dataset toy                raw videos to report, on rendered ones

  vsr1 report --dataset toy               the metrics table

  vsr1 plan --dataset toy                 what a build would do, and why

  vsr1 dataset add mine --videos ~/clips  register your own videos

  vsr1 build --dataset mine               decode, embed, index them

  vsr1 search "a dog jumps" -d mine       search them

  vsr1 sql "select * from failures"       ask the tables

  vsr1 ui                                 the graph in the browser

State lives under VSR1_HOME (default ./vsr1_home). VSR1_DEVICE and VSR1_WORKERS say what the work runs on.
"""

app = typer.Typer(
    help="VideoSearch-R1: find the video, and the moment in it, that a text describes.",
    epilog=EXAMPLES,
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
datasets = typer.Typer(help="Datasets: list, add, show, remove.", no_args_is_help=True)
app.add_typer(datasets, name="dataset")

DatasetOption = Annotated[str, typer.Option("--dataset", "-d", help="A name from `vsr1 dataset list`.")]
_debug = {"on": False}


class UserError(Exception):
    """Something the user can put right; the message says what, where, and how."""


@app.callback()
def main(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    _debug["on"] = debug
    prepare_process()


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose known errors are printed without a traceback."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except BrokenPipeError:  # `vsr1 report | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except _known_errors() as error:
            if _debug["on"] or isinstance(error, KeyError | IndexError):
                raise
            fail(str(error))
        except KeyboardInterrupt:
            fail("stopped; finished shards are kept, the same command goes on from there")

    return wrapped


def _known_errors() -> tuple[type[Exception], ...]:
    """What has a message for a person; DuckDB's errors only where DuckDB is loaded at all."""
    known = (UserError, NotYetKnown, OSError, ValueError, LookupError, ImportError)
    duckdb = sys.modules.get("duckdb")
    return known if duckdb is None else (*known, duckdb.Error)


def fail(message: str) -> None:
    """Print to stderr and exit with 1."""
    typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)
    raise typer.Exit(1)


def known_entry(settings: Settings, name: str) -> DatasetEntry:
    try:
        return get_entry(settings.home, name)
    except KeyError as error:
        raise UserError(error.args[0]) from error


@app.command()
@command
def doctor() -> None:
    """Check this machine: versions, disk, threads, and what to do where something is missing."""
    from pipelines.doctor import examine

    findings = list(examine(read_settings()))
    rows = [[f.name, f.level, f.found, f.advice] for f in findings]
    show.console().print(show.table("vsr1 doctor", ["check", "", "found", "what to do"], rows))
    if any(f.level == "problem" for f in findings):
        fail("some checks found a problem; the last column says what to do")


@datasets.command("list")
@command
def dataset_list() -> None:
    """All datasets of this home."""
    settings = read_settings()
    rows = [[e.name, e.kind, e.config, e.models_from, e.videos] for e in load_entries(settings.home).values()]
    header = ["name", "kind", "config", "models from", "videos"]
    show.console().print(show.table(f"Datasets of {settings.home}", header, rows))


@datasets.command("show")
@command
def dataset_show(name: str) -> None:
    """One dataset: where its files are, and what has been built."""
    settings = read_settings()
    entry = known_entry(settings, name)
    rows = [["kind", entry.kind], ["videos", entry.videos], ["annotations", entry.annotations or "none"]]
    rows += [["config", entry.config], ["models from", entry.models_from or "its own"]]
    show.console().print(show.table(entry.name, ["", ""], rows))
    show.console().print(_status_table(settings, name))


@datasets.command(
    "add", epilog="Example: [bold]vsr1 dataset add mine --videos ~/clips --annotations ~/clips.csv[/bold]"
)
@command
def dataset_add(
    name: str,
    videos: Annotated[Path | None, typer.Option(help="Folder of video files, searched in all subfolders.")] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(help="JSONL in the FIG schema, or CSV with video, start, end, query; a folder for VERIFIED FIG."),
    ] = None,
    models_from: Annotated[str | None, typer.Option(help="Dataset whose models are used (default: toy).")] = None,
    config: Annotated[str | None, typer.Option(help=f"One of: {', '.join(CONFIGURATIONS)}.")] = None,
    toy: Annotated[
        bool, typer.Option("--toy", help="Rendered videos instead of your own, e.g. with --config nano.")
    ] = False,
) -> None:
    """Register a dataset: your own videos, or the folders of a VERIFIED FIG one. Becomes a partition after a reload."""
    settings = read_settings()
    if config is not None and config not in CONFIGURATIONS:
        raise UserError(f"no configuration {config!r}; there are: {', '.join(CONFIGURATIONS)}")
    if toy:
        entry = _toy_entry(settings, name, config or "tiny")
    elif name in ("charades", "didemo", "activitynet"):
        entry = _verified_entry(settings, name, videos, annotations, config, models_from)
    else:
        entry = _folder_entry(settings, name, videos, annotations, config or "tiny", models_from)
    save_entry(settings.home, entry)
    typer.echo(f"Added {name}. Next: vsr1 build --dataset {name}")


def _toy_entry(settings: Settings, name: str, config: str) -> DatasetEntry:
    data = settings.home / "data" / name
    return DatasetEntry(name, "toy", str(data / "videos"), str(data), config)


def _verified_entry(
    settings: Settings,
    name: str,
    videos: Path | None,
    annotations: Path | None,
    config: str | None,
    models_from: str | None,
) -> DatasetEntry:
    known = get_entry(settings.home, name)
    if annotations is not None and not annotations.is_dir():
        raise UserError(f"{annotations} is not a folder; give the one that holds {name}_fig_<split>.jsonl")
    typer.echo(f"{name}: VERIFIED FIG annotations from {annotations or known.annotations}")
    return DatasetEntry(
        name,
        "verified",
        str(videos.expanduser().resolve()) if videos else known.videos,
        str(annotations.expanduser().resolve()) if annotations else known.annotations,
        config or known.config,
        models_from or "",
    )


def _folder_entry(
    settings: Settings, name: str, videos: Path | None, annotations: Path | None, config: str, models_from: str | None
) -> DatasetEntry:
    from vsr1_core.datasets.folder import find_videos

    if videos is None:
        raise UserError(f"give the folder of videos: vsr1 dataset add {name} --videos DIR")
    found = find_videos(videos.expanduser().resolve())
    if not found:
        raise UserError(f"no video files in {videos}; give the folder that holds them (mp4, mkv, webm, mov, avi, ...)")
    if annotations is not None and not annotations.expanduser().is_file():
        raise UserError(f"the annotation file {annotations} is not there")
    source = models_from if models_from is not None else "toy"
    if source:
        known_entry(settings, source)
    typer.echo(
        f"{name}: {len(found):,} videos, {'annotated' if annotations else 'no annotations'}, models from {source}"
    )
    annotation_path = str(annotations.expanduser().resolve()) if annotations else ""
    return DatasetEntry(name, "folder", str(videos.expanduser().resolve()), annotation_path, config, source)


@datasets.command("remove")
@command
def dataset_remove(name: str) -> None:
    """Forget a registered dataset. Its videos and tables stay on disk."""
    settings = read_settings()
    if not remove_entry(settings.home, name):
        raise UserError(f"{name!r} was not registered; see: vsr1 dataset list")
    typer.echo(f"Forgot {name}. Its tables stay under {settings.home / 'lake'}.")


@app.command(epilog="Example: [bold]vsr1 build --dataset toy --assets first_ranking[/bold] (and all it needs)")
@command
def build(
    dataset: DatasetOption = "toy",
    assets: Annotated[
        str, typer.Option(help="Names, groups or a Dagster selection, comma separated; default: all.")
    ] = "",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed rows again.")] = False,
    executor: Annotated[str, typer.Option(help="in-process, or multiprocess (a process a step).")] = "in-process",
) -> None:
    """Build a dataset: rows that are new or stale run, all others do not."""
    if executor not in ("in-process", "multiprocess"):
        raise UserError(f"no executor {executor!r}; use in-process or multiprocess")
    settings = read_settings()
    entry = known_entry(settings, dataset)
    from pipelines.builds import run_build

    result = run_build(settings, entry.name, assets, retry_failed, executor)  # type: ignore[arg-type]
    show.console().print(show.build_table(dataset, result.assets))
    if not result.success:
        if _debug["on"]:
            typer.echo(result.trace, err=True)
        fail("\n".join([f"the build of {dataset} stopped", *result.problems, "more: vsr1 --debug build, or vsr1 ui"]))
    num_failed = sum(asset.num_failed for asset in result.assets)
    if num_failed:
        typer.echo(f"{num_failed:,} rows failed; why: vsr1 sql \"select * from failures where dataset='{dataset}'\"")


@app.command()
@command
def plan(
    dataset: DatasetOption = "toy",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """What a build would do, asset by asset, and why. Writes nothing."""
    settings = read_settings()
    known_entry(settings, dataset)
    plans = plan_graph(open_view(settings.home, dataset))
    if as_json:
        typer.echo(show.plan_json(plans))
    else:
        show.console().print(show.plan_table(dataset, plans))


@app.command()
@command
def status(dataset: DatasetOption = "toy") -> None:
    """What has been built of a dataset, and when."""
    settings = read_settings()
    known_entry(settings, dataset)
    show.console().print(_status_table(settings, dataset))


def _status_table(settings: Settings, dataset: str) -> Any:
    view = open_view(settings.home, dataset)
    rows = []
    for name in view.stages:
        table = view.table(name)
        if not table.manifest_path.exists():
            rows.append([name, "", "", "", "not built"])
            continue
        manifest = table.manifest()
        when = datetime.fromtimestamp(table.manifest_path.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M UTC")
        rows.append([name, f"{manifest['num_rows']:,}", manifest["num_failed"] or "", manifest["data_version"], when])
    return show.table(f"Status of {dataset}", ["asset", "rows", "failed", "data version", "last change"], rows)


@app.command(epilog="Example: [bold]vsr1 sql \"select method, value from metrics where metric = 'mrr'\"[/bold]")
@command
def sql(
    query: str,
    output: Annotated[str, typer.Option("--format", "-f", help="table, csv or json.")] = "table",
) -> None:
    """Ask the tables (DuckDB): predictions, turns, metrics, failures, moments, videos, ..."""
    from vsr1_core import warehouse

    if output not in ("table", "csv", "json"):
        raise UserError(f"no format {output!r}; use table, csv or json")
    frame = warehouse.query(read_settings().home, query)
    if output == "table":
        show.console().print(show.table("", frame.columns, frame.rows()))
    else:
        typer.echo(show.frame_csv(frame) if output == "csv" else show.frame_json(frame), nl=output == "json")


@app.command()
@command
def report(dataset: DatasetOption = "toy") -> None:
    """The metrics table, and where the report is."""
    settings = read_settings()
    known_entry(settings, dataset)
    view = open_view(settings.home, dataset)
    view.table("metrics").manifest()  # says how to build it where it is missing
    metrics = view.rows("metrics")
    if metrics.is_empty():
        raise UserError(
            f"{dataset} has no metrics: none of its queries was evaluated. See: vsr1 status --dataset {dataset}"
        )
    show.console().print(show.metrics_table(dataset, metrics))
    for path in view.rows("report")["path"].to_list():
        typer.echo(f"Report: {path}")


@app.command(epilog='Example: [bold]vsr1 search "a red circle moves left" --dataset toy[/bold]')
@command
def search(
    text: str,
    dataset: DatasetOption = "toy",
    split: Annotated[str, typer.Option(help="Which videos to search.")] = "test",
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="How many videos.")] = 5,
) -> None:
    """Find videos for a text, and the moment in the best one."""
    from vsr1_core.find import search_once

    settings = read_settings()
    known_entry(settings, dataset)
    execution = Execution(device=choose_device(settings.device), workers=settings.workers)
    found = search_once(open_view(settings.home, dataset), text, split, top_k, execution)
    frame = pl.DataFrame(found, infer_schema_length=None)
    show.console().print(show.table(f"{dataset}, {split}: {text}", frame.columns, frame.rows()))


@app.command()
@command
def ui(
    port: Annotated[int, typer.Option(help="Port of the web UI.")] = 3000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Dagster's web UI with this home's runs. Stops with Ctrl-C."""
    from pipelines.instance import dagster_home

    settings = read_settings()
    environ = {**os.environ, "VSR1_HOME": str(settings.home), "DAGSTER_HOME": str(dagster_home(settings.home))}
    workspace = Path(__file__).resolve().parent.parent / "workspace.yaml"
    location = ["-w", str(workspace)] if workspace.exists() else ["-m", "pipelines.definitions"]
    arguments = ["dev", *location, "-h", host, "-p", str(port)]
    os.execve(sys.executable, [sys.executable, "-m", "dagster", *arguments], environ)


if __name__ == "__main__":
    app()
