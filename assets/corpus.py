"""What there is to search and to ask: videos and annotated moments. No pixels; those are in `assets.media`."""

from __future__ import annotations

from assets._factory import DECODE, AssetInfo

ASSETS = (
    AssetInfo(
        "videos",
        "One row a video: duration, rate, size, codec; failed where it is missing or unreadable.",
        frozenset({"parquet", "ffmpeg"}),
        pool=DECODE,
    ),
    AssetInfo("moments", "One row an annotated query: its text, its video, and the span in seconds."),
)
