"""What stages of models share: a row that points to a folder, made here or borrowed from another dataset.

A dataset that borrows models (`models_from`) gets rows that point to the lender's folders, so the rest of the graph
needs not know. Every folder is named by its row's version: a rebuilt checkpoint never overwrites one in use.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl

from vsr1_core.recipes import Configuration
from vsr1_core.rows.versions import row_version
from vsr1_core.stages.base import Execution, Row, Stage, View

if TYPE_CHECKING:
    from vsr1_core.training.runs import CurvePoint

CURVE = pl.List(pl.Struct({"step": pl.Int64, "name": pl.String, "value": pl.Float64}))
OPTIONS = pl.Struct(
    {
        "num_soft_tokens": pl.Int64,
        "accumulate": pl.Boolean,
        "seed_hidden": pl.String,
        "system_prompt": pl.String,
        "seed": pl.Int64,
    }
)
"""The fields of `recipes.MethodOptions`; seed is null where a checkpoint from elsewhere does not say it."""
IN_TRAIN = pl.col("splits").list.contains("train")


class ModelStage(Stage):
    """A stage whose rows are model folders, borrowed where the dataset says so."""

    group: ClassVar[str] = "checkpoints"
    row_files: ClassVar[str] = "*-*"
    columns: ClassVar[Mapping[str, Any]] = {
        "path": pl.String,
        "digest": pl.String,
        "parent": pl.String,
        "source": pl.String,
        "record": pl.String,
        "options": OPTIONS,
        "curve": CURVE,
    }

    def is_made(self, config: Configuration) -> bool:
        """Whether this configuration has these models at all."""
        return True

    @abstractmethod
    def own_rows(self, view: View) -> dict[str, Row]:
        """The rows of a dataset that makes its own models."""

    def make(self, view: View, ids: Sequence[str], execution: Execution) -> Iterator[dict[str, Any]]:
        """Make the rows of a dataset that makes its own models: train, in as many processes as can share a step."""
        from vsr1_core.stages.launch import launch

        rows = self.rows_a_step(view)
        processes = max(n for n in range(1, min(execution.processes, max(rows, 1)) + 1) if rows % n == 0)
        if processes < execution.processes:
            execution.log(f"{self.name}: a step of {rows} can be shared evenly by {processes} processes, not by more")
        if processes == 1:
            yield from self.train_here(view, execution)
        else:
            yield from launch(view, self.name, replace(execution, processes=processes))

    @abstractmethod
    def rows_a_step(self, view: View) -> int:
        """What the processes that train together share of every step."""

    @abstractmethod
    def train_here(self, view: View, execution: Execution, writes: bool = True) -> list[dict[str, Any]]:
        """Train in this process, which may be one of several, and return the rows. Only one that `writes` saves the
        models; the others return nothing."""

    def trains(self, view: View) -> bool:
        return not view.entry.models_from

    def wanted(self, view: View) -> dict[str, Row]:
        lender = view.lender()
        if not self.is_made((lender or view).config):
            return {}
        if lender is None:
            return self.own_rows(view)
        lent = lender.versions(self.name)
        if not lent:
            raise ValueError(
                f"dataset {view.entry.name!r} uses the models of {lender.entry.name!r}, which has no {self.name} yet; "
                f"run: vsr1 build --dataset {lender.entry.name}"
            )
        options = lender.rows(self.name, [self.key, "options"])
        return {
            row_id: Row({"lent": lent[row_id]}, known_options(made_with)) for row_id, made_with in options.iter_rows()
        }

    def wanted_inputs(self, view: View, wanted: Mapping[str, Row]) -> dict[str, Any]:
        if view.lender() is not None:
            return {row_id: dict(row.inputs) for row_id, row in wanted.items()}
        return super().wanted_inputs(view, wanted)

    def process(self, view: View, ids: Sequence[str], execution: Execution) -> Iterator[dict[str, Any]]:
        lender = view.lender()
        if lender is None:
            yield from self.make(view, ids, execution)
            return
        for row in lender.rows(self.name).filter(pl.col(self.key).is_in(list(ids))).to_dicts():
            yield {name: row[name] for name in (self.key, *self.columns)} | {"source": f"lent by {lender.entry.name}"}

    def folder(self, view: View, row_id: str) -> Path:
        """Where row `row_id` of the present version lies."""
        version = row_version(self.wanted_inputs(view, self.wanted(view))[row_id])
        return view.files(self.name).absolute() / f"{row_id}-{version}"


def known_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The column of a model's row that says what a policy was made with, as a plan knows it."""
    return {"options": dict(options) if options else None}


def options_of(view: View, asset: str, row_id: str) -> dict[str, Any] | None:
    """The options that the policy of `asset`'s row is made with, also of one that is still to be made; None where there
    is no such policy."""
    if asset not in view.stages:
        return None
    rows = view.rows(asset, [view.stages[asset].key, "options"]).iter_rows()
    found: dict[str, dict[str, Any]] = dict(rows)
    return found.get(row_id)


def model_row(
    row_id: str,
    folder: Path,
    digest: str,
    record: Mapping[str, Any],
    curve: Sequence[CurvePoint],
    options: Mapping[str, Any] | None,
) -> dict[str, Any]:
    points = [{"step": p.step, "name": p.name, "value": p.value} for p in curve]
    return {
        "model_id": row_id,
        "path": str(folder),
        "digest": digest,
        "record": json.dumps(record, sort_keys=True),
        **known_options(options),
        "curve": points,
    }


def train_videos(view: View) -> pl.DataFrame:
    return view.rows("frame_tensors", ["video_id", "content", "splits"]).filter(IN_TRAIN)
