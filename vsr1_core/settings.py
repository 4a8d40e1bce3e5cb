"""The settings of a configuration by their dotted keys: reading, comparing, and changing them after a check. The key
`sft.steps` is the field `steps` of the recipe `sft`. `configuration_files` reads and writes the files.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args, get_type_hints

from vsr1_core.limits import Each, checked, is_list, is_text
from vsr1_core.recipes import Configuration

Recipe = TypeVar("Recipe")
Path = tuple[str, ...]
KIND = "kind"
"""The field that tells which subclass of a recipe is meant."""


@dataclass(frozen=True)
class Source:
    """Where settings were written, for error messages. name: a file or a command. lines: key -> line number, for
    files."""

    name: str
    lines: Mapping[Path, int] = field(default_factory=dict)

    def error(self, path: Path, problem: str) -> ValueError:
        """Make a ValueError that names the place, the dotted key and the problem. A key inside the value of another key
        has no line of its own, so the line of the outer key is used."""
        line = next((self.lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.lines), None)
        place = self.name if line is None else f"{self.name}, line {line}"
        return ValueError(f"{place}: {'.'.join(path)} {problem}")


def fields_of(kind: Any) -> dict[str, Any]:
    """Map each field of a recipe class to its type with the limits. The name of a configuration is left out, because it
    is not a setting."""
    hints = _hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    return {name: hints[name] for name in names if not (kind is Configuration and name == "name")}


@functools.cache
def _hints(kind: Any) -> Mapping[str, Any]:
    """Field -> type. Evaluating those of all recipes was an eighth of the build of a small corpus."""
    return get_type_hints(kind, include_extras=True)


def settings_of(recipe: Any, prefix: Path = ()) -> dict[str, Any]:
    """Map the dotted key of every field to its value, in the order of the recipes."""
    found: dict[str, Any] = {}
    members = recipe if isinstance(recipe, Mapping) else {n: getattr(recipe, n) for n in fields_of(type(recipe))}
    for name, value in members.items():
        path = (*prefix, name)
        found |= settings_of(value, path) if is_group(value) else {".".join(path): value}
    return found


def is_group(value: Any) -> bool:
    """Whether a value of a recipe has settings of its own, as another recipe or the mapping of the reward weights."""
    return dataclasses.is_dataclass(value) or isinstance(value, Mapping)


def differences(a: Configuration, b: Configuration) -> dict[str, tuple[Any, Any]]:
    """Map dotted key -> (value in `a`, value in `b`) for all values that differ. None stands for a key that is
    missing."""
    ours, theirs = settings_of(a), settings_of(b)
    keys = [*ours, *(key for key in theirs if key not in ours)]
    return {key: (ours.get(key), theirs.get(key)) for key in keys if ours.get(key) != theirs.get(key)}


def changed(recipe: Recipe, settings: Mapping[str, Any], source: Source, path: Path = ()) -> Recipe:
    """Return `recipe` with the values of the nested `settings`. Raises ValueError, which says where and why, when a
    setting cannot be used. `path` is the key of the recipe itself."""
    start = _as_kind(recipe, settings.get(KIND), source, (*path, KIND))
    hints, values = fields_of(type(start)), dict[str, Any]()
    for name, value in settings.items():
        at = (*path, name)
        if name not in hints:
            raise source.error(at, _unknown(at, hints))
        old = getattr(start, name)
        if not is_group(old):
            values[name] = _checked(value, hints[name], source, at)
        elif not isinstance(value, Mapping):
            raise source.error(at, f"is a group of settings, not a single one: {', '.join(nested(settings_of(old)))}")
        elif isinstance(old, Mapping):
            values[name] = _changed_mapping(old, value, get_args(hints[name])[1], source, at)
        else:
            values[name] = changed(old, value, source, at)
    try:
        made: Any = dataclasses.replace(start, **values)  # type: ignore[type-var]
    except ValueError as error:
        raise source.error((*path, *list(settings)[:1]), f"cannot be used: {error}") from error
    for key, problem in made.problems() if hasattr(made, "problems") else ():
        raise source.error((*path, *key.split(".")), problem)
    return made


def _changed_mapping(old: Any, settings: Mapping[str, Any], each: Each, source: Source, path: Path) -> Any:
    """Make a new mapping from `old` and the checked `settings`; its class takes keyword arguments."""
    for name in settings:
        if name not in each.names.known():
            raise source.error((*path, name), _unknown((*path, name), each.names.known()))
    return type(old)(**{**old, **{n: _checked(v, each.hint, source, (*path, n)) for n, v in settings.items()}})


def _checked(value: Any, hint: Any, source: Source, path: Path) -> Any:
    try:
        return checked(value, hint)
    except ValueError as error:
        raise source.error(path, str(error)) from None


def _as_kind(recipe: Recipe, kind: Any, source: Source, path: Path) -> Recipe:
    """Return a recipe of the class that `kind` names, with the values of all fields that it shares with `recipe`."""
    family: Any = [c for c in type(recipe).__mro__ if dataclasses.is_dataclass(c)][-1]
    if kind is None or not family.__subclasses__():
        return recipe
    classes = {str(c.__dataclass_fields__[KIND].default): c for c in (family, *family.__subclasses__())}
    if kind not in classes:
        raise source.error(path, f"has to be one of {', '.join(classes)}, not {kind!r}")
    if type(recipe) is classes[kind]:
        return recipe
    shared = {n: getattr(recipe, n) for n in fields_of(classes[kind]) if hasattr(recipe, n) and n != KIND}
    made: Recipe = classes[kind](**shared)
    return made


def _unknown(path: Path, names: Collection[str]) -> str:
    """Say that a key is no setting, which key is probably meant, and which keys there are."""
    if path == ("name",):
        return "is no setting: the name of a configuration is the name of its file"
    elsewhere = [key for key in _all_keys() if key.rpartition(".")[2] == path[-1]]
    near = difflib.get_close_matches(path[-1], names, 1)
    meant = [".".join([*path[:-1], name]) for name in near] or elsewhere
    hint = f"; did you mean {' or '.join(meant)}?" if meant else "."
    of = f"of {'.'.join(path[:-1])} " if path[:-1] else ""
    return f"is no setting{hint} The settings {of}are: {', '.join(names)}"


@functools.cache
def _all_keys() -> tuple[str, ...]:
    return tuple(settings_of(Configuration("")))


def parsed(assignments: Iterable[str], config: Any) -> dict[str, Any]:
    """Convert assignments such as `sft.steps=500` to nested settings. Raises ValueError for a text that is not an
    assignment, and for a setting inside one that an earlier assignment has set as a whole."""
    found: dict[str, Any] = {}
    for assignment in assignments:
        key, sign, text = assignment.partition("=")
        path = tuple(key.strip().split("."))
        if not sign or not all(path):
            raise ValueError(f"--set {assignment} is no assignment: write KEY=VALUE, such as --set sft.steps=500")
        group = found
        for part in path[:-1]:
            group = group.setdefault(part, {})
            if not isinstance(group, dict):
                raise ValueError(f"--set {assignment}: an earlier --set has already given {part} a single value")
        group[path[-1]] = _value(text.strip(), _hint(config, path))
    return found


def _hint(recipe: Any, path: Path) -> Any:
    """The type of a setting. None for a key that the recipe lacks, which is checked when the settings are applied."""
    hint = fields_of(type(recipe)).get(path[0]) if dataclasses.is_dataclass(recipe) else None
    return hint if len(path) == 1 else _hint(getattr(recipe, path[0], None), path[1:])


def _value(text: str, hint: Any) -> Any:
    """Parse one value as TOML does, except that texts need no quotes and lists of texts need no brackets."""
    if is_list(hint) and not text.startswith("["):
        return [_value(part.strip(), None) for part in text.split(",") if part.strip()]
    is_plain = hint is not None and is_text(hint) and not text.startswith(('"', "'"))
    try:
        return text if is_plain else tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Convert dotted keys to nested tables: `{"sft.steps": 5}` becomes `{"sft": {"steps": 5}}`."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        *groups, name = key.split(".")
        functools.reduce(_group, groups, found)[name] = value
    return found


def _group(table: dict[str, Any], name: str) -> dict[str, Any]:
    inner: dict[str, Any] = table.setdefault(name, {})
    return inner
