"""Which values a field of a recipe may have, said in its type: `steps: Whole`, `index: Literal["flat", "hnsw"]`.

A type says what values are (`problem`, `described`); what has to fit together is said by the recipe's
`problems`. Values come from files and command lines, so every message says what is allowed.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, get_args, get_origin


class Limit(Protocol):
    """What narrows a type, inside `Annotated`."""

    def describe(self, kind: str) -> str:
        """`kind` (what the type alone allows) with the limit: `a number from 0 to 1`."""

    def allows(self, value: Any) -> bool: ...


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; without `low` itself where `is_above`."""

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
    """Numbers of which each is at least the one before, and the first at least `low`."""

    low: float = 1

    def describe(self, kind: str) -> str:
        return f"{kind}, the first at least {self.low:g} and none below the one before it"

    def allows(self, value: Any) -> bool:
        return list(value) == sorted(value) and value[0] >= self.low


@dataclass(frozen=True)
class Keys:
    """One or more keys of the table `attribute` of `module`, each once. The table is read when a value is checked: what
    it holds is made of recipes, so its module cannot be imported where recipes are."""

    module: str
    attribute: str

    def known(self) -> Collection[Any]:
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
    """Of a mapping: which keys it may have, and the type of the values. It is a group of settings, not one."""

    names: Keys
    hint: Any


@dataclass(frozen=True)
class NotEmpty:
    """At least one."""

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
    """What `hint` allows, in words."""
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
    """Whether values are texts, so that a command line needs no quotes around them."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return is_text(arguments[0])
    return hint is str or (origin is Literal and all(isinstance(value, str) for value in arguments))


def is_list(hint: Any) -> bool:
    return get_origin(get_args(hint)[0] if get_origin(hint) is Annotated else hint) is tuple


def checked(value: Any, hint: Any) -> Any:
    """`value`, as TOML or JSON gives it, as `hint` has it: a list becomes a tuple, and a whole number a float where one
    is wanted. ValueError says what is allowed."""
    try:
        return _converted(value, hint)
    except TypeError:
        raise ValueError(f"has to be {described(hint)}, not {value!r}") from None


def _converted(value: Any, hint: Any) -> Any:
    """TypeError for what `hint` does not allow."""
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
