"""`vsr1 search`: through the running server of the same home, or else with models that it loads itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines import completion
from pipelines.commands import DatasetOption, UserError, check_choice, command, say
from pipelines.settings import Settings, execution_of, read_settings, video_limits_of

if TYPE_CHECKING:
    from vsr1_core.home.search import SearchRequest
    from vsr1_core.home.search_result import Found
    from vsr1_core.stages.base import View


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog='Example: [bold]vsr1 search "a red circle moves left" --dataset toy[/bold]')(search)


@command
def search(
    text: Annotated[str, typer.Argument(help="What the moment shows, in words.")] = "",
    dataset: DatasetOption = "toy",
    split: Annotated[str, typer.Option(help="The split whose videos are searched.")] = "test",
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="How many videos are listed.")] = 5,
    method: Annotated[
        str,
        typer.Option(
            help="The method that searches (default: the last one of the report that is built).",
            autocompletion=completion.methods,
        ),
    ] = "",
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Show videos to the policy, or only rank them by similarity.")
    ] = True,
    turns: Annotated[int | None, typer.Option(help="Most videos that the policy is shown.")] = None,
    output: Annotated[str, typer.Option("--format", "-f", help="table, record or json.")] = "table",
    image: Annotated[
        Path | None, typer.Option(help="Search with a picture file in place of words; ranks by similarity.")
    ] = None,
    save: Annotated[
        int | None, typer.Option("--save-clips", min=1, help="Save the first N results as files, cut to their spans.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for --save-clips; it is made if it is missing.")] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Load the models here, even where `vsr1 serve` has them loaded.")
    ] = False,
) -> None:
    """Find the videos that a text describes, and the moment in the best one."""
    from pipelines import show_search
    from vsr1_core.home.search import SearchRequest, method_of
    from vsr1_core.stages.graph import open_view

    check_choice("format", output, "table", "record", "json")
    if (save is None) != (out is None):
        raise UserError("--save-clips N and --out DIR belong together: give both, or none")
    top_k = max(top_k, save or 0)
    settings = read_settings()
    view = open_view(settings.home, dataset)
    if image is not None:
        _refuse_words(text, method, turns)
        found = _by_picture(settings, view, image.expanduser(), split, top_k)
    else:
        request = SearchRequest(text, split, top_k, method or None, verify, turns)
        method_of(view, request)  # what is not there is said before torch is imported
        found = (None if local else _by_server(settings, view, request)) or _here(settings, view, request)
    show_search.print_found(found, output)
    if save is not None and out is not None:
        _save(found, out.expanduser(), save, settings)


def _refuse_words(text: str, method: str, turns: int | None) -> None:
    if text or method or turns is not None:
        raise UserError("--image searches with a picture alone, and asks no policy: give no text, --method or --turns")


def _save(found: Found, folder: Path, number: int, settings: Settings) -> None:
    from vsr1_core.home.clips import save_clips

    saved = list(save_clips(found, folder, number, video_limits_of(settings.video_limits)))
    for clip in saved:
        say(f"Saved {clip.path}" if clip.path else f"{clip.hit.video} was not saved: {clip.reason}")
    if not any(clip.path for clip in saved):
        raise UserError(f"no clip was saved into {folder}")


def _by_server(settings: Settings, view: View, request: SearchRequest) -> Found | None:
    """The answer of the running server of this home; None where none runs."""
    from vsr1_core.home.running import running_server, search_through
    from vsr1_core.home.search import paths_of

    server = running_server(settings.home)
    if server is None:
        return None
    found = search_through(server, view.entry.name, request)
    typer.echo(f"Searched by the server at {server.url} in {found.seconds:.1f} s.", err=True)
    return found.with_paths(paths_of(view, [hit.video for hit in found]))


def _here(settings: Settings, view: View, request: SearchRequest) -> Found:
    from vsr1_core.home.search import search_once
    from vsr1_core.stages.opened import OpenedModels

    return _told(search_once(OpenedModels(view, execution_of(settings, lambda _line: None)), request))


def _by_picture(settings: Settings, view: View, picture: Path, split: str, top_k: int) -> Found:
    from vsr1_core.home.search import search_by_picture
    from vsr1_core.stages.opened import OpenedModels

    opened = OpenedModels(view, execution_of(settings, lambda _line: None))
    return _told(search_by_picture(opened, picture, split, top_k))


def _told(found: Found) -> Found:
    """The result, after saying how long it took."""
    typer.echo(
        f"Loading the models took {found.loading_s:.1f} s, and the search {found.seconds:.1f} s; "
        "`vsr1 serve` keeps them loaded for the next search.",
        err=True,
    )
    return found
