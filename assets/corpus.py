"""Videos and annotated moments, without pixels; sampled frames are in `assets.media`."""

from __future__ import annotations

from assets._factory import DECODE, AssetInfo

ASSETS = (AssetInfo("videos", frozenset({"parquet", "ffmpeg"}), pool=DECODE),)
