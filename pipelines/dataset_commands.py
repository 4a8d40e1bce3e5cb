"""`vsr1 dataset ...`: which datasets there are, and whether their files are what the annotations say."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import polars as pl
import typer

from pipelines import show
from pipelines.commands import UserError, command, known_configuration, known_entry
from pipelines.resources import Settings, read_settings
from vsr1_core.configurations import CONFIGURATIONS
from vsr1_core.datasets.benchmarks import BENCHMARKS, Benchmark
from vsr1_core.datasets.file_check import KINDS, Finding, check_files
from vsr1_core.datasets.registry import (
    DatasetEntry,
    configuration_of,
    get_entry,
    load_entries,
    models_owner,
    remove_entry,
    save_entry,
)
from vsr1_core.recipes import Configuration, FrameRecipe, ModelRecipe
from vsr1_core.rows.imported import current_import
from vsr1_core.rows.lake import Lake
from vsr1_core.stages.graph import open_view

MAX_LISTED = 20
"""Findings of one kind that the table lists; CSV and JSON list all."""
FINDING_COLUMNS = {field.name: pl.String for field in dataclasses.fields(Finding)}

datasets = typer.Typer(help="Datasets: list, add, show, check, remove.", no_args_is_help=True)


@datasets.command("list")
@command
def dataset_list() -> None:
    """All datasets of this home."""
    settings = read_settings()
    rows = [
        [e.name, e.kind, e.config, e.models_from, _frames_as_in(settings, e), e.videos]
        for e in load_entries(settings.home).values()
    ]
    header = ["name", "kind", "config", "models from", "frames as in", "videos"]
    show.console().print(show.table(f"Datasets of {settings.home}", header, rows))


def _built_with(settings: Settings, entry: DatasetEntry) -> Configuration | None:
    """None where the models that it uses are nobody's; a list of datasets shows such a one all the same."""
    try:
        return configuration_of(settings.home, entry)
    except (LookupError, ValueError):
        return None


def _frames_as_in(settings: Settings, entry: DatasetEntry) -> str:
    """The configuration whose frames it uses: its own, or that of the models which it borrows."""
    config = _built_with(settings, entry)
    if config is None:
        return "unknown"
    is_own = config.frames == entry.own_configuration.frames
    return entry.config if is_own else models_owner(settings.home, entry).config


def _frames_of(settings: Settings, entry: DatasetEntry) -> str:
    """Which frames of its videos are sampled, and whose choice that is."""
    config = _built_with(settings, entry)
    if config is None:
        return f"unknown: {entry.models_from} has no models"
    differs = config.frames != entry.own_configuration.frames
    return frames_text(config.frames) + (f", as the models of {entry.models_from} saw" if differs else "")


def frames_text(recipe: FrameRecipe) -> str:
    return f"{recipe.fps:g} a second, at most {recipe.max_frames} of {recipe.max_pixels:,} pixels"


def _models_of(settings: Settings, entry: DatasetEntry) -> str:
    config = _built_with(settings, entry)
    return "unknown" if config is None else models_text(config.models)


def models_text(models: ModelRecipe) -> str:
    return "tiny" if models.is_tiny else f"{models.policy} and {models.embedder}"


@datasets.command("show")
@command
def dataset_show(name: str) -> None:
    """One dataset: where its files are and come from, and what has been built."""
    settings = read_settings()
    entry = known_entry(settings, name)
    rows = [["kind", entry.kind], ["videos", entry.videos], ["annotations", entry.annotations or "none"]]
    rows += [["config", entry.config], ["models from", entry.models_from or "its own"]]
    rows += [["models", _models_of(settings, entry)], ["frames", _frames_of(settings, entry)]]
    imported = current_import(Lake(settings.home / "lake"), name)
    if imported is not None:
        record = imported.record
        said = f"{record['source']} ({', '.join(record['splits'])}), {record['imported_at']}"
        rows.append(["imported from", said])
    show.console().print(show.table(entry.name, ["", ""], rows))
    if name in BENCHMARKS:
        _show_benchmark(BENCHMARKS[name], entry)
    show.console().print(show.status_table(open_view(settings.home, name)))


def _show_benchmark(benchmark: Benchmark, entry: DatasetEntry) -> None:
    """Which files a public dataset has, where to get them, and what to type once they are there."""
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
    typer.echo(f"With files elsewhere: vsr1 dataset add {name} --annotations FOLDER --videos FOLDER")
    typer.echo(f"Then: vsr1 dataset check {name}, and: vsr1 build --dataset {name}")


@datasets.command("check", epilog="Exit code 0: nothing was found; 1: something was.")
@command
def dataset_check(
    name: str,
    output: Annotated[str, typer.Option("--format", "-f", help="table, csv or json.")] = "table",
    allow_extra: Annotated[
        bool, typer.Option("--allow-extra", help="Videos that no annotation names are no finding.")
    ] = False,
) -> None:
    """Compare annotations with the files on disk: missing, extra, too short, undecodable videos; wrong row counts."""
    if output not in ("table", "csv", "json"):
        raise UserError(f"no format {output!r}; use table, csv or json")
    settings = read_settings()
    entry = known_entry(settings, name)
    config = configuration_of(settings.home, entry)
    findings = [f for f in check_files(entry, config, settings.workers) if not (allow_extra and f.kind == "extra")]
    if output == "table":
        _print_findings(name, findings)
    else:
        frame = pl.DataFrame([dataclasses.asdict(f) for f in findings], schema=FINDING_COLUMNS)
        typer.echo(show.frame_csv(frame) if output == "csv" else show.frame_json(frame), nl=output == "json")
    if findings:
        raise typer.Exit(1)


