"""Unit vectors of queries and videos."""

from __future__ import annotations

from assets._factory import GPU, AssetInfo

ASSETS = (
    AssetInfo(
        "query_embeddings", "One unit vector a query text, float32.", frozenset({"pytorch", "parquet"}), pool=GPU
    ),
    AssetInfo("video_embeddings", "One unit vector a video, float32.", frozenset({"pytorch", "parquet"}), pool=GPU),
)
