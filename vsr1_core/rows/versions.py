"""What a version is: one stable spelling of a value, its fingerprint, and the version of a row, which follows from what
the row reads."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from json.encoder import encode_basestring_ascii as _quoted
from pathlib import Path
from typing import Any


def canonical(value: Any) -> Any:
    """`value` as JSON types with one spelling each. Raises TypeError for what has no stable spelling."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {name: canonical(getattr(value, name)) for name in _field_names(type(value))}
        return {"recipe": type(value).__name__, **fields}
    if isinstance(value, Mapping) and not isinstance(value, dict):  # a recipe whose fields are open
        return {"recipe": type(value).__name__, **{str(k): canonical(v) for k, v in value.items()}}
    if isinstance(value, dict):
        return {str(k): canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(v) for v in value]
    raise TypeError(f"a {type(value).__name__} has no stable spelling, so it cannot be part of a recipe: {value!r}")


@functools.cache
def _field_names(kind: Any) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(kind))


# What JSON does not know is spelled by `canonical`; the rest is left to the encoder, as a plan takes tens of thousands.
_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=canonical)


def fingerprint(value: Any) -> str:
    """16 hex digits that change when, and only when, `value` does. Raises TypeError like `canonical`."""
    return hashlib.sha256(_ENCODER.encode(value).encode()).hexdigest()[:16]


Inputs = Mapping[str, str]
"""What one row reads: name of the input (an upstream asset, `recipe`, `stage`) -> its version."""


def row_version(inputs: Inputs) -> str:
    return fingerprint(dict(inputs))


def spelled(inputs: Inputs) -> str:
    """As they are kept beside the row: what `json.dumps` with sorted keys gives, in half of the time."""
    return "{" + ", ".join([begin + _quoted(inputs[name]) for name, begin in _begins(tuple(inputs))]) + "}"


@functools.cache
def _begins(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Each name, and how its entry begins; sorted. A stage's rows have the same few names."""
    return [(name, f"{_quoted(name)}: ") for name in sorted(names)]


@functools.cache
def code_digest() -> str:
    """Changes with any Python file of this library: what two machines compare before they share work."""
    root = Path(__file__).parents[1]
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    return fingerprint([[name, hashlib.sha256((root / name).read_bytes()).hexdigest()] for name in files])
