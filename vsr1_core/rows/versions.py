"""Versions: the canonical form of a value, its fingerprint, and the version of a row, which is computed from the
versions of everything that the row reads."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping
from json.encoder import c_make_encoder, encode_basestring  # type: ignore[attr-defined]
from json.encoder import encode_basestring_ascii as _quoted
from pathlib import Path
from typing import Any

from vsr1_core.rows.blocks import blocks

ADDED = {"added": True}
"""Metadata of a field that a recipe got after homes existed: while the field has its default, which keeps what was done
before it existed, no version depends on it. So a new setting leaves the rows of existing homes as they are."""


def canonical(value: Any) -> Any:
    """Convert `value` to JSON types, in one canonical form. Raises TypeError for a value that has no stable form."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        added = _added_defaults(type(value))
        fields = {name: getattr(value, name) for name in _field_names(type(value))}
        kept = {name: canonical(v) for name, v in fields.items() if name not in added or v != added[name]}
        return {"recipe": type(value).__name__, **kept}
    if isinstance(value, Mapping) and not isinstance(value, dict):  # a recipe without a fixed set of fields
        return {"recipe": type(value).__name__, **{str(k): canonical(v) for k, v in value.items()}}
    if isinstance(value, dict):
        return {str(k): canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(v) for v in value]
    raise TypeError(f"a {type(value).__name__} has no stable spelling, so it cannot be part of a recipe: {value!r}")


@functools.cache
def _field_names(kind: Any) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(kind))


@functools.cache
def _added_defaults(kind: Any) -> dict[str, Any]:
    return {f.name: f.default for f in dataclasses.fields(kind) if f.metadata.get("added")}


# Only values that JSON does not know go through `canonical`: a plan computes hundreds of thousands of fingerprints, and
# the encoder handles the rest faster. `JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))` spells
# the same; it makes an encoder for each value, which took two fifths of a fingerprint's 2.6 microseconds.
_encoded = c_make_encoder(None, canonical, encode_basestring, None, ":", ",", True, False, True)


def fingerprint(value: Any) -> str:
    """Hash `value` to 16 hex digits, which change if and only if `value` changes. Raises TypeError like `canonical`."""
    return hashlib.sha256("".join(_encoded(value, 0)).encode()).hexdigest()[:16]


def fingerprint_of_all(items: Iterable[Any]) -> str:
    """The `fingerprint` of the list of all items, few of which are in memory at a time."""
    digest, separator = hashlib.sha256(b"["), ""
    for some in blocks(items):
        digest.update((separator + "".join(_encoded(some, 0))[1:-1]).encode())
        separator = ","
    digest.update(b"]")
    return digest.hexdigest()[:16]


Inputs = Mapping[str, str]
"""Everything that one row reads: name of the input (an upstream asset, `recipe`, `stage`) -> its version."""


def row_version(inputs: Inputs) -> str:
    """The version of a row that reads `inputs`: 16 hex digits."""
    return fingerprint(dict(inputs))


def spelled(inputs: Inputs) -> str:
    """Serialise as `json.dumps(inputs, sort_keys=True)` would, in half of the time. This text is stored beside the
    row."""
    return "{" + ", ".join([begin + _quoted(inputs[name]) for name, begin in _begins(tuple(inputs))]) + "}"


@functools.cache
def _begins(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """(name, first part of its JSON entry) for each name, sorted by name. The result is cached because all rows of a
    stage have the same few names."""
    return [(name, f"{_quoted(name)}: ") for name in sorted(names)]


@functools.cache
def code_digest() -> str:
    """A digest of all Python files of this library. Two machines compare it before they share work."""
    root = Path(__file__).parents[1]
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    return fingerprint([[name, hashlib.sha256((root / name).read_bytes()).hexdigest()] for name in files])
