"""Correct the annotations of a dataset: check what a person asks for, append it, list it, undo it, export the result.

`datasets.corrections` says what a correction is. Nothing is built here; the next build makes the rows that follow.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from vsr1_core.datasets import sources
from vsr1_core.datasets.corrections import (
    Action,
    Annotated,
    Corrected,
    Correction,
    Judged,
    appending,
    corrected,
    corrections_path,
)
from vsr1_core.datasets.verified import Moment, fig_fields, split_of, whole_text
from vsr1_core.rows.files import write_jsonl
from vsr1_core.stages.base import View
from vsr1_core.stages.corrections import annotated_moments, corrected_moments

MAX_WHO, MAX_QUERY = 100, 2000
"""Most characters of a person's name, and of a query."""


class Conflict(ValueError):
    """What was to be corrected is not what the person saw any more."""


@dataclass(frozen=True)
class WantedCorrection:
    """What a person asks for.

    query_id: the query to change or to reject; empty for a new one. before: what the person saw, where that is to be
    checked. changes: fields of `Annotated` -> new values; all but `split` are needed for a new query.
    """

    action: Action
    query_id: str = ""
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    before: Annotated | None = None
    who: str = ""


def correct(view: View, wanted: WantedCorrection) -> Correction:
    """Check a correction and append it to the file.

    Raises:
        LookupError: The dataset has no such query or video.
        ValueError: A value cannot be used, or nothing would change.
        Conflict: The query is not what the person saw any more.
    """
    who = _name_of(wanted.who)
    published = annotated_moments(view)
    with appending(_path(view)) as listed:
        now = corrected(published, listed)
        if wanted.action == "add":
            query_id = f"own-{secrets.token_hex(4)}_fig"
            after = _after(view, None, wanted.changes)
            made = Correction.made(who, "add", query_id, after=after)
        else:
            made = _of_query(view, now, wanted, who)
        listed.append(made)
    return made


def _of_query(view: View, now: Corrected, wanted: WantedCorrection, who: str) -> Correction:
    before = Annotated.of(now.moments.get(wanted.query_id))
    if before is None:
        raise LookupError(f"dataset {view.entry.name!r} has no usable query {wanted.query_id!r}")
    if wanted.before is not None and wanted.before != before:
        raise Conflict(f"the query {wanted.query_id!r} was changed meanwhile: load it again, and correct it anew")
    if wanted.action == "reject":
        return Correction.made(who, "reject", wanted.query_id, before=before)
    after = _after(view, before, wanted.changes)
    if after == before:
        raise ValueError("nothing would change: the annotation says the same")
    return Correction.made(who, "change", wanted.query_id, before=before, after=after)


def _after(view: View, before: Annotated | None, changes: Mapping[str, Any]) -> Annotated:
    """The corrected fields. ValueError: one of them cannot be used. LookupError: there is no such video."""
    old: dict[str, Any] = dataclasses.asdict(before) if before is not None else {"split": "test"}
    values = {**old, **{name: value for name, value in changes.items() if value is not None}}
    missing = [field.name for field in dataclasses.fields(Annotated) if field.name not in values]
    if missing:
        raise ValueError(f"a new query needs {', '.join(missing)}")
    query, split = whole_text(str(values["query"]), "query"), split_of(str(values["split"]))
    if not query or len(query) > MAX_QUERY:
        raise ValueError(f"the query must have 1 to {MAX_QUERY:,} characters, got {len(query):,}")
    start_s, end_s = float(values["start_s"]), float(values["end_s"])
    if not 0 <= start_s < end_s < float("inf"):
        raise ValueError(f"the span [{start_s:g}, {end_s:g}] s is negative, reversed or empty")
    length_s = _length(view, str(values["video_id"]), split)
    moment = Moment("", split, query, query, str(values["video_id"]), start_s, end_s, None, clamped=False)
    made = Annotated.of(moment.within(length_s))
    assert made is not None
    return made


