"""Files as they come: annotations and videos, versioned by content. Reading their rows is `assets.corpus`."""

from __future__ import annotations

from assets._factory import DECODE, AssetInfo

ASSETS = (
    AssetInfo("annotation_files", frozenset({"json"})),
    AssetInfo("raw_videos", frozenset({"ffmpeg"}), pool=DECODE),
)
