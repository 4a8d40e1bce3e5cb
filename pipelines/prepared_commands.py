"""`vsr1 import-prepared` and `vsr1 export-prepared`: import the authors' prepared data, and write the same layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines import completion
from pipelines.commands import StaleOption, UserError, WaitOption, command, say
from pipelines.settings import execution_of, read_settings

if TYPE_CHECKING:
    from vsr1_core.stages.base import View

CopyOption = Annotated[
    bool,
    typer.Option("--copy", help="Copy frames. By default they are hard-linked if they are on the same file system."),
]


DatasetToImport = Annotated[
    str,
    typer.Option(
        "--dataset",
        "-d",
        help="A name from vsr1 dataset list, or a new one, which is registered.",
        autocompletion=completion.datasets,
    ),
]


@command
def import_prepared(
    dataset: DatasetToImport,
    folder: Annotated[
        Path | None, typer.Argument(help="The folder of one dataset, which contains raw_annotation/.")
    ] = None,
    split: Annotated[list[str] | None, typer.Option(help="Import only this split; may be given twice.")] = None,
    copy: CopyOption = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Undo the import: the next build computes these rows itself.")
    ] = False,
    without_vectors: Annotated[
        bool, typer.Option("--without-vectors", help="Leave embeddings and indexes out: a build makes them.")
    ] = False,
    hard_negatives: Annotated[Path | None, typer.Option(help="hard_negatives.json, if it is elsewhere.")] = None,
    sft: Annotated[Path | None, typer.Option(help="train_oneturn.json or *_ColdStart.jsonl, if elsewhere.")] = None,
    grpo: Annotated[Path | None, typer.Option(help="train.minimal_top1.jsonl, if it is elsewhere.")] = None,
    models_from: Annotated[
        str, typer.Option(help="For a new name: the dataset whose models are used (default: models of its own).")
    ] = "",
    config: Annotated[str, typer.Option(help="For a new name: the configuration to build with.")] = "",
    wait: WaitOption = False,
) -> None:
    """Import the frames, embeddings, index and training files that others prepared, instead of computing them."""
    from pipelines import show
    from vsr1_core.datasets.registry import load_entries, save_entry
    from vsr1_core.home.prepared.importing import import_prepared as run_import
    from vsr1_core.home.prepared.layout import SPLITS
    from vsr1_core.home.prepared.training_files import TrainingPlaces

    settings = read_settings()
    view = _view_to_import_into(settings.home, dataset, models_from, config)
    if forget:
        _forget(view, wait)
        return
    if folder is None or not folder.is_dir():
        raise UserError(f"give the folder of the prepared data: vsr1 import-prepared DIR --dataset {dataset}")
    unknown = sorted(set(split or ()) - set(SPLITS))
    if unknown:
        raise UserError(f"there is no split {unknown[0]!r}; there are: {', '.join(SPLITS)}")
    places = {"hard_negatives": hard_negatives, "sft": sft, "grpo": grpo}
    summary = run_import(
        view,
        folder.expanduser(),
        execution_of(settings, say),
        split or (),
        copy,
        TrainingPlaces(**places),
        not without_vectors,
        wait,
    )
    if dataset not in load_entries(settings.home):
        save_entry(settings.home, view.entry)
    rows = [[asset, number, summary.num_imported[asset]] for asset, number in summary.num_rows.items()]
    show.console().print(show.table(f"Imported into {dataset}", ["asset", "rows found", "rows imported"], rows))
    for note in (*summary.notes, *summary.left_out):
        typer.echo(note)
    typer.echo(f"To see what is left to build: vsr1 plan --dataset {dataset}")


def _forget(view: View, wait: bool) -> None:
    from vsr1_core.home.prepared.importing import forget
    from vsr1_core.stages.graph import writing

    name = view.entry.name
    with writing(view, "vsr1 import-prepared --forget", wait=wait, log=say) as held:
        for path in forget(held):
            typer.echo(f"Removed {path}, which the import had written.")
    typer.echo(f"The import of {name} is undone. To see what a build computes now: vsr1 plan --dataset {name}")


def _view_to_import_into(home: Path, dataset: str, models_from: str, config: str) -> View:
    """The tables of the dataset. A name that is not known becomes a dataset, which is registered after the import."""
    from vsr1_core.datasets.registry import configuration_of, load_entries
    from vsr1_core.home.adding import imported_entry
    from vsr1_core.rows.lake import Lake
    from vsr1_core.stages.base import View
    from vsr1_core.stages.graph import all_stages, open_view

    if dataset in load_entries(home):
        if models_from or config:
            raise UserError(f"{dataset} is registered already; --models-from and --config are for a new name")
        return open_view(home, dataset)
    entry = imported_entry(home, dataset, config, models_from)
    return View(Lake(home / "lake"), entry, configuration_of(home, entry), all_stages(), home=home)


@command
def export_prepared(
    dataset: Annotated[str, typer.Argument(help="A name from vsr1 dataset list.")],
    folder: Annotated[Path, typer.Argument(help="A new or empty folder, to which the data are written.")],
    copy: CopyOption = False,
    stale: StaleOption = False,
) -> None:
    """Write a dataset in the layout of the authors' prepared data."""
    from vsr1_core.home.prepared.writing import export_prepared as write_out
    from vsr1_core.stages.graph import open_view

    left_out = write_out(open_view(read_settings().home, dataset), folder.expanduser().absolute(), copy, stale)
    typer.echo(f"Wrote {dataset} to {folder}.")
    for name in left_out:
        typer.echo(f"Left out, because it has not been built: {name}")


def register(app: typer.Typer) -> None:
    example = "Example: [bold]vsr1 import-prepared ~/data/charades-sta --dataset charades[/bold]"
    app.command("import-prepared", epilog=example)(import_prepared)
    app.command("export-prepared")(export_prepared)
