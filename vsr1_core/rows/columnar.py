"""Ids, and what is known of rows by their ids, in columns: an id takes 16 bytes or little more where a text takes 60,
and a value is made each time that it is asked for. So a plan of a million rows holds no objects for each of them."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import polars as pl

from vsr1_core.rows.blocks import IDS_AT_A_TIME

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vsr1_core.rows.packed import Packed

Source = TypeVar("Source")
Value = TypeVar("Value")

READ_AHEAD = 1024
"""So many rows are read together, twice as many each time, where they are asked for in the order of the columns. A
single row takes 12 us."""
KEPT_ROWS = 2 * IDS_AT_A_TIME
"""So many made values are kept at most."""


class Ids(Sequence[str]):
    """Ids in a column, to which others may be appended. It equals every sequence of the same ids."""

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self._whole = pl.Series(dtype=pl.String)
        self._new: list[str] = []
        if isinstance(ids, Ids | pl.Series):
            self._whole = ids.series if isinstance(ids, Ids) else ids
        else:
            for row_id in ids:
                self.append(row_id)

    @property
    def series(self) -> pl.Series:
        if self._new:
            self._whole, self._new = pl.concat([self._whole, _column(self._new)], rechunk=False), []
        return self._whole

    def append(self, row_id: str) -> None:
        self._new.append(row_id)
        if len(self._new) == IDS_AT_A_TIME:
            _ = self.series

    def __len__(self) -> int:
        return len(self._whole) + len(self._new)

    def __iter__(self) -> Iterator[str]:
        return texts(self.series)

    def __contains__(self, row_id: object) -> bool:
        return any(row_id == other for other in self)

    def __getitem__(self, index: Any) -> Any:
        found = self.series[index]
        return Ids(found) if isinstance(found, pl.Series) else found

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Ids({list(self)!r})"


def _column(ids: Iterable[str]) -> pl.Series:
    return pl.Series(list(ids), dtype=pl.String)


def texts(ids: pl.Series) -> Iterator[str]:
    """The texts of a column, some thousands of which are in memory at a time."""
    for begin in range(0, len(ids), IDS_AT_A_TIME):
        yield from ids.slice(begin, IDS_AT_A_TIME).to_list()


class ByIds(Mapping[str, Value], Generic[Value]):
    """A mapping from ids that has these in a column."""

    @property
    def ids(self) -> pl.Series:
        raise NotImplementedError

    def only(self, ids: Iterable[str]) -> Mapping[str, Value]:
        """What it has of these ids, in their order. Raises KeyError where it lacks one."""
        raise NotImplementedError

    def reader(self) -> Mapping[str, Value]:
        """The same for a second reader: each one reads ahead from where it is."""
        raise NotImplementedError

    def pairs(self) -> Iterator[tuple[str, Value]]:
        """The ids with their values, in order: `items` without a look-up of each."""
        raise NotImplementedError

    def items(self) -> ItemsView[str, Value]:
        return _Items(self)

    def values(self) -> ValuesView[Value]:
        return _Values(self)

    def __iter__(self) -> Iterator[str]:
        return texts(self.ids)

    def __len__(self) -> int:
        return len(self.ids)


class _Items(ItemsView[str, Value]):
    _mapping: ByIds[Value]

    def __iter__(self) -> Iterator[tuple[str, Value]]:
        return self._mapping.pairs()


class _Values(ValuesView[Value]):
    _mapping: ByIds[Value]

    def __iter__(self) -> Iterator[Value]:
        return (value for _, value in self._mapping.pairs())


class LazyRows(ByIds[Value]):
    """Id -> `make` of the values of its row of `columns`, the first of which has the ids, each once.

    The values that were made last are kept for all readers: a build reads a row to make it, and once more to say of
    what it was made. most_kept: so many of them; 0 for KEPT_ROWS.
    """

    def __init__(
        self,
        columns: pl.DataFrame | Packed,
        make: Callable[..., Value],
        made: dict[str, Value] | None = None,
        most_kept: int = 0,
    ) -> None:
        self._columns, self._make, self._most_kept = columns, make, most_kept or KEPT_ROWS
        self._made: dict[str, Value] = {} if made is None else made
        self._ahead: dict[str, tuple[Any, ...]] = {}
        self._next, self._number = 0, 1

    @property
    def ids(self) -> pl.Series:
        return self._columns.to_series(0)

    def pairs(self) -> Iterator[tuple[str, Value]]:
        return ((values[0], self._value(values)) for values in self._columns.iter_rows())

    def __getitem__(self, key: str) -> Value:
        if key in self._made:
            return self._made[key]
        values = self._ahead.get(key)
        return self._value(self._read(key) if values is None else values)

    def _value(self, values: tuple[Any, ...]) -> Value:
        made = self._make(*values)
        if len(self._made) >= self._most_kept:
            self._made.clear()
        self._made[values[0]] = made
        return made

    def __contains__(self, key: object) -> bool:
        return key in self._ahead or self._place(key) is not None

    def only(self, ids: Iterable[str]) -> LazyRows[Value]:
        wanted, own = Ids(ids).series, self.ids
        if wanted.equals(own):
            return self.reader()
        name = own.name
        places = (
            wanted.alias(name)
            .to_frame()
            .join(own.to_frame().with_row_index("_place"), on=name, how="left", maintain_order="left")
        )
        if places["_place"].null_count():
            raise KeyError(places.filter(pl.col("_place").is_null())[name][0])
        return LazyRows(self._columns[places["_place"]], self._make, self._made, self._most_kept)

    def reader(self) -> LazyRows[Value]:
        found = LazyRows(self._columns, self._make, self._made, self._most_kept)
        if "_index" in self.__dict__:
            found.__dict__["_index"] = self._index
        return found

    def _read(self, key: str) -> tuple[Any, ...]:
        """The values of a row, which are read with those behind it if rows are asked for in their order."""
        place = self._place(key)
        if place is None:
            raise KeyError(key)
        self._number = min(2 * self._number, READ_AHEAD) if 0 <= place - self._next < READ_AHEAD else 1
        self._next = place + self._number
        if self._number == 1:
            return self._columns.row(place)
        self._ahead = {values[0]: values for values in self._columns.slice(place, self._number).iter_rows()}
        return self._ahead[key]

    @cached_property
    def _index(self) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """The hashes of all ids in their order, and the place of each: 12 bytes for an id."""
        import numpy as np  # a command that reads few rows starts without it

        hashes = np.fromiter(map(hash, texts(self.ids)), dtype=np.int64, count=len(self.ids))
        places = hashes.argsort().astype(np.uint32)
        return hashes[places], places

    def _place(self, key: object) -> int | None:
        ids = self.ids
        for likely in (self._next, 0):  # most are asked for in order, which needs no index
            if likely < len(ids) and ids[likely] == key:
                return likely
        hashes, places = self._index
        wanted = hash(key)
        for found in range(int(hashes.searchsorted(wanted)), len(ids)):
            if hashes[found] != wanted:
                return None
            if ids[place := int(places[found])] == key:
                return place
        return None


class Computed(ByIds[Value], Generic[Source, Value]):
    """Key of `source` -> `function` of its value there."""

    def __init__(self, source: Mapping[str, Source], function: Callable[[Source], Value]) -> None:
        self._source, self._function = source, function

    @property
    def ids(self) -> pl.Series:
        return ids_of(self._source)

    def only(self, ids: Iterable[str]) -> Computed[Source, Value]:
        return Computed(only(self._source, ids), self._function)

    def reader(self) -> Computed[Source, Value]:
        return Computed(reader(self._source), self._function)

    def pairs(self) -> Iterator[tuple[str, Value]]:
        return ((row_id, self._function(value)) for row_id, value in self._source.items())

    def __getitem__(self, key: str) -> Value:
        return self._function(self._source[key])

    def __contains__(self, key: object) -> bool:
        return key in self._source

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)


def ids_of(rows: Mapping[str, Any]) -> pl.Series:
    """The ids of a mapping, in its order."""
    return rows.ids if isinstance(rows, ByIds) else _column(rows)


def only(rows: Mapping[str, Value], ids: Iterable[str]) -> Mapping[str, Value]:
    """The rows with these ids, in their order, for a reader of their own. Raises KeyError where one is missing."""
    return rows.only(ids) if isinstance(rows, ByIds) else {row_id: rows[row_id] for row_id in ids}


def reader(rows: Mapping[str, Value]) -> Mapping[str, Value]:
    """The rows for a second reader (`ByIds.reader`)."""
    return rows.reader() if isinstance(rows, ByIds) else rows


class Grouped(Mapping[str, Value], Generic[Value]):
    """Id -> value, where few values are those of many ids. To find one id takes a look at all of them."""

    def __init__(self, pairs: Iterable[tuple[Value, Iterable[str]]] = ()) -> None:
        self._groups: dict[Value, Ids] = {}
        for value, ids in pairs:
            if found := Ids(ids):
                self._groups[value] = Ids(itertools.chain(self._groups.get(value, ()), found))

    def add(self, row_id: str, value: Value) -> None:
        if (ids := self._groups.get(value)) is None:
            ids = self._groups[value] = Ids()
        ids.append(row_id)

    def groups(self) -> Iterator[tuple[Value, Ids]]:
        """Each value with its ids, in the order in which they came."""
        return iter(self._groups.items())

    def __getitem__(self, key: str) -> Value:
        for value, ids in self._groups.items():
            if key in ids:
                return value
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return itertools.chain.from_iterable(self._groups.values())

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def items(self) -> ItemsView[str, Value]:
        return {row_id: value for value, ids in self._groups.items() for row_id in ids}.items()


class Remaining:
    """Those of many ids that were not taken yet."""

    def __init__(self, ids: Iterable[str] | Mapping[str, Any]) -> None:
        self._ids = ids_of(ids) if isinstance(ids, Mapping) else Ids(ids).series
        places = self._ids.alias("id").to_frame().with_row_index("place").select("id", "place")
        self._place_of = LazyRows(places, lambda _, place: int(place))
        self._is_left = bytearray(b"\1") * len(self._ids)
        self._number = len(self._ids)

    def take(self, row_id: str) -> bool:
        """Take an id. False where it is not left."""
        place = self._place_of.get(row_id)
        if place is None or not self._is_left[place]:
            return False
        self._is_left[place] = 0
        self._number -= 1
        return True

    def __len__(self) -> int:
        return self._number

    def ids(self) -> Ids:
        """The ids that are left, in their order."""
        return Ids(self._ids.filter(pl.Series(list(self._is_left), dtype=pl.UInt8) == 1))
