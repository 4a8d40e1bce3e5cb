"""Absence is not deletion: a build stops before it drops the rows of many files that are gone at once.

A folder that is not mounted looks like an empty one, and a truncated annotation file like one from which rows were
removed. `Stage.build` asks here before it makes or drops any row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import polars as pl

from vsr1_core.datasets import sources
from vsr1_core.rows.increments import Plan
from vsr1_core.stages.base import Row, Stage, View
from vsr1_core.stages.execution import Execution

FEW_ROWS = 10
"""Fewer rows than this that are gone are no reason to stop, whatever their share: people remove 1 of 5 videos."""
MAX_NAMED = 3


class RemovalsRefused(ValueError):
    """More rows are gone at once than the run lets a build drop."""


class FromDisk(Stage):
    """A stage whose rows stand for what is on disk. Rows that are gone by mistake would be dropped from all tables.

    thing: what one row stands for, in the plural. fewest: number of gone rows from which on their share counts.
    all_count: whether it also counts that all known rows are gone, however few they are.
    """

    thing: str = "rows"
    fewest: int = FEW_ROWS
    all_count: bool = False

    def check_plan(self, view: View, rows: Mapping[str, Row], plan: Plan, run: Execution) -> None:
        """Raise RemovalsRefused where more than `run.max_removed` of the known rows are gone."""
        if run.max_removed is None or sources.made_videos(view.entry, view.config) is not None:
            return
        gone, num_known = self.gone(view, rows, plan), view.table(self.name).ok_rows([self.key]).height
        too_many = len(gone) >= self.fewest and len(gone) > run.max_removed * num_known
        if too_many or (self.all_count and gone and len(gone) >= num_known):
            raise RemovalsRefused(self._refusal(view, gone, num_known))

    def gone(self, view: View, rows: Mapping[str, Row], plan: Plan) -> Sequence[str]:
        """Ids of the known rows that a build would drop, however many new ones come with it. A failed row stands for
        nothing that could be lost: a line that was put right is a new row."""
        dropped = set(plan.orphaned)
        return [i for i in view.table(self.name).ok_rows([self.key])[self.key] if i in dropped] if dropped else []

    def moved(self, view: View, column: str, contents: Collection[str | None]) -> set[str]:
        """Ids of the known rows whose content, which is in a column, is among `contents`: under another name it is not
        gone."""
        known = view.table(self.name).ok_rows([self.key, column]).iter_rows()
        return {row_id for row_id, content in known if content is not None and content in contents}

    def moved_beside(self, view: View) -> Collection[str] | None:
        """The ids of all rows that may be other ones where no table moved, but what `beside_tables` names did; None
        where that may be any row. A plan with these `View.ids` makes no others."""
        return None

    def said_otherwise(self, view: View, said: pl.DataFrame, made: pl.Expr) -> set[str]:
        """The ids of `said` whose text in its second column the table's row does not have in `made`, which is made of
        its inputs, or where one of the two is null; and those of rows that are not said. Some thousands of rows are
        compared at a time, without a join of all of them."""
        (key, text), moved, begin = said.columns, set[str](), 0
        said = said.sort(key)
        for rows in view.table(self.name).batches([key, "row_inputs"]):
            if rows.height:
                end = max(begin, int(said[key].search_sorted(rows[key][-1], "right")))
                both = said[begin:end].join(rows.select(key, made=made), on=key, how="full", coalesce=True)
                moved.update(both.filter((pl.col(text) != pl.col("made")).fill_null(True))[key])
                begin = end
        return moved.union(said[begin:][key])

    def place(self, view: View) -> str:
        """The file or folder in which the rows are looked for."""
        return view.entry.annotations

    def _refusal(self, view: View, gone: Sequence[str], num_known: int) -> str:
        named = ", ".join(gone[:MAX_NAMED]) + (", ..." if len(gone) > MAX_NAMED else "")
        place = self.place(view)
        return (
            f"{len(gone):,} of {num_known:,} known {self.thing} of {view.entry.name} are gone at once ({named}); "
            f"{place} {_state(Path(place))}. Nothing was dropped. If it is not mounted, or was copied in part, put "
            "that right and build again. If they were removed on purpose: "
            f"vsr1 build --dataset {view.entry.name} --allow-removals (in the UI: the tag {ALLOW_TAG}=true on the run)"
        )


class FromVideos(FromDisk):
    """A stage with a row per video. A renamed video is there."""

    def gone(self, view: View, rows: Mapping[str, Row], plan: Plan) -> Sequence[str]:
        gone = super().gone(view, rows, plan)
        moved = self.moved(view, "content", {row.known.get("content") for row in rows.values()}) if gone else set()
        return [video_id for video_id in gone if video_id not in moved]


ALLOW_TAG = "vsr1/allow_removals"
"""Tag of a Dagster run that drops the rows of whatever is gone."""


def _state(place: Path) -> str:
    if not place.exists():
        return "does not exist"
    if place.is_dir() and not any(place.iterdir()):
        return "is an empty folder"
    return "is there, without them"
