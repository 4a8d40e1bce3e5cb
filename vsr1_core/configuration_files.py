"""The configurations of a home: the built-in ones, and the user's own ones in `<home>/configurations/NAME.toml`.

A file names the configuration that it is based on and contains only the settings that differ:

    base = "tiny"

    [sft]
    steps = 500

The file is read each time that it is used, so that an edit takes effect at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsr1_core.configurations import CONFIGURATIONS
from vsr1_core.recipes import Configuration
from vsr1_core.rows.files import atomic_path, check_name
from vsr1_core.rows.places import Places
from vsr1_core.settings import Source, changed, nested, settings_of

BASE = "base"


@dataclass(frozen=True)
class ConfigurationFile:
    """The content of a file before its settings are checked. settings: nested, without the key `base`."""

    path: Path
    base: str
    settings: Mapping[str, Any]
    source: Source

    @property
    def name(self) -> str:
        return self.path.stem


def configuration_path(home: Path, name: str) -> Path:
    """The file of a user's configuration, whether it exists or not. Raises ValueError for a name that is unsafe as a
    file name."""
    return home / "configurations" / f"{check_name(name, 'configuration')}.toml"


def own_names(home: Path) -> list[str]:
    """The names of the user's configurations, including those that cannot be used."""
    return sorted(path.stem for path in (home / "configurations").glob("[!.]*.toml"))


def configuration_names(home: Path) -> list[str]:
    """The names of the built-in configurations, followed by the user's."""
    return [*CONFIGURATIONS, *(name for name in own_names(home) if name not in CONFIGURATIONS)]


def load_configuration(home: Path, name: str) -> Configuration:
    """Load a configuration together with everything that it is based on.

    Raises LookupError, which lists the names, when there is no such configuration, and ValueError, which gives the file
    and the line and says what is allowed, for a setting that cannot be used.
    """
    return _load(home, name, ())


def _load(home: Path, name: str, based_on_it: tuple[str, ...]) -> Configuration:
    if name in CONFIGURATIONS and name not in own_names(home):
        return CONFIGURATIONS[name]
    file = read_configuration_file(home, name)
    chain = (*based_on_it, name)
    if file.base in chain:
        circle = " -> ".join([*chain, file.base])
        raise file.source.error(
            (BASE,), f"leads back to itself: {circle}; base one of them on a built-in configuration"
        )
    try:
        base = _load(home, file.base, chain)
    except LookupError as error:
        raise file.source.error((BASE,), f"names no configuration: {error.args[0]}") from error
    config = dataclasses.replace(changed(base, file.settings, file.source), name=name)
    policy, embedder = (_placed(home, model) for model in (config.models.policy, config.models.embedder))
    return dataclasses.replace(config, models=dataclasses.replace(config.models, policy=policy, embedder=embedder))


def _placed(home: Path, model: str) -> str:
    """The folder of a model inside the home; else the name as it is written, such as an id on the hub."""
    placed = Places(home).placed(model)
    return placed if Path(placed).is_dir() else model


