"""`vsr1 dataset ...`: lists, registers and removes datasets, and compares their files with the annotations."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines import sync_command
from pipelines.commands import NameArgument, UserError, WaitOption, check_choice, command, say
from pipelines.config_commands import ConfigOption, SetOption, chosen_configuration, model_assignments
from pipelines.settings import Settings, read_settings, video_limits_of
from vsr1_core.datasets.benchmarks import BENCHMARKS, Benchmark

if TYPE_CHECKING:
    from vsr1_core.datasets.file_check import Finding
    from vsr1_core.datasets.registry import DatasetEntry
    from vsr1_core.rows.lake import Lake

MAX_LISTED = 20
"""How many findings of one kind the table lists; CSV and JSON list all of them."""

VideosOption = Annotated[Path | None, typer.Option(help="Folder with the video files; subfolders are included.")]
AnnotationsOption = Annotated[
    Path | None,
    typer.Option(
        help="A CSV file with the columns video, start, end, query; a JSONL file in the FIG schema; or, for a "
        "VERIFIED FIG dataset, the folder of its files."
    ),
]
ModelsFromOption = Annotated[
    str | None,
    typer.Option(help="Dataset whose models are borrowed (default: toy, unless --config names other models)."),
]
TrainOwnOption = Annotated[
    bool, typer.Option("--train-own", help="Train models of its own on its annotations, and borrow none.")
]
PolicyOption = Annotated[
    str | None, typer.Option(help="Folder or hub id of the model that looks at videos and refines queries.")
]
EmbedderOption = Annotated[
    str | None, typer.Option(help="Folder or hub id of the model that embeds queries and videos.")
]
KindOption = Annotated[
    str, typer.Option(help="Format of the annotations, if it is neither CSV nor JSONL: see docs/contributing.md.")
]
ToyOption = Annotated[
    bool, typer.Option("--toy", help="Render videos instead of reading your own, e.g. with --config nano.")
]
SearchOnlyOption = Annotated[
    bool, typer.Option("--search-only", help="Only rank its videos by the embedder: no policy, nothing trained.")
]
WindowOption = Annotated[
    float | None,
    typer.Option(help="Seconds: longer videos are searched in overlapping windows of this length; 0: as a whole."),
]

datasets = typer.Typer(help="Manage datasets: list, add, show, check, sync, remove.", no_args_is_help=True)
sync_command.register(datasets)


@datasets.command("list")
@command
def dataset_list() -> None:
    """List all datasets of this home."""
    from pipelines import show
    from vsr1_core.datasets.registry import load_entries
    from vsr1_core.home.adding import frames_as_in

    settings = read_settings()
    rows = [
        [e.name, e.kind, e.config, e.models_from, frames_as_in(settings.home, e), e.videos]
        for e in load_entries(settings.home).values()
    ]
    header = ["name", "kind", "config", "models from", "frames as in", "videos"]
    show.console().print(show.table(f"Datasets of {settings.home}", header, rows))


@datasets.command("show")
@command
def dataset_show(name: NameArgument) -> None:
    """Show one dataset: where its files are, where to get them, and what has been built."""
    from pipelines import show
    from vsr1_core.datasets.registry import get_entry
    from vsr1_core.home.adding import frames_of, models_of
    from vsr1_core.stages.graph import open_view

    settings = read_settings()
    entry = get_entry(settings.home, name)
    rows = [["kind", entry.kind], ["videos", entry.videos], ["annotations", entry.annotations or "none"]]
    rows += [["config", entry.config], ["models from", entry.models_from or "its own"]]
    rows += [["models", models_of(settings.home, entry)], ["frames", frames_of(settings.home, entry)]]
    rows += _imported_from(settings, name)
    show.console().print(show.table(entry.name, ["", ""], rows))
    if name in BENCHMARKS:
        _show_benchmark(BENCHMARKS[name], entry)
    show.console().print(show.status_table(open_view(settings.home, name)))


def _show_benchmark(benchmark: Benchmark, entry: DatasetEntry) -> None:
    """Print which files a public dataset has, where to get them, and which commands to run once they are there."""
    from pipelines import show

    folder = Path(entry.annotations)
    files = [
        [f.name, f.split, f"{f.num_rows:,}", "yes" if (folder / f.name).is_file() else "no"] for f in benchmark.files
    ]
    show.console().print(show.table(f"Files of {benchmark.title}", ["file", "split", "rows", "is there"], files))
    facts = [
        ["annotations from", benchmark.annotations_from],
        ["videos from", benchmark.videos_from],
        ["video ids", f"like {benchmark.id_example}"],
        ["video files", f"<id> with {', '.join(benchmark.suffixes)} or another video suffix"],
        ["note", benchmark.videos_note],
    ]
    show.console().print(show.table("Where to get it", ["", ""], facts))
    name = benchmark.name
    typer.echo(f"If the files are in other folders: vsr1 dataset add {name} --annotations FOLDER --videos FOLDER")
    typer.echo(f"Then run: vsr1 dataset check {name}, and: vsr1 build --dataset {name}")


def _imported_from(settings: Settings, name: str) -> list[list[str]]:
    """One line about what was imported for the dataset, or why that cannot be used any more; none without an import."""
    from vsr1_core.rows.imported import current_import
    from vsr1_core.rows.lake import Lake

    try:
        imported = current_import(Lake(settings.home / "lake"), name)
    except ValueError as error:
        return [["imported from", str(error)]]
    if imported is None:
        return []
    record = imported.record
    return [["imported from", f"{record['source']} ({', '.join(record['splits'])}), {record['imported_at']}"]]


@datasets.command("check", epilog="The exit code is 0 if nothing was found, and 1 otherwise.")
@command
def dataset_check(
    name: NameArgument,
    output: Annotated[str, typer.Option("--format", "-f", help="table, csv or json.")] = "table",
    allow_extra: Annotated[
        bool, typer.Option("--allow-extra", help="Do not report videos that no annotation names.")
    ] = False,
) -> None:
    """Compare annotations with the files on disk: missing, extra, too short, undecodable videos; wrong row counts."""
    import polars as pl

    from pipelines import show
    from vsr1_core.datasets.file_check import Finding, check_files
    from vsr1_core.datasets.registry import configuration_of, get_entry

    check_choice("format", output, "table", "csv", "json")
    settings = read_settings()
    entry = get_entry(settings.home, name)
    config = configuration_of(settings.home, entry)
    checked = check_files(entry, config, settings.workers, video_limits_of(settings.video_limits))
    findings = [f for f in checked if not (allow_extra and f.kind == "extra")]
    if output == "table":
        _print_findings(name, findings)
    else:
        columns = {field.name: pl.String for field in dataclasses.fields(Finding)}
        frame = pl.DataFrame([dataclasses.asdict(f) for f in findings], schema=columns)
        show.print_frame(frame, output)
    if findings:
        raise typer.Exit(1)


def _print_findings(name: str, findings: Sequence[Finding]) -> None:
    """Print how many findings there are of each kind, then the first ones of each kind."""
    from pipelines import show
    from vsr1_core.datasets.file_check import KINDS

    if not findings:
        typer.echo(f"{name}: the files on disk agree with the annotations.")
        return
    counts = Counter(f.kind for f in findings)
    found = {kind: meaning for kind, meaning in KINDS.items() if kind in counts}
    rows = [[kind, counts[kind], meaning] for kind, meaning in found.items()]
    show.console().print(show.table(f"Check of {name}", ["finding", "number", "what it is"], rows))
    listed = [f for kind in found for f in [f for f in findings if f.kind == kind][:MAX_LISTED]]
    rows = [[f.kind, f.row_id, f.detail] for f in listed]
    show.console().print(show.table("", ["finding", "id", "detail"], rows))
    if len(listed) < len(findings):
        typer.echo(f"{len(findings) - len(listed):,} more are listed by: vsr1 dataset check {name} --format csv")


@datasets.command(
    "add",
    epilog="Examples: [bold]vsr1 dataset add mine --videos ~/clips --annotations ~/clips.csv[/bold]; "
    "[bold]vsr1 dataset add nano --toy --config nano[/bold]; "
    "[bold]vsr1 dataset add mine --videos ~/clips --policy ~/my-policy --embedder Qwen/Qwen3-VL-Embedding-2B "
    "--set retrieval.index=hnsw[/bold]",
)
@command
def dataset_add(
    name: Annotated[str, typer.Argument(help="A name for the dataset.")],
    videos: VideosOption = None,
    annotations: AnnotationsOption = None,
    models_from: ModelsFromOption = None,
    train_own: TrainOwnOption = False,
    config: ConfigOption = None,
    assignments: SetOption = None,
    policy: PolicyOption = None,
    embedder: EmbedderOption = None,
    kind: KindOption = "",
    toy: ToyOption = False,
    search_only: SearchOnlyOption = False,
    window: WindowOption = None,
) -> None:
    """Register a dataset: your own videos, or the folders of a VERIFIED FIG dataset.

    With --set, --policy or --embedder, a configuration with the name of the dataset is written for it. A running web
    UI shows the dataset as a partition after the code location is reloaded.
    """
    from vsr1_core.datasets.registry import get_entry, save_entry
    from vsr1_core.home.adding import (
        Wanted,
        annotation_findings,
        base_of,
        borrowed,
        entry_of,
        next_steps,
        what_is_done_without,
        what_was_found,
    )

    settings = read_settings()
    if models_from:
        get_entry(settings.home, models_from)
    _refuse_contradictions(models_from, train_own, search_only, policy)
    changes = [*model_assignments(policy, embedder), *(assignments or [])]
    source = "" if train_own else models_from
    own = bool(policy or embedder)
    wanted = Wanted(name, videos, annotations, source, config, own, toy, kind, search_only, window)
    with chosen_configuration(settings, name, base_of(settings.home, wanted), changes) as chosen:
        entry = entry_of(settings.home, wanted, chosen)
        lines = (what_was_found(entry), *borrowed(settings.home, entry, changes))
        findings = annotation_findings(settings.home, entry)
        for line in (*lines, *what_is_done_without(settings.home, entry), *findings):
            typer.echo(line)
        save_entry(settings.home, entry)
    for line in next_steps(settings.home, entry):
        typer.echo(line)


def _refuse_contradictions(models_from: str | None, train_own: bool, search_only: bool, policy: str | None) -> None:
    if models_from == "":
        raise UserError("--models-from needs the name of a dataset; to train models of its own: --train-own")
    if train_own and models_from:
        raise UserError(f"--train-own trains models, and --models-from uses those of {models_from}: leave one out")
    if search_only and (train_own or policy):
        raise UserError("--search-only fetches, trains and asks no policy: leave out --train-own and --policy")


@datasets.command("remove")
@command
def dataset_remove(
    name: NameArgument,
    rows: Annotated[
        bool, typer.Option("--rows", help="Also delete its tables, frames, indexes, checkpoints and imports.")
    ] = False,
    wait: WaitOption = False,
) -> None:
    """Remove a dataset from the list. Its videos and annotations stay on disk; so do its tables, without --rows."""
    from vsr1_core.datasets.corrections import corrections_path
    from vsr1_core.datasets.registry import load_entries, remove_entry
    from vsr1_core.home import warehouse
    from vsr1_core.home.unused import delete_rows
    from vsr1_core.rows.lake import Lake

    settings = read_settings()
    if name not in load_entries(settings.home):
        raise UserError(f"there is no registered dataset {name!r}; see: vsr1 dataset list")
    lake = Lake(settings.home / "lake")
    if rows:
        _refuse_where_others_use_it(settings, lake, name)
    with lake.written(name, "vsr1 dataset remove", wait=wait, log=say) as held:
        if not remove_entry(settings.home, name):
            raise UserError(f"there is no registered dataset {name!r}; see: vsr1 dataset list")
        num_bytes = delete_rows(held, name) if rows else 0
    kept = corrections_path(settings.home, name)
    if kept.exists():
        typer.echo(f"What people corrected stays in {kept}.")
    if not rows:
        typer.echo(f"Removed {name} from the list. Its tables stay under {lake.root}; to delete them: --rows")
        return
    warehouse.refresh(settings.home)
    typer.echo(f"Removed {name} from the list, and {num_bytes / 2**20:,.1f} MiB of its rows and their files.")


def _refuse_where_others_use_it(settings: Settings, lake: Lake, name: str) -> None:
    from vsr1_core.datasets.registry import load_entries
    from vsr1_core.home.unused import users_of
    from vsr1_core.stages.graph import all_stages

    entries = load_entries(settings.home).values()
    users = {entry.name for entry in entries if name in (entry.models_from, entry.same_corpus_as)}
    users |= {*users_of(lake, all_stages(), name)}
    if users:
        raise UserError(
            f"{', '.join(sorted(users))} use models or imports of {name}; remove these first, or leave out --rows"
        )
