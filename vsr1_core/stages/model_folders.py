"""What stages of models share: a row that points to a folder, made here or borrowed from another dataset.

A dataset that borrows models (`models_from`) gets rows that point to the other dataset's folders, so the rest of the
graph needs not know. Every folder is named by its row's version: a rebuilt checkpoint never overwrites one in use.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from vsr1_core.recipes import Configuration
from vsr1_core.rows.versions import Inputs, row_version
from vsr1_core.stages import columns as c
from vsr1_core.stages.base import Execution, Row, Stage, View
from vsr1_core.stages.columns import Column

if TYPE_CHECKING:
    from vsr1_core.training.runs import CurvePoint

BORROWED = "borrowed"
"""The one input of a row that points to another dataset's model: that row's version."""
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

    group = "checkpoints"
    row_files = "*-*"
    columns = {
        "path": c.PATH,
        "digest": c.DIGEST,
        "parent": c.text("Digest of the weights that training started from."),
        "source": c.text(
            "Where the weights come from, if they were not trained here: a model id, or `borrowed from` a dataset."
        ),
        "record": c.text("Recipe, parents and results, JSON."),
        "options": Column(
            OPTIONS,
            "What the policy was made with: soft tokens, accumulation, seed state, prompt, seed; null: no policy.",
        ),
        "curve": Column(CURVE, "Logged training values: step, name, value."),
    }

    def is_made(self, config: Configuration) -> bool:
        """Whether this configuration has these models at all."""
        return True

    @abstractmethod
    def own_rows(self, view: View) -> dict[str, Row]:
        """The rows of a dataset that makes its own models."""

    def make_own(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        """Make the rows of a dataset that makes its own models: train, in as many processes as can share a step."""
        from vsr1_core.stages.launch import launch

        shared = self.rows_a_step(view)
        processes = max(n for n in range(1, min(run.processes, max(shared, 1)) + 1) if shared % n == 0)
        if processes < run.processes:
            run.log(f"{self.name}: a step of {shared} can be shared evenly by {processes} processes, not by more")
        if processes == 1:
            yield from self.train_here(view, run)
        else:
            yield from launch(view, self.name, replace(run, processes=processes))

    @abstractmethod
    def rows_a_step(self, view: View) -> int:
        """What the processes that train together share of every step."""

    @abstractmethod
    def train_here(self, view: View, run: Execution, writes: bool = True) -> list[dict[str, Any]]:
        """Train in this process, which may be one of several, and return the rows. Only one that `writes` saves the
        models; the others return nothing."""

    def trains(self, view: View) -> bool:
        return not view.entry.models_from

    def plan(self, view: View) -> dict[str, Row]:
        models = view.models_view()
        if not self.is_made((models or view).config):
            return {}
        return self.own_rows(view) if models is None else self._borrowed_rows(view, models)

    def _borrowed_rows(self, view: View, models: View) -> dict[str, Row]:
        versions = models.versions(self.name)
        if not versions:
            raise ValueError(
                f"dataset {view.entry.name!r} uses the models of {models.entry.name!r}, which has no {self.name} yet; "
                f"run: vsr1 build --dataset {models.entry.name}"
            )
        options = models.rows(self.name, [self.key, "options"])
        if models.table(self.name).new_columns():
            raise ValueError(
                f"dataset {view.entry.name!r} uses the models of {models.entry.name!r}, which an earlier version of "
                f"this project made; build these first: vsr1 build --dataset {models.entry.name}"
            )
        return {i: Row({BORROWED: versions[i]}, known_options(made_with)) for i, made_with in options.iter_rows()}

    def inputs_of(self, view: View, rows: Mapping[str, Row]) -> dict[str, Inputs]:
        if view.models_view() is not None:
            return {row_id: dict(row.inputs) for row_id, row in rows.items()}
        return super().inputs_of(view, rows)

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        models = view.models_view()
        if models is None:
            yield from self.make_own(view, rows, run)
            return
        for row in models.rows(self.name).filter(pl.col(self.key).is_in(list(rows))).to_dicts():
            columns = {name: row[name] for name in (self.key, *self.columns)}
            yield columns | {"source": f"{BORROWED} from {models.entry.name}"}

    def folder(self, view: View, row_id: str) -> Path:
        """Where row `row_id` of the present version lies."""
        version = row_version(self.inputs_of(view, self.plan(view))[row_id])
        return view.files(self.name).absolute() / f"{row_id}-{version}"


def known_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The column of a model's row that says what a policy was made with, as a plan knows it."""
    return {"options": dict(options) if options else None}


def options_of(view: View, asset: str, row_id: str) -> dict[str, Any] | None:
    """What the policy in a model's row was made with, also of one that is still to be made; None where there is no such
    policy."""
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
    """The columns of a model that was saved to `folder`, with `model_id` as key."""
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
    """video_id, content and splits of the train videos that have frames."""
    return view.rows("frame_tensors", ["video_id", "content", "splits"]).filter(IN_TRAIN)
