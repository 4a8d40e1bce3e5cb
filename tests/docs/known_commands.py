"""Whether a command that a page shows exists: each program by its own rule, and what nobody has a rule for is refused.

`vsr1` is parsed by the real command line without being run, `make` by the Makefile's targets, `pip install` by the
extras of pyproject.toml, `python -m` by the modules there are, `export` by the variables that the code reads.
"""

from __future__ import annotations

import importlib.util
import re
import tomllib
from collections.abc import Sequence
from functools import cache
from typing import Any

import typer

from pipelines.cli import app
from tests.docs.pages import ROOT

FOREIGN = frozenset({"duckdb", "ray", "vllm", "source"})
"""Programs of others, which nothing here can check."""

_ASSIGNMENT = re.compile(r"^([A-Z][A-Z0-9_]*)=(.*)$")


def check(words: Sequence[str], *, whole: bool = True) -> None:
    """ValueError for a command that does not exist. With `whole` false required arguments may be missing, as in text
    that only mentions a command or an option of it."""
    words = list(words)
    while words and (assigned := _ASSIGNMENT.match(words[0])):
        check_variable(assigned[1])
        words.pop(0)
    if not words:
        return
    program, arguments = words[0], words[1:]
    if program == "vsr1":
        parse(arguments) if whole else mention(arguments)
    elif program in _RULES:
        _RULES[program](arguments)
    elif program not in FOREIGN:
        raise ValueError(f"no rule for the program {program!r}; add one to {__name__}")


def parse(arguments: Sequence[str]) -> None:
    """Parse arguments of `vsr1` as the command line does, and run nothing. ValueError with click's message."""
    import click

    def descend(command: Any, name: str, words: list[str], parent: Any) -> None:
        with command.make_context(name, words, parent=parent) as context:
            rest = [*getattr(context, "_protected_args", []), *context.args]
            if isinstance(command, click.Group) and rest:
                found, sub, more = command.resolve_command(context, rest)
                descend(sub, found, more, context)

    try:
        descend(_root(), "vsr1", list(arguments), None)
    except click.exceptions.Exit:  # --help
        return
    except click.ClickException as error:
        raise ValueError(f"vsr1 {' '.join(arguments)}: {error.format_message()}") from error


def mention(arguments: Sequence[str]) -> None:
    """Commands and options that are named have to exist; what is left out, or stands for something, may be anything."""
    command, path = _root(), ["vsr1"]
    words = list(arguments)
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        name = words.pop(0)
        if name == "...":
            return
        if name not in command.commands:
            raise ValueError(f"{' '.join(path)} has no command {name!r}")
        command = command.commands[name]
        path.append(name)
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    known.add("--help")
    for word in words:
        option = word.split("=")[0]
        if option.startswith("-") and option not in known:
            raise ValueError(f"{' '.join(path)} has no option {option!r}")


@cache
def _root() -> Any:
    return typer.main.get_command(app)


def check_variable(name: str) -> None:
    """ValueError for a variable with this project's prefix that no code reads."""
    if name.startswith("VSR1_") and name not in variables():
        raise ValueError(f"nothing reads the variable {name}")


@cache
def variables() -> frozenset[str]:
    """The environment variables that the code names."""
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "pipelines").rglob("*.py"))
    return frozenset(name for text in sources for name in re.findall(r"VSR1_[A-Z_]+[A-Z]", text))


def _make(arguments: Sequence[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):(?!=)", makefile, re.MULTILINE))
    settable = set(re.findall(r"^([A-Z_]+) \?=", makefile, re.MULTILINE))
    for word in arguments:
        assigned = _ASSIGNMENT.match(word)
        if assigned and assigned[1] not in settable:
            raise ValueError(f"the Makefile has no variable {assigned[1]}")
        if not assigned and word not in targets:
            raise ValueError(f"the Makefile has no target {word!r}")


def _pip(arguments: Sequence[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    asked = {extra for word in arguments for group in re.findall(r"\[(.*?)\]", word) for extra in group.split(",")}
    if asked - set(extras):
        raise ValueError(f"pyproject.toml has no extra {sorted(asked - set(extras))[0]!r}")


def _python(arguments: Sequence[str]) -> None:
    module = arguments[arguments.index("-m") + 1] if "-m" in arguments else ""
    if module and importlib.util.find_spec(module) is None:
        raise ValueError(f"there is no module {module}")
    script = arguments[0] if arguments and arguments[0].endswith(".py") else ""
    if script and not (ROOT / script).is_file():
        raise ValueError(f"there is no script {script}")


def _pytest(arguments: Sequence[str]) -> None:
    for word in arguments:
        if "/" in word and not (ROOT / word.split("::")[0]).exists():
            raise ValueError(f"there is no test {word}")


def _export(arguments: Sequence[str]) -> None:
    for word in arguments:
        check_variable(word.split("=")[0])


_RULES = {
    "make": _make,
    "pip": _pip,
    "python": _python,
    "pytest": _pytest,
    "export": _export,
    "time": check,
}
