"""Unit vectors of queries and videos."""

from __future__ import annotations

from assets._factory import AssetInfo

ASSETS = (
    AssetInfo("query_embeddings", "One unit vector a query text, float32.", frozenset({"pytorch", "parquet"})),
    AssetInfo("video_embeddings", "One unit vector a video, float32.", frozenset({"pytorch", "parquet"})),
)
