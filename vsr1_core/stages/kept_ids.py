"""Lets a query without an id of its own keep its row when its text changes, as long as its video and span stay.

Such an id is a hash of video and text, so a corrected span stays the same row by itself. Where the text changed
instead, the row that is gone and the new one have the same video and span: the new one takes the old id.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl

from vsr1_core.datasets.corrections import Correction
from vsr1_core.datasets.verified import BadLine, Moment
from vsr1_core.rows.table import Table

_HASHED = re.compile(r"[0-9a-f]{12}(-\d+)?_fig")
"""What an id looks like that is made of video and text (`datasets.folder`)."""
Place = tuple[str, str, float]
"""Split, video and start of a moment; its end is compared apart, as it may have been cut to the video's."""


def has_hashed_ids(found: Iterable[str] | pl.Series) -> bool:
    """Whether a moment's id may be that of an earlier text, so that the committed rows have to be asked."""
    if isinstance(found, pl.Series):
        return bool(found.str.contains(f"^(?:{_HASHED.pattern})$").any())
    return any(_HASHED.fullmatch(row_id) for row_id in found)


def with_kept_ids(
    found: Mapping[str, Moment | BadLine], table: Table, corrections: Sequence[Correction] = ()
) -> dict[str, Moment | BadLine]:
    """Query id -> moment, as `found`, but for the ids of moments whose text changed since `table` was committed.

    corrections: of these moments. The row of a corrected query has the corrected span, and a rejected query has no row,
    so the span that was annotated is taken from what a correction found. A query that was corrected keeps its own id.
    """
    corrected = {one.query_id for one in corrections}
    new = {i for i, row in found.items() if isinstance(row, Moment) and _HASHED.fullmatch(i)} - corrected
    if not new or not (table.exists() or corrected):
        return dict(found)
    known = list(_of_rows(table)) if table.exists() else []
    gone = defaultdict[Place, list[_Held]](list)
    for held in (*known, *_of_corrections(corrections)):
        if held.query_id not in found and _HASHED.fullmatch(held.query_id):
            gone[held.place].append(held)
    renamed = dict(_renamed(found, new - {held.query_id for held in known}, gone)) if gone else {}
    return {renamed.get(i, i): replace(row, query_id=renamed[i]) if i in renamed else row for i, row in found.items()}


@dataclass(frozen=True)
class _Held:
    """Where a known query was annotated. is_cut: whether its end was cut to that of its video."""

    query_id: str
    place: Place
    end_s: float
    is_cut: bool = False

    def has_end_of(self, moment: Moment) -> bool:
        """Whether a moment has the same end; one that was cut to its video's end has any later one."""
        return moment.end_s == self.end_s or (self.is_cut and moment.end_s >= self.end_s)


def _of_rows(table: Table) -> Iterator[_Held]:
    columns = [table.key, "split", "video_id", "start_s", "end_s", "clamped"]
    for query_id, split, video_id, start_s, end_s, clamped in table.ok_rows(columns).iter_rows():
        yield _Held(query_id, (split, video_id, start_s), end_s, bool(clamped))


def _of_corrections(corrections: Iterable[Correction]) -> Iterator[_Held]:
    for one in corrections:
        if one.before is not None:
            said = one.before
            yield _Held(one.query_id, (said.split, said.video_id, said.start_s), said.end_s)


def _renamed(
    found: Mapping[str, Moment | BadLine], new: set[str], gone: Mapping[Place, Sequence[_Held]]
) -> Iterator[tuple[str, str]]:
    """(new id, the old id that it takes), in the order of `found`. Each old id is taken once."""
    taken = set[str]()
    for row_id, row in found.items():
        if row_id in new and isinstance(row, Moment):
            free = gone.get((row.split, row.video_id, row.start_s), ())
            old = next((held for held in free if held.query_id not in taken and held.has_end_of(row)), None)
            if old is not None:
                taken.add(old.query_id)
                yield row_id, old.query_id
