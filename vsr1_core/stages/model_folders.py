"""The base of all stages of models: a row points to a folder, made by this dataset or borrowed from another one.

A dataset that borrows models (`models_from`) gets rows that point to the folders of the dataset that owns them, so the
rest of the graph works the same. Folders are named by row version: a new checkpoint never overwrites one in use.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from vsr1_core.datasets.sources import FileVersions
from vsr1_core.recipes import Configuration
from vsr1_core.rows.versions import fingerprint, row_version
from vsr1_core.stages import columns as c
from vsr1_core.stages.adopted import adopted
from vsr1_core.stages.base import Row, Stage, View
from vsr1_core.stages.columns import Column
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.methods import TRAINED
from vsr1_core.stages.moments import TRAIN

if TYPE_CHECKING:
    from vsr1_core.training.runs import CurvePoint

BORROWED = "borrowed"
"""Name of the only input of a row that points to another dataset's model: the version of the row there."""
CURVE = pl.List(pl.Struct({"step": pl.Int64, "name": pl.String, "value": pl.Float64}))
FORM = pl.Struct(
    {
        "video_wrapper": pl.String,
        "time_marks": pl.String,
        "shown_frames": pl.String,
        "force_refine": pl.Boolean,
        "num_turns": pl.Int64,
        "max_new_tokens": pl.Int64,
        "query_tokens": pl.Int64,
        "sft_prompt": pl.String,
    }
)
"""The fields of `input_form.InputForm`."""
OPTIONS = pl.Struct(
    {
        "num_soft_tokens": pl.Int64,
        "accumulate": pl.Boolean,
        "seed_hidden": pl.String,
        "system_prompt": pl.String,
        "seed": pl.Int64,
        "form": FORM,
    }
)
"""The fields of `recipes.MethodOptions`. seed is null for an adopted checkpoint, whose folder does not record it."""
IN_TRAIN = pl.col("splits").list.contains("train")


