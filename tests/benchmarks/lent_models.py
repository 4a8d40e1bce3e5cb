"""Models of the tiny configuration's size that have seen one step: what costs as much as trained ones, in seconds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from vsr1_core.configurations import NANO, TINY
from vsr1_core.datasets.registry import DatasetEntry, save_entry
from vsr1_core.rows.lake import Lake
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import all_stages
from vsr1_core.toy_recipe import ToyRecipe

LENDER = "lender"


def lend_untrained_models(home: Path, workers: int = 1, corpus: ToyRecipe = NANO.toy) -> View:
    """Build the base models of the dataset `lender`, a toy corpus, for others to use as theirs. Quick where they are
    there."""
    folder = home / "data" / LENDER
    entry = DatasetEntry(LENDER, "toy", str(folder / "videos"), str(folder), "tiny")
    save_entry(home, entry)
    tiny = dataclasses.replace(TINY.models.tiny, vision_pretraining_steps=1, contrastive_steps=1, contrastive_batch=4)
    models = dataclasses.replace(TINY.models, tiny=tiny)
    config = dataclasses.replace(TINY, models=models, toy=corpus)
    view = View(Lake(home / "lake"), entry, config, all_stages(), home=home)
    for name, stage in view.stages.items():
        stage.build(view, Execution(workers=workers))
        if name == "base_models":
            break
    return view
