"""`vsr1 push`, `vsr1 pull`, `vsr1 export`: share checkpoints and tables with others, and use theirs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands import DatasetOption, StaleOption, UserError, WaitOption, check_choice, command, say
from pipelines.settings import read_settings

if TYPE_CHECKING:
    from vsr1_core.home.hub.checkpoints import Checkpoint
    from vsr1_core.stages.base import View

hub = typer.Typer()

ToOption = Annotated[str, typer.Option("--to", help="Name of the repository on the hub: ORG/NAME.")]
PublicOption = Annotated[bool, typer.Option("--public", help="If the repository is new, make it public.")]


def _view(dataset: str) -> View:
    from vsr1_core.stages.graph import open_view

    return open_view(read_settings().home, dataset)


@hub.command(epilog="Example: [bold]vsr1 push sft_checkpoint --dataset toy --to me/toy-sft --dry-run out[/bold]")
@command
def push(
    checkpoint: Annotated[str, typer.Argument(help="sft_checkpoint, grpo_checkpoint, embedder, ...")],
    to: ToOption,
    dataset: DatasetOption = "toy",
    dry_run: Annotated[
        Path | None, typer.Option(help="Write what would be pushed to this folder, and push nothing.")
    ] = None,
    public: PublicOption = False,
    form: Annotated[
        str, typer.Option(help="own, or authors: as the authors' code and transformers 4.57 read it.")
    ] = "own",
    stale: StaleOption = False,
) -> None:
    """Push a checkpoint to the model hub, with a card: its metrics, its recipe, and what it was made from."""
    from vsr1_core.home.hub import remote
    from vsr1_core.home.hub.checkpoints import find_checkpoint
    from vsr1_core.home.staleness import require_current

    check_choice("form", form, "own", "authors")
    if dry_run is not None and dry_run.exists():
        raise UserError(f"{dry_run} exists already; give the name of a new folder")
    found = find_checkpoint(_view(dataset), checkpoint)
    if not stale:
        require_current(found.view, [found.asset])
    if dry_run is not None:
        _write_checkpoint(found, dry_run, to, form)
        typer.echo(f"Wrote {dry_run}. Without --dry-run it would be pushed to {to}.")
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "checkpoint"
        _write_checkpoint(found, folder, to, form)
        typer.echo(f"Pushed: {remote.push(folder, to, public=public)}")


def _write_checkpoint(found: Checkpoint, folder: Path, to: str, form: str) -> None:
    from vsr1_core.home.hub.checkpoints import write_authors_folder, write_checkpoint_folder

    if form == "own":
        write_checkpoint_folder(found, folder, to)
        return
    for sentence in write_authors_folder(found, folder, to):
        typer.echo(sentence)


@hub.command(epilog="Example: [bold]vsr1 pull charades-grpo --dataset charades --as grpo_checkpoint[/bold]")
@command
def pull(
    name: Annotated[str, typer.Argument(help="ORG/NAME on the hub, an alias such as charades-sft, or a folder.")],
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="The dataset that uses the checkpoint.")] = "",
    as_asset: Annotated[
        str, typer.Option("--as", help="The asset that the checkpoint replaces, e.g. sft_checkpoint.")
    ] = "",
    training_file: Annotated[
        Path | None,
        typer.Option(help="The file train_oneturn.json that belongs to a checkpoint in the authors' format."),
    ] = None,
    wait: WaitOption = False,
) -> None:
    """Download a checkpoint from the hub; optionally let a dataset use it instead of training its own."""
    if bool(dataset) != bool(as_asset):
        raise UserError(
            "give both --dataset and --as, or neither: --dataset names the dataset that uses the checkpoint, --as the "
            "asset that it replaces"
        )
    view = _view(dataset) if dataset else None
    from vsr1_core.home.hub.adoption import adopt
    from vsr1_core.home.hub.embedder_check import found_in
    from vsr1_core.home.hub.forms import form_text
    from vsr1_core.home.hub.remote import pull as fetch

    source, folder = fetch(name)
    typer.echo(f"{source} is in {folder}")
    found, last = list[str](), list[str]()
    if view is None:
        found += found_in(source, folder)
    else:
        adoption = adopt(view, as_asset, source, folder, training_file, wait=wait, log=say)
        folder, found = adoption.folder, [*adoption.found]
        last.append(
            f"{dataset} uses it as {as_asset} from the next build on, and trains nothing for it. To train it here "
            f"again, delete {adoption.record}"
        )
    for sentence in [*found, form_text(folder), *last]:
        typer.echo(sentence)


@hub.command(epilog="Example: [bold]vsr1 export out --dataset toy --tables moments,predictions[/bold]")
@command
def export(
    folder: Annotated[Path, typer.Argument(help="A new folder, to which the tables are written.")],
    dataset: DatasetOption = "toy",
    tables: Annotated[
        str, typer.Option(help="Names of tables, separated by commas (default: all tables that have rows).")
    ] = "",
    to: Annotated[str, typer.Option("--to", help="Also push the folder to this repository on the hub: ORG/NAME.")] = "",
    public: PublicOption = False,
    stale: StaleOption = False,
    form: Annotated[
        str, typer.Option(help="tables, or fiftyone: annotated and predicted spans as temporal detections.")
    ] = "tables",
) -> None:
    """Write tables to a folder that `datasets.load_dataset` opens: Parquet files and a card. Or write for FiftyOne."""
    from pipelines import show
    from vsr1_core.home.hub import remote
    from vsr1_core.home.hub.tables import assets_of, export_tables
    from vsr1_core.home.staleness import require_current

    check_choice("form", form, "tables", "fiftyone")
    if form == "fiftyone":
        if tables or to:
            raise UserError("--tables and --to are for tables; leave them out with --form fiftyone")
        _export_fiftyone(_view(dataset), folder, stale)
        return
    names = [name.strip() for name in tables.split(",") if name.strip()]
    view = _view(dataset)
    if not stale:
        require_current(view, assets_of(view, names))
    written = export_tables(view, folder, names)
    rows = [[name, split, count] for name, splits in written.items() for split, count in splits.items()]
    show.console().print(show.table(f"Wrote {folder}", ["table", "split", "rows"], rows))
    if to:
        typer.echo(f"Pushed: {remote.push(folder, to, 'dataset', public=public)}")


def _export_fiftyone(view: View, folder: Path, stale: bool) -> None:
    from pipelines import show
    from vsr1_core.home.hub.fiftyone import export_fiftyone
    from vsr1_core.home.hub.tables import assets_of
    from vsr1_core.home.staleness import require_current

    if not stale:
        require_current(view, assets_of(view, ["moments", "predictions"]))
    written = export_fiftyone(view, folder)
    show.console().print(show.table(f"Wrote {folder}", ["field", "spans"], list(written.items())))
    typer.echo(f"{folder}/README.md says how FiftyOne imports it.")
