"""A mapping whose values are computed from those of another one each time that they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

Source = TypeVar("Source")
Value = TypeVar("Value")


class Computed(Mapping[str, Value], Generic[Source, Value]):
    """Key of `source` -> `function` of its value there. For values that are cheap to compute and take much memory when
    there are millions: a dict of four inputs takes 240 bytes."""

    def __init__(self, source: Mapping[str, Source], function: Callable[[Source], Value]) -> None:
        self._source, self._function = source, function

    def __getitem__(self, key: str) -> Value:
        return self._function(self._source[key])

    def __contains__(self, key: object) -> bool:
        return key in self._source

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)
