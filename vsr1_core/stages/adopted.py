"""Adopted checkpoints: made elsewhere, they replace a training of this dataset and everything it alone would need."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vsr1_core.input_form import InputForm
from vsr1_core.recipes import MethodOptions
from vsr1_core.rows.files import read_json, write_json
from vsr1_core.rows.lake import Lake
from vsr1_core.stages.base import View
from vsr1_core.stages.methods import ALL, POLICY, TRAINED, Trained, is_made, is_used, methods_of


@dataclass(frozen=True)
class Adopted:
    """A checkpoint that was made elsewhere.

    path: its folder. digest: that of its weights. source: where it comes from, a hub id or a folder.
    """

    path: str
    digest: str
    source: str

    @property
    def options(self) -> dict[str, Any]:
        """The options recorded in the checkpoint's folder. The seed is None, because the folder does not record it."""
        recorded = read_json(Path(self.path) / "config.json")["soft_query"]
        form = asdict(InputForm.recorded(recorded.get("form")))
        return {f.name: recorded.get(f.name, f.default) for f in fields(MethodOptions)} | {"seed": None, "form": form}


def adopted_path(lake: Lake, dataset: str, asset: str) -> Path:
    """The file that records which checkpoint replaces the training of `asset` in the dataset."""
    return lake.files(asset, dataset) / "adopted.json"


def adopted(view: View, asset: str) -> Adopted | None:
    """The checkpoint that replaces the training of `asset`; None where it is trained."""
    path = adopted_path(view.lake, view.entry.name, asset)
    if not path.exists():
        return None
    kept: dict[str, str] = read_json(path)
    return Adopted(**{name: view.lake.places.placed(text) for name, text in kept.items()})


def write_adopted(view: View, asset: str, checkpoint: Adopted) -> Path:
    """Let `checkpoint` replace the training of `asset` from the next build on. Returns the path of the record."""
    path = adopted_path(view.lake, view.entry.name, asset)
    with view.lake.fenced():
        write_json(path, {name: view.lake.places.stored(text) for name, text in asdict(checkpoint).items()})
    return path


def is_trained_here(view: View, trained: Trained) -> bool:
    """Whether this dataset trains the checkpoint: its configuration makes it, none was adopted in its place, and a
    reported method or a further training needs it. One that only an adopted checkpoint would have started from is not
    trained."""
    if not is_made(view.config, trained) or adopted(view, trained.name) is not None:
        return False
    further = [t for t in TRAINED.values() if t.parent[0] == trained.name]
    return is_used(view.config, trained.name) or not further or any(is_trained_here(view, t) for t in further)


def needs_base_policy(view: View) -> bool:
    """Whether a reported method searches with the base policy, or a training starts from it."""
    if any(ALL[name].model == POLICY[0] for name in methods_of(view.config)):
        return True
    return any(t.parent == POLICY and is_trained_here(view, t) for t in TRAINED.values())
