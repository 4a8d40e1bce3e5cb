"""What all command modules share: known errors are printed without a traceback, and names of datasets and
configurations are looked up."""

from __future__ import annotations

import functools
import importlib
import os
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from pipelines import completion
from pipelines.settings import Settings, read_settings
from vsr1_core.rows.texts import did_you_mean, visible

if TYPE_CHECKING:
    from vsr1_core.recipes import Configuration

DatasetOption = Annotated[
    str,
    typer.Option("--dataset", "-d", help="A name from `vsr1 dataset list`.", autocompletion=completion.datasets),
]
NameArgument = Annotated[str, typer.Argument(help="A name from vsr1 dataset list.", autocompletion=completion.datasets)]
StaleOption = Annotated[bool, typer.Option("--stale", help="Write tables that are out of date as they are.")]
WaitOption = Annotated[
    bool,
    typer.Option("--wait", help="If something else writes the dataset, wait until it has ended, instead of leaving."),
]
AllowRemovalsOption = Annotated[
    bool, typer.Option("--allow-removals", help="Drop the rows of all files that are gone, however many they are.")
]
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells give it: 128 and the number of the signal."""
debugging = {"on": False}
"""Whether tracebacks are shown (`vsr1 --debug`)."""


class UserError(Exception):
    """An error that the user can put right; the message says what is wrong, where, and what to do."""


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command so that its known errors are printed without a traceback."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except BrokenPipeError:  # `vsr1 report | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except _known_errors() as error:
            if debugging["on"] or isinstance(error, KeyError | IndexError):
                raise
            fail(str(error))
        except KeyboardInterrupt:
            say("stopped; what is finished is kept, and the same command goes on from there")
            raise typer.Exit(INTERRUPTED) from None

    return wrapped


def _known_errors() -> tuple[type[Exception], ...]:
    """Exceptions whose message is written for a person. A module that is not loaded has raised none."""
    known: list[type[Exception]] = [UserError, OSError, ValueError, LookupError, ImportError]
    for module, name in (("vsr1_core.stages.base", "NotYetKnown"), ("duckdb", "Error")):
        if module in sys.modules:
            known.append(getattr(sys.modules[module], name))
    return tuple(known)


def say(line: str) -> None:
    """Print a line about the progress to stderr. Names of files in it cannot steer the terminal."""
    typer.echo(visible(line), err=True)


def fail(message: str) -> None:
    """Print `error: message` to stderr and exit with code 1."""
    typer.secho(f"error: {visible(message)}", fg=typer.colors.RED, err=True)
    raise typer.Exit(1)


def require_dagster(command_name: str, extra: str = "dagster", package: str = "dagster") -> None:
    """Raise UserError if Dagster, or a package of it, is not installed. Only the graph and its UI need Dagster."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"`{command_name}` needs Dagster, which is not installed; run: pip install 'videosearch-r1[{extra}]' "
            "(from a checkout: pip install -c constraints.txt -e '.[" + extra + "]'). To build without Dagster: "
            "python -c \"import vsr1_core; vsr1_core.Home('vsr1_home').build('toy')\""
        ) from error


def check_choice(what: str, value: str, *choices: str) -> None:
    """Raise UserError unless `value` is one of `choices`. what: what is chosen, for the message."""
    if value not in choices:
        meant = did_you_mean(value, choices)
        raise UserError(f"there is no {what} {value!r}{meant or ';'} use {', '.join(choices[:-1])} or {choices[-1]}")


def free_port(host: str, port: int) -> int:
    """The port, or a free one for 0. UserError: it is taken, which is said before anything starts."""
    try:
        kind = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(kind[0], socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(kind[4])
            return int(trial.getsockname()[1])
    except OSError as error:
        raise UserError(f"cannot listen on {host}, port {port} ({error}); choose another: --port 0") from error


def known_configuration(settings: Settings, name: str) -> Configuration:
    from vsr1_core.configuration_files import load_configuration

    try:
        return load_configuration(settings.home, name)
    except LookupError as error:
        raise UserError(f"{error.args[0]}. To make your own: vsr1 config new NAME --base tiny") from error


class ConfigurationName(click.ParamType):
    """Name of a configuration. Its help lists the configurations of the home, which are read when help is asked for."""

    name = "configuration"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        from vsr1_core.configuration_files import configuration_names

        try:
            names = configuration_names(read_settings().home)
        except ValueError:  # an environment variable is wrong; every command reports that by itself
            return "NAME"
        return f"[{'|'.join(names)}]"
