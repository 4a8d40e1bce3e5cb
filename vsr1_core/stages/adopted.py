"""The record of adopted checkpoints: checkpoints made elsewhere that replace a training of this dataset."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vsr1_core.input_form import InputForm
from vsr1_core.recipes import MethodOptions
from vsr1_core.rows.files import read_json, write_json
from vsr1_core.stages.base import View


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


def adopted_path(view: View, asset: str) -> Path:
    """The file that records which checkpoint replaces the training of `asset`."""
    return view.files(asset) / "adopted.json"


def adopted(view: View, asset: str) -> Adopted | None:
    """The checkpoint that replaces the training of `asset`; None where it is trained."""
    path = adopted_path(view, asset)
    return Adopted(**read_json(path)) if path.exists() else None


def write_adopted(view: View, asset: str, checkpoint: Adopted) -> Path:
    """Let `checkpoint` replace the training of `asset` from the next build on. Returns the path of the record."""
    write_json(adopted_path(view, asset), asdict(checkpoint))
    return adopted_path(view, asset)
