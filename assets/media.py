"""Sampled frames on disk, with their true times in the video."""

from __future__ import annotations

from typing import Any

from assets._factory import DECODE, AssetInfo
from assets._metadata import contact_sheet, drawn, picture
from vsr1_core.stages.base import View


def frames_extras(view: View, asset: str) -> dict[str, Any]:
    """A contact sheet of the first videos."""
    first = view.rows(asset, ["path", "row_version"]).head(6)
    png = drawn(view.lake, ["frames", first.rows()], lambda: contact_sheet(first["path"].to_list()))
    return {"frames": picture(png, "frames of the first videos")}


ASSETS = (AssetInfo("frame_tensors", frozenset({"numpy", "ffmpeg"}), frames_extras, DECODE),)
