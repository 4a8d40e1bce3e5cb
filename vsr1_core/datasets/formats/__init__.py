"""The kinds of dataset. Each kind is one module here with a FORMAT, which is found automatically; to add a kind, add a
module.

A format says where annotations and videos are, and how a line becomes a moment. All other code uses `datasets.sources`.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

from vsr1_core.datasets.format import DatasetFormat


@functools.cache
def all_formats() -> dict[str, DatasetFormat]:
    """Map kind -> format, sorted by the names of the modules."""
    modules = [importlib.import_module(info.name) for info in pkgutil.iter_modules(__path__, f"{__name__}.")]
    formats: list[DatasetFormat] = [module.FORMAT for module in modules]
    return {found.kind: found for found in formats}


def get_format(kind: str) -> DatasetFormat:
    """The format of one kind of dataset. Raises ValueError, which lists the kinds, when the kind is unknown."""
    formats = all_formats()
    if kind not in formats:
        raise ValueError(f"dataset kind {kind!r} is not one of {', '.join(formats)}")
    return formats[kind]
