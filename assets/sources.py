"""Files as they come: annotations and videos, versioned by content. Reading their rows is `assets.corpus`."""

from __future__ import annotations

from assets._factory import DECODE, AssetInfo

ASSETS = (
    AssetInfo("annotation_files", "One row an annotation file, with the digest of its content.", frozenset({"json"})),
    AssetInfo(
        "raw_videos",
        "One row a video file, with its digest; the toy videos are rendered here.",
        frozenset({"ffmpeg"}),
        pool=DECODE,
    ),
)
