"""What there is to search and to ask: videos and annotated moments. No pixels; those are in `assets.media`."""

from __future__ import annotations

from assets._factory import DECODE, AssetInfo

ASSETS = (AssetInfo("videos", frozenset({"parquet", "ffmpeg"}), pool=DECODE),)
