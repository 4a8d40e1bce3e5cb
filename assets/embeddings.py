"""The embeddings: unit vectors of queries and videos."""

from __future__ import annotations

from assets._factory import GPU, AssetInfo

ASSETS = tuple(
    AssetInfo(name, frozenset({"pytorch", "parquet"}), pool=GPU) for name in ("query_embeddings", "video_embeddings")
)
