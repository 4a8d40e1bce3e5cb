"""`vsr1 config ...`: lists and shows the configurations of this home, and writes new ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.commands import ConfigurationName, command, known_configuration
from pipelines.settings import Settings, read_settings

configs = typer.Typer(
    help="Manage configurations, which say how a dataset is built: list, show, diff, new.", no_args_is_help=True
)
ConfigOption = Annotated[
    str | None,
    typer.Option("--config", click_type=ConfigurationName(), help="How it is built; a name from vsr1 config list."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="KEY=VALUE replaces a setting of the configuration; may be given several times."),
]
ConfigArgument = Annotated[str, typer.Argument(click_type=ConfigurationName(), help="A name from vsr1 config list.")]


@configs.command("list")
@command
def config_list() -> None:
    """List all configurations, built-in and your own, and which datasets are built with them."""
    from pipelines import show
    from vsr1_core.configuration_files import configuration_names

    settings = read_settings()
    rows = [[name, *_origin(settings, name), _users(settings, name)] for name in configuration_names(settings.home)]
    header = ["name", "based on", "where", "settings that differ", "datasets"]
    show.console().print(show.table(f"Configurations of {settings.home}", header, rows))


def _origin(settings: Settings, name: str) -> list[str]:
    """Base, place, and how many settings differ from the base. For a configuration that cannot be used, the reason; the
    others are still listed."""
    from vsr1_core.configuration_files import load_configuration, own_names, read_configuration_file
    from vsr1_core.settings import differences

    if name not in own_names(settings.home):
        return ["", "built in", ""]
    try:
        file = read_configuration_file(settings.home, name)
        config, base = (load_configuration(settings.home, n) for n in (name, file.base))
    except (ValueError, LookupError, OSError) as error:
        return ["", f"cannot be used: {error.args[0]}", ""]
    return [file.base, str(file.path), str(len(differences(base, config)))]


def _users(settings: Settings, name: str) -> str:
    from vsr1_core.datasets.registry import load_entries

    return ", ".join(entry.name for entry in load_entries(settings.home).values() if entry.config == name)


@configs.command(
    "show", epilog="Example: [bold]vsr1 config show tiny > vsr1_home/configurations/mine.toml[/bold], then edit it."
)
@command
def config_show(name: ConfigArgument) -> None:
    """Print all settings of a configuration as a file that can be saved under another name and edited."""
    from vsr1_core.configuration_files import shown

    settings = read_settings()
    known_configuration(settings, name)
    typer.echo(shown(settings.home, name), nl=False)


@configs.command("diff", epilog="Example: [bold]vsr1 config diff tiny experiment[/bold]")
@command
def config_diff(a: ConfigArgument, b: ConfigArgument) -> None:
    """Show the settings in which two configurations differ, with both values."""
    from pipelines import show
    from vsr1_core.settings import differences

    settings = read_settings()
    found = differences(known_configuration(settings, a), known_configuration(settings, b))
    if not found:
        typer.echo(f"{a} and {b} have the same settings.")
        return
    show.console().print(show.table("", ["setting", a, b], difference_rows(found)))


def difference_rows(found: Mapping[str, tuple[Any, Any]]) -> list[list[str]]:
    """Rows of a setting and both of its values, with a dash where one side lacks the setting."""
    return [[key, *(_spelled(value) for value in pair)] for key, pair in found.items()]


def _spelled(value: Any) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


@configs.command(
    "new",
    epilog="Example: [bold]vsr1 config new longer --base tiny --set sft.steps=500 --set grpo.steps=20[/bold], then: "
    "[bold]vsr1 dataset add mine --videos ~/clips --annotations ~/clips.csv --config longer[/bold]",
)
@command
def config_new(
    name: Annotated[str, typer.Argument(help="A name for the new configuration.")],
    base: Annotated[
        str, typer.Option(click_type=ConfigurationName(), help="The configuration that it is based on.")
    ] = "tiny",
    assignments: SetOption = None,
) -> None:
    """Write a configuration of your own: a file with its base and the settings that differ. The file can be edited."""
    settings = read_settings()
    path = _write(settings, name, base, assignments or [], "vsr1 config new")
    typer.echo(f"Wrote {path}")
    typer.echo(f"To see its settings: vsr1 config show {name}. To build with it: vsr1 dataset add ... --config {name}")


def _write(settings: Settings, name: str, base: str, assignments: Sequence[str], place: str) -> Path:
    from vsr1_core.configuration_files import write_configuration
    from vsr1_core.settings import parsed

    changes = parsed(assignments, known_configuration(settings, base))
    return write_configuration(settings.home, name, base, changes, place)


@contextlib.contextmanager
def chosen_configuration(settings: Settings, dataset: str, base: str, assignments: Sequence[str]) -> Iterator[str]:
    """Yield the name of the configuration that `dataset` is built with: `base`, or, if there are assignments, a new
    configuration with the name of the dataset. If the block fails, the new configuration is deleted again."""
    known_configuration(settings, base)
    if not assignments:
        yield base
        return
    path = _write(settings, dataset, base, assignments, "--set")
    try:
        yield dataset
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    typer.echo(f"Wrote the configuration {dataset}, which is {base} with {', '.join(assignments)}: {path}")


def model_assignments(policy: str | None, embedder: str | None) -> list[str]:
    """--policy and --embedder as settings. A folder is stored as an absolute path, because builds may run elsewhere."""
    named = {"models.policy": policy, "models.embedder": embedder}
    return [f"{key}={_place(value)}" for key, value in named.items() if value]


def _place(model: str) -> str:
    folder = Path(model).expanduser()
    return str(folder.resolve()) if folder.is_dir() else model
