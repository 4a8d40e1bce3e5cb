"""Checkpoints from elsewhere that stand for a training: which one, and where it is from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vsr1_core.recipes import MethodOptions
from vsr1_core.rows.files import read_json, write_json
from vsr1_core.stages.base import View


@dataclass(frozen=True)
class Adopted:
    """A checkpoint from elsewhere: its folder, its digest, and where it is from."""

    path: str
    digest: str
    source: str

    @property
    def options(self) -> dict[str, Any]:
        """The options in the checkpoint's own folder, which does not say with which seed it began."""
        recorded = read_json(Path(self.path) / "config.json")["soft_query"]
        return {f.name: recorded.get(f.name, f.default) for f in fields(MethodOptions)} | {"seed": None}


def adopted_path(view: View, asset: str) -> Path:
    """The record of what stands for `asset`'s training."""
    return view.files(asset) / "adopted.json"


def adopted(view: View, asset: str) -> Adopted | None:
    """What stands for `asset`'s training, if anything."""
    path = adopted_path(view, asset)
    return Adopted(**read_json(path)) if path.exists() else None


def write_adopted(view: View, asset: str, checkpoint: Adopted) -> Path:
    """Let `checkpoint` stand for `asset`'s training from the next build on. Returns the record."""
    write_json(adopted_path(view, asset), asdict(checkpoint))
    return adopted_path(view, asset)