def _stored(home: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with models inside the home as they are kept."""
    models = dict(settings.get("models", {}))
    for key in ("policy", "embedder"):
        if key in models:
            models[key] = Places(home).stored(models[key])
    return {**settings, "models": models} if models else dict(settings)


def read_configuration_file(home: Path, name: str) -> ConfigurationFile:
    """Read a user's configuration file without checking its settings. Raises LookupError when there is no such file,
    and ValueError when it is not valid TOML or names no base."""
    if name not in own_names(home):
        raise LookupError(_no_configuration(home, name))
    path = configuration_path(home, name)
    if name in CONFIGURATIONS:
        raise ValueError(
            f"{path}: {name} is a built-in configuration and cannot be changed; give the file another name"
        )
    text = path.read_text(encoding="utf-8")
    try:
        settings = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    base = settings.pop(BASE, None)
    if not isinstance(base, str):
        raise ValueError(
            f'{path} names no base: begin it with base = "NAME", the configuration that it is based on, such as "tiny"'
        )
    return ConfigurationFile(path, base, settings, Source(str(path), lines_of(text)))


def _no_configuration(home: Path, name: str) -> str:
    names = configuration_names(home)
    near = difflib.get_close_matches(name, names, 1)
    meant = f"; did you mean {near[0]}? There are: " if near else "; there are: "
    return f"no configuration {name!r}{meant}{', '.join(names)}"


def write_configuration(home: Path, name: str, base: str, settings: Mapping[str, Any], command: str) -> Path:
    """Write a new configuration file after checking all its settings. settings: nested. command: the command that gave
    the settings, for error messages.

    Raises ValueError for a name that is taken, and for settings that cannot be used.
    """
    path = configuration_path(home, name)
    if name in CONFIGURATIONS:
        raise ValueError(f"{name} is a built-in configuration and cannot be changed; choose another name")
    if path.exists():
        raise ValueError(f"configuration {name} exists already: edit {path}, or choose another name")
    changed(load_configuration(home, base), settings, Source(command))
    with atomic_path(path) as temporary:
        temporary.write_text(toml_text(base, _stored(home, settings)), encoding="utf-8")
    return path


# ---- TOML --------------------------------------------------------------------------------------------------------


def lines_of(text: str) -> dict[tuple[str, ...], int]:
    """Map each key of a valid TOML text to its line number, for tables and for keys at the beginning of a line."""
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in _code_lines(text):
        if line.startswith("["):
            table = _keys_in(line) or table
            lines.setdefault(table, number)
        elif "=" in line and (keys := _keys_in(f"{line.partition('=')[0]} = 0")):
            lines.setdefault((*table, *keys), number)
    return lines


def _code_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, stripped line), without the lines inside multi-line texts."""
    quote = ""
    for number, line in enumerate(text.splitlines(), 1):
        if not quote:
            yield number, line.strip()
        for mark in ('"""', "'''"):
            if (not quote or quote == mark) and line.count(mark) % 2:
                quote = "" if quote else mark


def _keys_in(line: str) -> tuple[str, ...]:
    """The dotted key of a table header or of an assignment. It is empty for any other line, such as one inside a
    list."""
    keys: tuple[str, ...] = ()
    try:
        found: Any = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return ()
    while isinstance(found, dict) and found:
        (key, found), *_ = found.items()
        keys = (*keys, key)
    return keys


def toml_text(base: str, settings: Mapping[str, Any], remarks: Mapping[str, str] | None = None) -> str:
    """The text of a configuration file. settings: nested. remarks: dotted key -> comment after the value."""
    return "\n".join([f"{BASE} = {_toml(base)}", *_toml_lines(settings, (), remarks or {})]) + "\n"


def _toml_lines(settings: Mapping[str, Any], table: tuple[str, ...], remarks: Mapping[str, str]) -> Iterator[str]:
    for key, value in settings.items():
        if not isinstance(value, Mapping):
            remark = remarks.get(".".join([*table, key]), "")
            yield f"{key} = {_toml(value)}" + (f"  # {remark}" if remark else "")
    for key, value in settings.items():
        if isinstance(value, Mapping):
            inner = (*table, key)
            if any(not isinstance(v, Mapping) for v in value.values()):
                yield from ("", f"[{'.'.join(inner)}]")
            yield from _toml_lines(value, inner, remarks)


def _toml(value: Any) -> str:
    """Write one value as TOML. JSON writes texts and numbers the same way, except for one character (0x7F) that TOML
    escapes. Raises ValueError for a number that is not finite."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} cannot be a setting")
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def shown(home: Path, name: str) -> str:
    """The text of a configuration file with all settings of a configuration. Where the base has another value, a
    comment gives it."""
    config = load_configuration(home, name)
    if name in CONFIGURATIONS:
        return f"# {name} is a built-in configuration.\n{toml_text(name, nested(settings_of(config)))}"
    file = read_configuration_file(home, name)
    base = settings_of(load_configuration(home, file.base))
    ours = settings_of(config)
    remarks = {key: _remark(file.base, base.get(key)) for key, value in ours.items() if base.get(key) != value}
    heading = f"# {file.path}, with all settings that it takes from {file.base}."
    return f"{heading}\n{toml_text(file.base, nested(ours), remarks)}"


def _remark(base: str, value: Any) -> str:
    return f"not in {base}" if value is None else f"{_toml(value)} in {base}"
