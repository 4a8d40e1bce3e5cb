"""Which values a field of a recipe may have, expressed by its type: `steps: Whole`, `index: Literal["flat", "hnsw"]`.

`checked` checks one value against its type, and `described` says in words what a type allows. Requirements that involve
several fields are checked by a recipe's own `problems` method. Values come from files and command lines, so every
message says what is allowed.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, get_args, get_origin


class Limit(Protocol):
    """A limit that narrows a type; it stands inside `Annotated`."""

    def describe(self, kind: str) -> str:
        """Add the limit to `kind`, which says what the type alone allows: `a number` becomes `a number from 0 to 1`."""

    def allows(self, value: Any) -> bool:
        """Whether `value`, which has the right type already, is within the limit."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; with `is_above`, `low` itself is excluded."""

    low: float = -math.inf
    high: float = math.inf
    is_above: bool = False

    def describe(self, kind: str) -> str:
        if self.high < math.inf:
            return f"{kind} from {self.low:g} to {self.high:g}"
        return f"{kind} above {self.low:g}" if self.is_above else f"{kind} of at least {self.low:g}"

    def allows(self, value: Any) -> bool:
        return bool((self.low < value if self.is_above else self.low <= value) and value <= self.high)


@dataclass(frozen=True)
class Ascending:
    """A list of numbers in which the first is at least `low` and no number is smaller than the one before it."""

    low: float = 1

    def describe(self, kind: str) -> str:
        return f"{kind}, the first at least {self.low:g} and none below the one before it"

    def allows(self, value: Any) -> bool:
        return list(value) == sorted(value) and value[0] >= self.low


@dataclass(frozen=True)
class Keys:
    """One or more keys of the mapping `attribute` of `module`, none of them twice. The mapping is read only when a
    value is checked, because its module imports the recipes and so cannot be imported by them."""

    module: str
    attribute: str

    def known(self) -> Collection[Any]:
        """All keys that are allowed."""
        found: Collection[Any] = getattr(importlib.import_module(self.module), self.attribute)
        return found

    def describe(self, kind: str) -> str:
        once = " (at least one, none twice)" if kind.startswith("a list") else ""
        return f"{kind}{once} out of: {', '.join(map(str, self.known()))}"

    def allows(self, value: Any) -> bool:
        values = value if isinstance(value, tuple) else (value,)
        return bool(values) and len(set(values)) == len(values) and set(values) <= set(self.known())


@dataclass(frozen=True)
class Each:
    """Marks a mapping: `names` are the keys that it may have, and `hint` is the type of its values. Such a field is a
    group of settings and not a single one."""

    names: Keys
    hint: Any


@dataclass(frozen=True)
class NotEmpty:
    """A list with at least one entry."""

    def describe(self, kind: str) -> str:
        return f"{kind}, at least one"

    def allows(self, value: Any) -> bool:
        return len(value) > 0


Whole = Annotated[int, Range(0)]
Count = Annotated[int, Range(1)]
Share = Annotated[float, Range(0, 1)]
Weight = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, is_above=True)]

_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def described(hint: Any) -> str:
    """Say in words what the type `hint` allows, such as `a whole number of at least 1`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        text = described(arguments[0])
        for limit in arguments[1:]:
            text = limit.describe(text)
        return text
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        number = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        return f"a list of {number}{_KINDS[arguments[0]].removeprefix('a ')}s"
    return _KINDS[hint]


def is_text(hint: Any) -> bool:
    """Whether the values of type `hint` are texts, so that they need no quotes on a command line."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return is_text(arguments[0])
    return hint is str or (origin is Literal and all(isinstance(value, str) for value in arguments))


def is_list(hint: Any) -> bool:
    """Whether the values of type `hint` are lists."""
    return get_origin(get_args(hint)[0] if get_origin(hint) is Annotated else hint) is tuple


def checked(value: Any, hint: Any) -> Any:
    """Convert `value`, as read from TOML or JSON, to the type `hint`: a list becomes a tuple, and a whole number
    becomes a float if `hint` asks for one. Raises ValueError, which says what is allowed, for any other value."""
    try:
        return _converted(value, hint)
    except TypeError:
        raise ValueError(f"has to be {described(hint)}, not {value!r}") from None


def _converted(value: Any, hint: Any) -> Any:
    """Like `checked`, but raises TypeError for a value that `hint` does not allow."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        value = _converted(value, arguments[0])
        return _only(value, all(limit.allows(value) for limit in arguments[1:]))
    if origin is Literal:
        return _only(value, any(type(value) is type(choice) and value == choice for choice in arguments))
    if origin is tuple:
        return _tuple(_only(value, isinstance(value, list | tuple)), arguments)
    if hint is float and type(value) is int:
        return float(value)
    return _only(value, type(value) is hint and (hint is not float or math.isfinite(value)))


def _only(value: Any, is_allowed: bool) -> Any:
    if not is_allowed:
        raise TypeError(value)
    return value


def _tuple(values: Sequence[Any], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    kinds = [arguments[0]] * len(values) if arguments[-1] is Ellipsis else list(arguments)
    _only(values, len(kinds) == len(values))
    return tuple(_converted(value, kind) for value, kind in zip(values, kinds, strict=True))