def _length(view: View, video_id: str, split: str) -> float | None:
    """Seconds of a video of the split, if they are known. LookupError: the split has no such video."""
    rows = view.table("videos").rows(["video_id", "splits", "duration_s"]).filter(pl.col("video_id") == video_id)
    splits = rows["splits"].to_list()[0] if rows.height else None
    if splits is None or split not in splits:
        there = f"; it is in: {', '.join(splits)}" if splits else ""
        raise LookupError(f"the split {split!r} of dataset {view.entry.name!r} has no video {video_id!r}{there}")
    return rows["duration_s"][0]  # type: ignore[no-any-return]


def undo(view: View, correction_id: str, who: str = "") -> Correction:
    """Append that a correction no longer holds.

    Raises:
        LookupError: There is no such correction.
        ValueError: It is undone already, or a later one of the same query has to be undone first.
    """
    published = annotated_moments(view)
    with appending(_path(view)) as listed:
        judged = corrected(published, listed).judged
        found = next((one for one in judged if one.correction.correction_id == correction_id), None)
        if found is None:
            raise LookupError(f"dataset {view.entry.name!r} has no correction {correction_id!r}")
        if found.state == "undone":
            raise ValueError(f"the correction {correction_id} is undone already")
        query_id = found.correction.query_id
        later = [one for one in _after_it(judged, found) if one.state == "applied"]
        if later and found.state == "applied":
            last = later[-1].correction.correction_id
            raise ValueError(f"{query_id} was corrected again since; undo the later correction first: {last}")
        made = Correction.made(_name_of(who), "undo", query_id, undoes=correction_id)
        listed.append(made)
    return made


def _after_it(judged: list[Judged], one: Judged) -> list[Judged]:
    later = judged[judged.index(one) + 1 :]
    return [other for other in later if other.correction.query_id == one.correction.query_id]


def listed_corrections(view: View, query_id: str = "") -> list[Judged]:
    """Every correction and what became of it, newest first; those of one query where it is named."""
    judged = corrected_moments(view).judged
    return [one for one in reversed(judged) if query_id in ("", one.correction.query_id)]


def _path(view: View) -> Path:
    if view.home is None:
        raise ValueError("corrections are kept in a home; these tables have none")
    return corrections_path(view.home, view.entry.corpus)


def _name_of(who: str) -> str:
    name = whole_text(who, "who")
    if len(name) > MAX_WHO:
        raise ValueError(f"a name may have {MAX_WHO} characters")
    return name or "somebody"


@dataclass(frozen=True)
class Exported:
    """What `export_fig` wrote. left_out: sentences about what the file does not have."""

    num_queries: int
    left_out: list[str]


def export_fig(view: View, target: Path) -> Exported:
    """Write one file in the FIG schema with all corrections applied, in which each row says its split.

    Raises:
        FileExistsError: `target` exists.
        ValueError: Its name does not end in .jsonl.
    """
    if target.suffix != ".jsonl":
        raise ValueError(f"{target} must end in .jsonl: it is written in the FIG schema")
    if target.exists():
        raise FileExistsError(f"{target} exists already; give another name")
    found = corrected_moments(view)
    usable = {query_id: moment for query_id, moment in found.moments.items() if isinstance(moment, Moment)}
    write_jsonl(target, ({**fig_fields(vars(moment)), "split": moment.split} for moment in usable.values()))
    return Exported(len(usable), list(_left_out(view, found, usable)))


def _left_out(view: View, found: Corrected, usable: Mapping[str, Moment]) -> Iterable[str]:
    if bad := len(found.moments) - len(usable):
        yield f"{bad:,} lines that are not valid moments"
    if conflicts := sum(one.state == "conflict" for one in found.judged):
        yield f"{conflicts:,} corrections that are not applied; see: vsr1 corrections list --dataset {view.entry.name}"
    named = {moment.video_id for moment in usable.values()}
    alone = sorted({v for v in sources.corpus_splits(view.entry, view.config) if v not in named})
    if alone and not sources.unannotated_splits(view.entry):
        yield f"{len(alone):,} videos that no query names any more, e.g. {alone[0]}"
