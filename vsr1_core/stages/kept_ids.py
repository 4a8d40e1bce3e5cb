"""Lets a query without an id of its own keep its row when its text changes, as long as its video and span stay.

Such an id is a hash of video and text, so a corrected span stays the same row by itself. Where the text changed
instead, the row that is gone and the new one have the same video and span: the new one takes the old id.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace

from vsr1_core.datasets.verified import BadLine, Moment
from vsr1_core.rows.table import Table

_HASHED = re.compile(r"[0-9a-f]{12}(-\d+)?_fig")
"""What an id looks like that is made of video and text (`datasets.folder`)."""
Place = tuple[str, str, float]
"""Split, video and start of a moment; its end is compared apart, as it may have been cut to the video's."""


def with_kept_ids(found: Mapping[str, Moment | BadLine], table: Table) -> dict[str, Moment | BadLine]:
    """Query id -> moment, as `found`, but for the ids of moments whose text changed since `table` was committed."""
    new = {row_id for row_id, row in found.items() if isinstance(row, Moment) and _HASHED.fullmatch(row_id)}
    if not new or not table.exists():
        return dict(found)
    columns = [table.key, "split", "video_id", "start_s", "end_s", "clamped"]
    known = {row[table.key]: row for row in table.ok_rows(columns).to_dicts()}
    gone = defaultdict[Place, list[str]](list)
    for row_id, row in known.items():
        if row_id not in found and _HASHED.fullmatch(row_id):
            gone[row["split"], row["video_id"], row["start_s"]].append(row_id)
    renamed = dict(_renamed(found, new - known.keys(), gone, known)) if gone else {}
    return {renamed.get(i, i): _as(row, renamed[i]) if i in renamed else row for i, row in found.items()}


def _renamed(
    found: Mapping[str, Moment | BadLine],
    new: set[str],
    gone: Mapping[Place, list[str]],
    known: Mapping[str, Mapping[str, object]],
) -> Iterator[tuple[str, str]]:
    """(new id, the old id that it takes), in the order of `found`. Each old id is taken once."""
    for row_id, row in found.items():
        if row_id in new and isinstance(row, Moment):
            free = gone.get((row.split, row.video_id, row.start_s), [])
            old = next((i for i in free if _has_end(row, known[i])), None)
            if old is not None:
                free.remove(old)
                yield row_id, old


def _has_end(moment: Moment, row: Mapping[str, object]) -> bool:
    """Whether a committed moment has the same end; one that was cut to its video's end has any later one."""
    end_s = row["end_s"]
    assert isinstance(end_s, float)
    return moment.end_s == end_s or (bool(row["clamped"]) and moment.end_s >= end_s)


def _as(row: Moment | BadLine, query_id: str) -> Moment | BadLine:
    return replace(row, query_id=query_id)
