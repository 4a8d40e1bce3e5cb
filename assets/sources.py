"""The source files: annotations and videos, versioned by content. The assets of `assets.corpus` read their rows."""

from __future__ import annotations

from assets._factory import DECODE, AssetInfo

ASSETS = (
    AssetInfo("annotation_files", frozenset({"json"})),
    AssetInfo("raw_videos", frozenset({"ffmpeg"}), pool=DECODE),
)
