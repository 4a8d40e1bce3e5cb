"""`vsr1 import-prepared` and `vsr1 export-prepared`: import the authors' prepared data, and write the same layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines import show
from pipelines.commands import DatasetOption, UserError, command
from pipelines.settings import read_settings
from vsr1_core.datasets.benchmarks import BENCHMARKS
from vsr1_core.home.prepared.layout import SPLITS
from vsr1_core.rows.imported import forget_import
from vsr1_core.stages.base import Execution
from vsr1_core.stages.graph import open_view

CopyOption = Annotated[
    bool,
    typer.Option("--copy", help="Copy frames. By default they are hard-linked if they are on the same file system."),
]


@command
def import_prepared(
    folder: Annotated[
        Path | None, typer.Argument(help="The folder of one dataset, which contains raw_annotation/.")
    ] = None,
    dataset: DatasetOption = "charades",
    split: Annotated[list[str] | None, typer.Option(help="Import only this split; may be given twice.")] = None,
    copy: CopyOption = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Undo the import: the next build computes these rows itself.")
    ] = False,
) -> None:
    """Import the frames, embeddings, index and training files that the authors prepared, instead of computing them."""
    from vsr1_core.home.prepared.importing import import_prepared as run_import

    settings = read_settings()
    view = open_view(settings.home, dataset)
    if dataset not in BENCHMARKS:
        raise UserError(f"prepared data are published only for {', '.join(BENCHMARKS)}, not for {dataset}")
    if forget:
        if not forget_import(view.lake, dataset):
            raise UserError(f"nothing was imported for {dataset}")
        typer.echo(
            f"The import of {dataset} is undone. To see what a build computes now: vsr1 plan --dataset {dataset}"
        )
        return
    if folder is None or not folder.is_dir():
        raise UserError(f"give the folder of the prepared data: vsr1 import-prepared DIR --dataset {dataset}")
    unknown = sorted(set(split or ()) - set(SPLITS))
    if unknown:
        raise UserError(f"there is no split {unknown[0]!r}; there are: {', '.join(SPLITS)}")
    execution = Execution(workers=settings.workers, log=lambda line: typer.echo(line, err=True))
    summary = run_import(view, folder.expanduser(), execution, split or (), copy)
    rows = [[asset, number, summary.num_imported[asset]] for asset, number in summary.num_rows.items()]
    show.console().print(show.table(f"Imported into {dataset}", ["asset", "rows found", "rows imported"], rows))
    for note in summary.notes:
        typer.echo(note)
    typer.echo(f"To see what is left to build: vsr1 plan --dataset {dataset}")


@command
def export_prepared(
    dataset: Annotated[str, typer.Argument(help="A name from vsr1 dataset list.")],
    folder: Annotated[Path, typer.Argument(help="A new or empty folder, to which the data are written.")],
    copy: CopyOption = False,
) -> None:
    """Write a dataset in the layout of the authors' prepared data."""
    from vsr1_core.home.prepared.writing import export_prepared as write_out

    left_out = write_out(open_view(read_settings().home, dataset), folder.expanduser().absolute(), copy)
    typer.echo(f"Wrote {dataset} to {folder}.")
    for name in left_out:
        typer.echo(f"Left out, because it has not been built: {name}")


def register(app: typer.Typer) -> None:
    example = "Example: [bold]vsr1 import-prepared ~/data/charades-sta --dataset charades[/bold]"
    app.command("import-prepared", epilog=example)(import_prepared)
    app.command("export-prepared")(export_prepared)