def _print_findings(name: str, findings: Sequence[Finding]) -> None:
    """How many there are of each kind, then the first of each."""
    if not findings:
        typer.echo(f"{name}: the files on disk are what the annotations say.")
        return
    counts = Counter(f.kind for f in findings)
    found = {kind: meaning for kind, meaning in KINDS.items() if kind in counts}
    rows = [[kind, counts[kind], meaning] for kind, meaning in found.items()]
    show.console().print(show.table(f"Check of {name}", ["finding", "number", "what it is"], rows))
    listed = [f for kind in found for f in [f for f in findings if f.kind == kind][:MAX_LISTED]]
    rows = [[f.kind, f.row_id, f.detail] for f in listed]
    show.console().print(show.table("", ["finding", "id", "detail"], rows))
    if len(listed) < len(findings):
        typer.echo(f"{len(findings) - len(listed):,} more: vsr1 dataset check {name} --format csv")


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
    models_from: Annotated[
        str | None,
        typer.Option(help="Dataset whose models are used, or '' (default: toy, unless --config names others)."),
    ] = None,
    config: Annotated[
        str | None, typer.Option(help=f"One of: {', '.join(CONFIGURATIONS)} (default: that of --models-from).")
    ] = None,
    toy: Annotated[
        bool, typer.Option("--toy", help="Rendered videos instead of your own, e.g. with --config nano.")
    ] = False,
) -> None:
    """Register a dataset: your own videos, or the folders of a VERIFIED FIG one. Becomes a partition after a reload."""
    settings = read_settings()
    if config is not None:
        known_configuration(config)
    if toy:
        entry = _toy_entry(settings, name, config or "tiny")
    elif name in BENCHMARKS:
        entry = _verified_entry(settings, name, videos, annotations, config, models_from)
    else:
        entry = _folder_entry(settings, name, videos, annotations, config, models_from)
    if entry.models_from:
        _check_borrowing(settings, entry)
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
    lender = known_entry(settings, models_from) if models_from else None
    typer.echo(f"{name}: VERIFIED FIG annotations from {annotations or known.annotations}")
    return DatasetEntry(
        name,
        "verified",
        str(videos.expanduser().resolve()) if videos else known.videos,
        str(annotations.expanduser().resolve()) if annotations else known.annotations,
        config or (lender.config if lender else known.config),
        models_from or "",
    )


def _folder_entry(
    settings: Settings,
    name: str,
    videos: Path | None,
    annotations: Path | None,
    config: str | None,
    models_from: str | None,
) -> DatasetEntry:
    from vsr1_core.datasets.folder import find_videos

    if videos is None:
        raise UserError(f"give the folder of videos: vsr1 dataset add {name} --videos DIR")
    found = find_videos(videos.expanduser().resolve())
    if not found:
        raise UserError(f"no video files in {videos}; give the folder that holds them (mp4, mkv, webm, mov, avi, ...)")
    if annotations is not None and not annotations.expanduser().is_file():
        raise UserError(f"the annotation file {annotations} is not there")
    source = models_from if models_from is not None else _default_source(config)
    config = config or (known_entry(settings, source).config if source else "tiny")
    annotated = "annotated" if annotations else "no annotations"
    typer.echo(f"{name}: {len(found):,} videos, {annotated}, {f'models from {source}' if source else 'its own models'}")
    annotation_path = str(annotations.expanduser().resolve()) if annotations else ""
    return DatasetEntry(name, "folder", str(videos.expanduser().resolve()), annotation_path, config, source)


def _default_source(config: str | None) -> str:
    """Whose models a folder of videos uses where nothing is said: toy's, unless its configuration names others."""
    return "toy" if config is None or CONFIGURATIONS[config].models.is_tiny else ""


def _check_borrowing(settings: Settings, entry: DatasetEntry) -> None:
    """Refuse models that the configuration does not name, and say what else is taken from the dataset that has them."""
    owner = known_entry(settings, models_owner(settings.home, entry).name)
    own, borrowed = entry.own_configuration, owner.own_configuration
    if models_text(own.models) != models_text(borrowed.models):
        raise UserError(
            f"--config {entry.config} names the models {models_text(own.models)}, and {owner.name} has "
            f"{models_text(borrowed.models)}: leave --config out to use these, or --models-from to make its own"
        )
    why = f"as the models of {owner.name} were trained with them"
    if own.frames != borrowed.frames:
        frames, others = frames_text(borrowed.frames), frames_text(own.frames)
        typer.echo(f"{entry.name}: frames are sampled at {frames}, {why}; not at {others}, as {entry.config} says")
    if own.models != borrowed.models:
        typer.echo(
            f"{entry.name}: sizes and options of the models are those of {owner.config}, {why}; not those of "
            f"{entry.config}"
        )


@datasets.command("remove")
@command
def dataset_remove(name: str) -> None:
    """Forget a registered dataset. Its videos and tables stay on disk."""
    settings = read_settings()
    if not remove_entry(settings.home, name):
        raise UserError(f"{name!r} was not registered; see: vsr1 dataset list")
    typer.echo(f"Forgot {name}. Its tables stay under {settings.home / 'lake'}.")