class ModelStage(Stage):
    """A stage whose rows point to model folders. They are borrowed where the dataset uses the models of another one."""

    group = "checkpoints"
    stops_at_errors = True
    row_files = "*-*"
    searched_with: tuple[str, ...] = ()
    """The rows that a dataset needs which is only searched."""
    columns = {
        "path": c.PATH,
        "digest": c.DIGEST,
        "parent": c.text("Digest of the weights that training started from; null where there were none."),
        "source": c.text(
            "Where weights come from that were not trained here: a hub id, a folder, or `borrowed from` a dataset."
        ),
        "record": c.text("How the model was made: its recipe, parent and results, as JSON."),
        "options": Column(
            OPTIONS,
            "Options that the policy was made with: soft tokens, accumulation, prompt, seeds, input form; null: not a "
            "policy.",
        ),
        "curve": Column(CURVE, "Values that training logged: step, name and value of each."),
    }

    def is_made(self, config: Configuration) -> bool:
        """Whether this configuration makes these models at all."""
        return True

    @abstractmethod
    def own_rows(self, view: View) -> dict[str, Row]:
        """The rows of a dataset that makes its own models."""

    def make_own(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        """Train the models of a dataset that makes its own, in as many processes as can share a step evenly."""
        from vsr1_core.stages.launch import launch

        processes = self._processes(view, run)
        if processes == 1:
            yield from self.train_here(view, run)
        else:
            yield from launch(view, self.name, replace(run, processes=processes))

    def _processes(self, view: View, run: Execution) -> int:
        if 0 < self.num_steps(view) < run.min_shared_steps:
            return 1
        shared = self.rows_a_step(view)
        processes = max(n for n in range(1, min(run.processes, max(shared, 1)) + 1) if shared % n == 0)
        if processes < run.processes:
            run.log(f"{self.name}: a step of {shared} can be shared evenly by {processes} processes, not by more")
        return processes

    @abstractmethod
    def num_steps(self, view: View) -> int:
        """How many steps a training takes; 0: as many as one pass over its rows."""

    @abstractmethod
    def rows_a_step(self, view: View) -> int:
        """Size of one training step that processes share: rows or queries. It must divide evenly by their number."""

    @abstractmethod
    def train_here(self, view: View, run: Execution, writes: bool = True) -> list[dict[str, Any]]:
        """Train in this process, which may be one of several, and return the rows. Only the process with `writes` saves
        the models; the others return an empty list."""

    def trains(self, view: View) -> bool:
        return not view.entry.models_from

    def beside_tables(self, view: View, files: FileVersions) -> Any:
        """Nothing, where no model comes from a folder: a configured one, or an adopted checkpoint."""
        has_folders = not view.config.models.is_tiny or any(adopted(view, name) for name in TRAINED)
        return None if has_folders else []

    def concerns(self, view: View) -> bool:
        return self.is_made((view.models_view() or view).config)

    def plan(self, view: View) -> dict[str, Row]:
        models, only = view.models_view(), view.entry.search_only
        if not self.concerns(view) or (only and not self.searched_with):
            return {}
        rows = self.own_rows(view) if models is None else self._borrowed_rows(view, models)
        return {row_id: row for row_id, row in rows.items() if not only or row_id in self.searched_with}

    def _borrowed_rows(self, view: View, models: View) -> dict[str, Row]:
        rows = models.rows(self.name, [self.key, "row_version", "options", "path"])
        if rows.is_empty():
            raise ValueError(
                f"dataset {view.entry.name!r} uses the models of {models.entry.name!r}, which has no {self.name} yet; "
                f"run: vsr1 build --dataset {models.entry.name}"
            )
        if models.table(self.name).new_columns():
            raise ValueError(
                f"dataset {view.entry.name!r} uses the models of {models.entry.name!r}, which an earlier version of "
                f"this project made; build these first: vsr1 build --dataset {models.entry.name}"
            )
        return {
            row_id: Row({BORROWED: version}, {**known_options(options), "path": path}, is_borrowed=True)
            for row_id, version, options, path in rows.iter_rows()
        }

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        models = view.models_view()
        if models is None:
            yield from self.make_own(view, rows, run)
            return
        for row in models.rows(self.name).filter(pl.col(self.key).is_in(list(rows))).to_dicts():
            columns = {name: row[name] for name in (self.key, *self.columns)}
            yield columns | {"source": f"{BORROWED} from {models.entry.name}"}

    def folder(self, view: View, row_id: str) -> Path:
        """The folder of row `row_id` in its planned version."""
        version = row_version(self.inputs_of(view, self.plan(view))[row_id])
        return view.files(self.name).absolute() / f"{row_id}-{version}"


def known_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The column `options` of a model's row, which a plan knows before the model is made."""
    return {"options": dict(options) if options else None}


def is_absent(view: View, asset: str, row_id: str) -> bool:
    """Whether this dataset makes no model `row_id` of `asset`: its table lacks the row, and no row failed in its place.
    A dataset that borrows models never says so: what their owner lacks is an error."""
    if asset not in view.stages or view.models_view() is not None:
        return False
    key = view.stages[asset].key
    if asset in view.planned:
        return row_id not in view.planned[asset].rows([key])[key]
    table = view.table(asset)
    return asset not in view.unsettled and table.exists() and row_id not in table.rows([key])[key]


def options_of(view: View, asset: str, row_id: str) -> dict[str, Any] | None:
    """Options of the policy in row `row_id` of `asset`, also of a planned row; None where there is no such policy."""
    if asset not in view.stages:
        return None
    rows = view.rows(asset, [view.stages[asset].key, "options"]).iter_rows()
    found: dict[str, dict[str, Any]] = dict(rows)
    return found.get(row_id)


def model_row(
    key: str,
    row_id: str,
    folder: Path,
    digest: str,
    record: Mapping[str, Any],
    curve: Sequence[CurvePoint],
    options: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The row of a model that was saved to `folder`. key: the name of its id column."""
    points = [{"step": p.step, "name": p.name, "value": p.value} for p in curve]
    return {
        key: row_id,
        "path": str(folder),
        "digest": digest,
        "record": json.dumps(record, sort_keys=True),
        **known_options(options),
        "curve": points,
    }


def train_videos(view: View) -> pl.DataFrame:
    """The columns video_id, content and splits of the train videos that have frames."""
    return view.rows("frame_tensors", ["video_id", "content", "splits"], TRAIN)


def content_version(videos: pl.DataFrame) -> str:
    """One version for the frames of `videos` (columns video_id and content)."""
    return fingerprint(sorted(videos.select("video_id", "content").rows()))
